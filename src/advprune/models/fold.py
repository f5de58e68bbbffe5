"""Batch-norm folding: the same function with fewer layers.

Batch-norm in evaluation mode is an affine map per channel, so it merges into the convolution
before it. Folding only reorders float arithmetic: logits agree to rounding. Binary convolutions
are left alone: their sums are exact, and rounding before a sign can turn it over.
"""

import copy

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from advprune.models.binary import BinaryConv2d


class _LeafTracer(fx.Tracer):
    """Do not look inside modules without children, or of other people: they may hold code that
    cannot be traced, or a backward pass of their own, which tracing would silently drop."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or not _own(m)


def _own(module: nn.Module) -> bool:
    """Whether a module's code is this library's, torch's or torchvision's."""
    return type(module).__module__.partition(".")[0] in ("advprune", "torch", "torchvision")


def channels_last(model: nn.Module) -> nn.Module:
    """A model in the layout in which convolutions are fastest, in place, where all of its code is
    known to bear that: views of another's making may need the usual one."""
    known = all(_own(module) for module in model.modules())
    return model.to(memory_format=torch.channels_last) if known else model


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode with every conv-bn pair merged into one convolution.

    Parts of another's making are left as they are; a model that torch.fx cannot trace is copied
    without folding.
    """
    model = copy.deepcopy(model).eval()
    if not _own(model):
        return model
    try:
        traced = fx.GraphModule(model, _LeafTracer().trace(model))
    except (fx.proxy.TraceError, TypeError, RuntimeError, ValueError, AttributeError):
        return model
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        pair = _conv_before(node, modules)
        if pair is None:
            continue
        conv_node, conv, bn = pair
        _replace(traced, str(conv_node.target), fuse_conv_bn_eval(conv, bn))
        node.replace_all_uses_with(conv_node)
        traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _conv_before(
    node: fx.Node, modules: dict[str, nn.Module]
) -> tuple[fx.Node, nn.Conv2d, nn.BatchNorm2d] | None:
    """The convolution whose only reader is the batch-norm at `node`, if there is one."""
    bn = modules.get(str(node.target)) if node.op == "call_module" else None
    if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
        return None
    before = node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
        return None
    conv = modules.get(str(before.target))
    if not isinstance(conv, nn.Conv2d) or isinstance(conv, BinaryConv2d):
        return None
    return before, conv, bn


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
