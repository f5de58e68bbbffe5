"""Batch-norm folding, and passes recorded as a CUDA graph.

Batch-norm in evaluation mode is an affine map per channel, so it merges into the convolution before
it; logits agree to rounding. Binary convolutions are not folded: rounding before a sign can invert
it. Attacks work on folded copies, and adversarial training on one that follows the weights.
"""

import copy
from collections import Counter
from operator import attrgetter
from typing import Any

import torch
from torch import fx, nn
from torch.cuda import make_graphed_callables
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from advprune.models.binary import BinaryConv2d
from advprune.models.copies import hooked, plain_copy
from advprune.models.spec import Normalize, Site
from advprune.models.stochastic import Stochastic


class _LeafTracer(fx.Tracer):
    """Do not look inside modules without children, or of other people: they may hold a backward
    pass of their own, which tracing would silently drop."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or not _own(m)


def _own(module: nn.Module) -> bool:
    """Whether a module's code is this library's, torch's or torchvision's."""
    return type(module).__module__.partition(".")[0] in ("advprune", "torch", "torchvision")


def channels_last(model: nn.Module) -> nn.Module:
    """A model in the layout in which convolutions are fastest, in place, where all of its code is
    known to allow that; binary convolutions would put it back."""
    stay = any(not _own(m) or isinstance(m, BinaryConv2d) for m in model.modules())
    return model if stay else model.to(memory_format=torch.channels_last)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of `model` in evaluation mode with every conv-bn pair merged into one convolution.
    Foreign parts are not changed; a model that torch.fx cannot trace is copied without folding."""
    model = copy.deepcopy(model).eval()
    if (traced := _traced(model)) is None:
        return model
    _merge(traced)
    return traced.eval()


class Following:
    """The folded form of a model in training: made once, then kept up with its weights. `network`
    computes what the model does in evaluation mode, with weights that take no gradient."""

    def __init__(self, model: nn.Module, traced: fx.GraphModule) -> None:
        live, pairs = model.get_submodule, _merge(traced)
        self.pairs: list[tuple[Any, Any, Any]] = [
            (live(c), live(bn), traced.get_submodule(c)) for c, bn in pairs
        ]
        computed = {id(t) for *_, fused in self.pairs for t in fused.parameters()}
        tensors = dict(traced.named_parameters()) | dict(traced.named_buffers())
        self.model = model
        self.copied = {name: t for name, t in tensors.items() if id(t) not in computed}
        self.network = channels_last(traced.eval().requires_grad_(False))

    @classmethod
    def of(cls, model: nn.Module) -> "Following | None":
        """None for a model that holds more than torch's own layers and ways to join them, or whose
        weights are computed from others by foreign code."""
        parts: list[Any] = [part for part in model.modules() if is_parametrized(part)]
        rules = [rule for part in parts for c in part.parametrizations.values() for rule in c]
        if hooked(model) or not all(type(r).__module__.startswith("advprune.") for r in rules):
            return None
        bare = plain_copy(model)
        for part in bare.modules():
            torchs = type(part).__module__.startswith("torch.nn.modules.")
            joins = any(part.children()) and _own(part)
            if not (torchs or joins or isinstance(part, Normalize | Site)):
                return None
            if not getattr(part, "affine", True):  # batch-norm without a weight
                return None
        traced = _traced(bare)
        if traced is None or any(node.op == "get_attr" for node in traced.graph.nodes):
            return None
        return cls(model, traced)

    @torch.no_grad()
    def refresh(self) -> nn.Module:
        """The network, with the model's weights and statistics as they are now."""
        for conv, bn, fused in self.pairs:
            scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
            mean = bn.running_mean if conv.bias is None else bn.running_mean - conv.bias
            fused.weight.copy_(conv.weight * scale.view(-1, 1, 1, 1))
            fused.bias.copy_(bn.bias - mean * scale)
        for name, tensor in self.copied.items():
            tensor.copy_(attrgetter(name)(self.model))
        return self.network


class Replayed(nn.Module):
    """Forward and backward passes of `network` on batches like `sample`, recorded once as a CUDA
    graph: the GPU finishes a small network's kernels sooner than Python can start them. Other
    passes, and those without a gradient, are run as usual.

    network: in evaluation mode, without gradients of its weights, which may change in place. What a
    pass gives is overwritten by the next.
    """

    def __init__(self, network: nn.Module, sample: torch.Tensor) -> None:
        super().__init__()
        self.network, self.shape = network, sample.shape
        device, kind = sample.device.type, torch.get_autocast_dtype(sample.device.type)
        on = torch.is_autocast_enabled(device)
        with torch.autocast(device, kind, enabled=on, cache_enabled=False):
            example = sample.detach().clone().requires_grad_()
            self.eval()
            self.recorded: Any = make_graphed_callables(lambda x: network(x), (example,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alike = x.shape == self.shape and x.requires_grad and torch.is_grad_enabled()
        logits: torch.Tensor = (self.recorded if alike else self.network)(x)
        return logits


def _traced(model: nn.Module) -> fx.GraphModule | None:
    """The model's graph, of the same layers; None where torch.fx may not or cannot follow it, or
    would lose hooks or a model's own randomness (`stochastic.Drawn`)."""
    if not _own(model) or isinstance(model, Stochastic) or hooked(model):
        return None
    try:
        return fx.GraphModule(model, _LeafTracer().trace(model))
    except Exception:  # whatever its code does with the tracer's proxies
        return None


def _merge(traced: fx.GraphModule) -> list[tuple[str, str]]:
    """Replace every conv-bn pair by one convolution; the names of each pair. Of a pair,
    the batch-norm alone reads the convolution, which is not used again."""
    modules, names = dict(traced.named_modules()), []
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        bn = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(bn, nn.BatchNorm2d) or bn.running_mean is None:
            continue
        before: Any = node.args[0]
        alone = isinstance(before, fx.Node) and before.op == "call_module"
        alone = alone and len(before.users) == 1 and calls[before.target] == 1
        conv = modules.get(str(before.target)) if alone else None
        if isinstance(conv, nn.Conv2d) and not isinstance(conv, BinaryConv2d):
            names.append((str(before.target), str(node.target)))
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(conv, bn))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return names
