"""filters: whole filters of the smallest L1 norm removed.

Claim (Li et al., 2017). Filters with a small sum of absolute weights give weak feature maps;
removing whole filters makes a network faster without special kernels.

Formula. In the first convolution of each residual block filters are ranked by `sum |w|`, and the
smallest are removed; ties are broken by position. Their batch-norm's weights and biases and the
channels of the block's second convolution that read them are removed too. Other layers stay whole:
the shortcut ties their outputs to those of other blocks.

Small networks. `small: true` builds the network smaller, by torch-pruning's dependency graph;
masked and small network give the same logits to rounding. The prune ratio of a small network is the
share missing from the dense one; its sparsity is that of the file, which has hardly any zeros.

Source. Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), section 3; Fang et al.,
DepGraph: Towards Any Structural Pruning (CVPR 2023), for the library.
"""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.core.train_settings import FineTune
from advprune.models.resnet import BasicBlock
from advprune.models.spec import attach, spec_of
from advprune.pruning.family import Data, Pruned, Setting, family
from advprune.pruning.masks import Masks, everywhere, first, masked, part, tune

SIDE = 8  # of the image by which the dependencies of layers are traced; any would do


class Filters(Setting):
    """filters: the share of each block's first filters to remove, rounded down; one always remains.

    finetune: training that follows; null for none. small: take the filters out of the network
    instead of setting them to zero.
    """

    shorthand: ClassVar[str | None] = "fraction"
    fraction: float = Field(ge=0, lt=1)
    finetune: FineTune = None
    small: bool = False


def smallest_filters(weight: torch.Tensor, fraction: float) -> torch.Tensor:
    """True for the filters of `weight` `[out, in, k, k]` with the smallest sum of |w|, `[out]`.

    So many as `fraction * out`, rounded down; of equal ones the first.
    """
    norms = weight.detach().abs().flatten(1).sum(1)
    return first(norms, min(part(fraction, len(norms)), len(norms) - 1))


def shrink(model: nn.Module, chosen: Masks) -> None:
    """Take the chosen filters out of the network, in place, and let its spec say so."""
    import torch_pruning

    spec = spec_of(model)
    device = device_of(model)
    image = torch.zeros(1, spec.channels, SIDE, SIDE, device=device)
    model.requires_grad_(True)  # the dependencies are read off the graph of gradients
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        graph = torch_pruning.DependencyGraph().build_dependency(model, image)
    prune: Any = torch_pruning.prune_conv_out_channels
    for name, gone in chosen.items():
        layer = model.get_submodule(f"{name}.conv1")
        if rows := gone.nonzero()[:, 0].tolist():
            graph.get_pruning_group(layer, prune, idxs=rows).prune()
    inner = tuple(int((~gone).sum()) for gone in chosen.values())
    attach(model, spec.model_copy(update={"inner": inner}))


@family("filters", Filters)
def filters(model: nn.Module, setting: Filters, data: Data) -> Pruned:
    """The filters of the smallest L1 norm in the first convolution of each block.

    The ratio counts what is gone from the dense network, in a smaller network too.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, BasicBlock)}
    if not blocks:
        raise UserError(
            "the network has no residual blocks to prune, as resnet18 and resnet20 have; leave the "
            "family out"
        )
    chosen = {n: smallest_filters(b.conv1.weight, setting.fraction) for n, b in blocks.items()}
    removed: Masks = {}
    for name, gone in chosen.items():  # with their batch-norm, and the channels that read them
        first_rows, read = gone.view(-1, 1, 1, 1), gone.view(1, -1, 1, 1)
        parts = {"conv1.weight": first_rows, "bn1.weight": gone, "bn1.bias": gone}
        for key, mask in (parts | {"conv2.weight": read}).items():
            weight = blocks[name].get_parameter(key)
            removed[f"{name}.{key}"] = mask.expand_as(weight).clone()
    if not setting.small:
        return masked(model, removed, setting.finetune, data)
    changed = everywhere(model, removed)
    shrink(model, chosen)
    history = tune(model, {}, setting.finetune, data)
    return Pruned(model, changed, {"finetune": history})
