"""filters: whole filters of the smallest L1 norm removed.

Claim (Li et al., 2017). Filters with a small sum of absolute weights produce weak feature maps;
without them the network is faster, and no special kernels are needed.

Formula. The filters of a convolution, or the outputs of a linear layer, are ranked by `sum |w|`,
and the smallest are removed; ties are broken by position. With them go the batch-norm and the
depthwise convolutions behind them, and the channels of the layers that read them: a group, by
Torch-Pruning's dependency graph. Layers whose outputs are added to those of others stay whole,
because a shortcut ties them, and so do attention, the classifier, and layers that a grouped, a
transposed or a 1D convolution reads. That leaves in resnet18 and resnet20 the first convolution of
each block, in a MobileNet the convolutions that widen a block, and in a vision transformer the
inner layer of each MLP.

Small networks. `small: true` builds the network smaller; masked and small network give the same
logits to rounding. The prune ratio of a small network is the share missing from the dense one; its
sparsity is that of the file, which has hardly any zeros.

Source. Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017), section 3; Fang et al.,
DepGraph: Towards Any Structural Pruning (CVPR 2023), for the groups.
"""

import copy
import warnings
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import torch
from pydantic import Field
from torch import nn

from advprune.core.device import device_of
from advprune.core.errors import UserError, first_line
from advprune.core.settings import Settings
from advprune.core.train_settings import FineTune
from advprune.models.foreign import Sized, size_of
from advprune.models.resnet import BasicBlock, ResNet
from advprune.models.spec import INSIDE, ModelSpec, attach
from advprune.models.stochastic import is_randomized, undisturbed
from advprune.pruning.family import Data, Pruned, family
from advprune.pruning.masks import Masks, clear, everywhere, first, layers, masked, part, tune

Group = Callable[..., Any]  # from outputs' numbers (`idxs`) to Torch-Pruning's group of them
SIDE = 8  # of the image by which dependencies are traced where there are no training images
CLOSE = 1e-3  # of logits of the small and the masked network, relative to the largest


class Filters(Settings):
    """filters: the share of each layer's filters to remove, rounded down; one always remains.

    finetune: training that follows; null for none. small: take the filters out of the network
    instead of setting them to zero.
    """

    fraction: float = Field(ge=0, lt=1)
    finetune: FineTune = None
    small: bool = False


def smallest_filters(weight: torch.Tensor, fraction: float) -> torch.Tensor:
    """True for the filters of `weight` `[out, in, k, k]` with the smallest sum of |w|, `[out]`. So
    many as `fraction * out`, rounded down; of equal ones the first."""
    norms = weight.detach().abs().flatten(1).sum(1)
    return first(norms, min(part(fraction, len(norms)), len(norms) - 1))


def groups(model: nn.Module, image: torch.Tensor) -> dict[str, Group]:
    """The layers of a network whose outputs can be removed, by name, and a function that gives
    what has to go with some of these outputs, as Torch-Pruning lists it.

    image: `[1, C, H, W]`, by which the layers are traced; UserError where that fails.
    """
    import torch_pruning

    model.requires_grad_(True)  # the dependencies are read off the graph of gradients
    graph, found = torch_pruning.DependencyGraph(), dict[str, Group]()
    try:
        with undisturbed(device_of(model)), warnings.catch_warnings(action="ignore"):
            graph.build_dependency(model, image.to(device_of(model)))
    except Exception as error:  # of the network's code, or of what cannot be followed
        why = f"on an image {list(image.shape[1:])}: {first_line(error)}"
        raise UserError(f"the network cannot be followed {why}") from error
    # In this library's networks, only what is inside a block can have another size.
    inside = {m.conv1 for m in model.modules() if isinstance(m, BasicBlock)}
    for name, layer in layers(model).items():
        linear = isinstance(layer, nn.Linear)
        way: Any = "prune_linear_out_channels" if linear else "prune_conv_out_channels"
        group = partial(graph.get_pruning_group, layer, getattr(torch_pruning, way))
        if layer not in graph.module2node or (isinstance(model, ResNet) and layer not in inside):
            continue
        if getattr(layer, "groups", 1) == 1 and _alone(layer, group([0])):
            found[name] = group
    return found


