"""filters: whole filters of the smallest L1 norm removed.

Claim (Li et al., 2017). Filters with a small sum of absolute weights give weak feature maps;
removing whole filters makes a network faster without special kernels.

Formula. In the first convolution of each residual block filters are ranked by `sum |w|`, and the
smallest are removed, of equal ones the first. With a filter go its batch-norm's weight and bias
and the channels of the block's second convolution that read it. Other layers stay whole: the
shortcut ties their outputs to those of other blocks.

Small networks. `small: true` builds the network smaller, by torch-pruning's dependency graph;
masked and small network give the same logits to rounding. The prune ratio of a small network is
what is missing from the dense one; its sparsity is that of the file, which has hardly any zeros.

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
from advprune.pruning.family import Data, Pruned, Setting, family, require
from advprune.pruning.masks import Masks, clear, everywhere, tune

SIDE = 8  # of the image by which the dependencies of layers are traced; any would do
ROUNDING = 1e-9  # 0.29 of 100 filters are 29, though 0.29 * 100 < 29 in floating point


class Filters(Setting):
    """filters: the share of each block's first filters that goes, rounded down; one always stays.

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
    count = min(int(fraction * len(norms) + ROUNDING), len(norms) - 1)
    return torch.zeros_like(norms, dtype=torch.bool).index_fill_(
        0, norms.argsort(stable=True)[:count], True
    )


def chosen_filters(model: nn.Module, fraction: float) -> dict[str, torch.Tensor]:
    """By name of the residual block, which filters of its first convolution go, `[out]`."""
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, BasicBlock)}
    if not blocks:
        raise UserError(
            "filters: the network has no residual blocks to prune, as resnet18 and resnet20 have; "
            "leave the family out"
        )
    return {name: smallest_filters(b.conv1.weight, fraction) for name, b in blocks.items()}


def filter_masks(model: nn.Module, chosen: dict[str, torch.Tensor]) -> Masks:
    """What goes with the chosen filters: their batch-norm, and the channels that read them."""
    masks = {}
    for block, gone in chosen.items():
        along_first, along_second = gone.view(-1, 1, 1, 1), gone.view(1, -1, 1, 1)
        for part, mask in (
            ("conv1.weight", along_first),
            ("bn1.weight", gone),
            ("bn1.bias", gone),
            ("conv2.weight", along_second),
        ):
            name = f"{block}.{part}"
            masks[name] = mask.expand_as(model.get_parameter(name)).clone()
    return masks


def shrink(model: nn.Module, chosen: dict[str, torch.Tensor]) -> None:
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
def filters(
    model: nn.Module, setting: Filters, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The filters of the smallest L1 norm in the first convolution of each block.

    The ratio counts what is gone from the dense network, in a smaller network too. The notes hold
    `filters` (how many went), `inner` (how many stay, a block) and `finetune` (the history).
    """
    if setting.finetune is not None:
        require(data, "filters")
    chosen = chosen_filters(model, setting.fraction)
    removed = filter_masks(model, chosen)
    changed = everywhere(model, removed)
    clear(model, removed)
    if setting.small:
        shrink(model, chosen)
    held = {} if setting.small else removed
    history = tune("filters", model, setting.finetune, data, generator, held)
    notes = {
        "filters": sum(int(gone.sum()) for gone in chosen.values()),
        "inner": tuple(int((~gone).sum()) for gone in chosen.values()),
        "finetune": history,
    }
    return Pruned(model, changed, notes)