def _alone(layer: nn.Module, group: Any) -> bool:
    """Whether the first output of a layer is one row of its weight, is read by others, all of them
    linear layers or plain convolutions, and neither added to another layer's outputs nor seen by
    more than batch-norm and depthwise convolutions."""
    readers = 0
    for dependency, places in group:
        member, reads = dependency.layer, _reads(dependency)
        readers += reads
        groups = member.groups if isinstance(member, nn.Conv2d) else 0
        depthwise = groups > 1 and groups == member.in_channels == member.out_channels
        plain = reads and (groups == 1 or isinstance(member, nn.Linear))
        norm = isinstance(member, nn.BatchNorm1d | nn.BatchNorm2d)
        alike = isinstance(member, nn.PReLU) and member.num_parameters == 1
        itself = member is layer and list(places) == [0]
        # Operations hold nothing; of what does, there is a rule for those above alone.
        holds = isinstance(member, nn.Parameter) or [*member.parameters(), *member.buffers()]
        if holds and not (plain or depthwise or norm or alike or itself):
            return False
    return readers > 0


def _reads(dependency: Any) -> bool:
    """Whether it is a layer's inputs that go, in an entry of a group."""
    return bool(dependency.pruning_fn.__name__ == "prune_in_channels")


def shrink(model: nn.Module, rows: dict[str, list[int]], found: dict[str, Group]) -> None:
    """Take these outputs of layers out of the network, in place, and let its spec say so."""
    touched: set[nn.Module] = set()
    for name, chosen in rows.items():
        group = found[name](idxs=chosen)
        touched |= {dependency.layer for dependency, _ in group}
        group.prune()
    spec = getattr(model, "spec", None)
    if isinstance(model, ResNet):
        blocks = [m for m in model.modules() if isinstance(m, BasicBlock)]
        inner = tuple(block.conv1.out_channels for block in blocks)
        attach(model, model.spec.model_copy(update={"inner": inner}))
    elif isinstance(spec, ModelSpec):
        parts = {n.removeprefix(f"{INSIDE}."): m for n, m in model.named_modules()}
        sizes = {n: size_of(m) for n, m in parts.items() if m in touched and isinstance(m, Sized)}
        attach(model, spec.model_copy(update={"sizes": spec.sizes | sizes}))


@family("filters", Filters)
def filters(model: nn.Module, setting: Filters, data: Data) -> Pruned:
    """The filters of the smallest L1 norm in every layer whose outputs are only read by others. The
    ratio counts what is gone from the dense network, in a smaller network too."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = convolutions[0].in_channels if convolutions else 1
    image = data.images[:1] if len(data.images) else torch.full((1, channels, SIDE, SIDE), 0.5)
    if not (found := groups(model, image)):
        raise UserError(
            "the network has no layer whose filters can be removed: outputs are added to those of "
            "other layers, or are read by none or by what cannot be cut; leave the family out"
        )
    removed, names = Masks(), {m: n for n, m in model.named_modules()}
    smallest = {
        name: smallest_filters(model.get_parameter(f"{name}.weight"), setting.fraction)
        for name in found
    }
    rows = {name: gone.nonzero()[:, 0].tolist() for name, gone in smallest.items() if gone.any()}
    # With a filter go its row of the weight, what follows it channel by channel, and the columns of
    # what reads it.
    for name, chosen in rows.items():
        for dependency, places in found[name](idxs=chosen):
            member, reads = dependency.layer, _reads(dependency)
            parameters = member.named_parameters(recurse=False) if isinstance(member, Sized) else ()
            for key, parameter in parameters:
                if not (reads and key == "bias"):
                    mask = torch.zeros_like(parameter, dtype=torch.bool)
                    mask = removed.setdefault(f"{names[member]}.{key}", mask)
                    (mask.transpose(0, 1) if reads else mask)[list(places)] = True
    if not setting.small:
        return masked(model, removed, setting.finetune, data)
    changed, whole = everywhere(model, removed), copy.deepcopy(model)
    clear(whole, removed)
    shrink(model, rows, found)
    if not is_randomized(model):  # it has to answer as the masked network before it is trained
        image = image.to(device_of(model))
        with torch.no_grad(), undisturbed(image.device):
            wanted = whole(image)
            try:
                far, why = float((model(image) - wanted).abs().max()), "other logits"
            except Exception as error:  # of code that knows its layers' sizes
                far, why = inf, first_line(error)
        if not far <= CLOSE * (1 + float(wanted.abs().max())):
            raise UserError(f"the network does not run with fewer filters ({why}); leave small out")
    return Pruned(model, changed, {"finetune": tune(model, {}, setting.finetune, data)})
