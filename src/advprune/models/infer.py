"""What a checkpoint without a header holds: a network's own tensors, and which network that is.

Names lose the prefixes of wrappers, masks are applied to their weights; the architecture is what is
given, or what names and shapes fit.
"""

from collections.abc import Container, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from advprune.core.errors import UserError
from advprune.core.networks import is_factory
from advprune.core.settings import parse
from advprune.models.checkpoint import build, is_stored, naming
from advprune.models.spec import BLOCKS, ModelSpec

Tensors = dict[str, torch.Tensor]
SCORES = "popup_scores"


@dataclass
class Plain:
    """Tensors under a network's names, masks applied; the faults met on the way, and notes."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plain(
    tensors: Mapping[str, torch.Tensor],
    keep: float | None = None,
    spec: ModelSpec | None = None,
    wanted: Container[str] = (),
) -> Plain:
    """Tensors under the names of a network of that spec, with masks applied to their weights.

    Understood are `X_orig` with `X_mask` (torch.nn.utils.prune), `X` with `X_mask`, a layer's
    `weight` with its `mask`, and a `weight` with `popup_scores`, of which each layer keeps the
    share `keep`. What the network has itself (`wanted`) is none of these. Raises UserError where
    `keep` is outside (0, 1].
    """
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"the share of weights to keep lies in (0, 1] (got {keep})")
    found, rename = Plain(), naming(spec, tensors, wanted)
    origin: dict[str, str] = {}
    for name, tensor in tensors.items():
        new = rename(name)
        if not is_stored(new):
            continue
        if new in origin:
            found.faults.append(f"twice: {origin[new]} and {name} are both {new}")
        elif tensor.layout != torch.strided or tensor.is_quantized:
            found.faults.append(f"type: {name} is no plain tensor")
        else:
            origin[new] = name
            found.tensors[new] = tensor
    scores = [name for name in found.tensors if name.endswith(f".{SCORES}")]
    if scores and keep is None:
        found.faults.append(
            f"mask: {len(scores)} tensors of {SCORES} rank the weights, but the file does not say "
            "how many are kept: give that share (--keep)"
        )
    for name in scores:
        ranks = found.tensors.pop(name)
        if keep is not None:  # int((1 - keep) n) smallest |scores| go
            mask = torch.ones(ranks.numel())
            mask[ranks.flatten().abs().argsort(stable=True)[: int((1 - keep) * len(mask))]] = 0
            found.tensors[name.removesuffix(SCORES) + "weight_mask"] = mask.view_as(ranks)
    _apply_masks(found, wanted)
    return found


def _apply_masks(found: Plain, wanted: Container[str]) -> None:
    """Multiply masks into their weights, and note what share of these was zero before."""
    applied: list[torch.Tensor] = []
    ends = ("_mask", ".mask")
    for name in [n for n in found.tensors if n.endswith(ends) and n not in wanted]:
        mask = found.tensors.pop(name)
        stem = name.removesuffix("_mask") if name.endswith("_mask") else f"{name[:-5]}.weight"
        source = f"{stem}_orig" if f"{stem}_orig" in found.tensors else stem
        if source not in found.tensors:
            found.faults.append(f"mask: {name} has no weight beside it")
            continue
        weight = found.tensors.pop(source)
        found.tensors[stem] = weight
        if mask.shape != weight.shape or not bool(((mask == 0) | (mask == 1)).all()):
            found.faults.append(f"mask: {name} is not 0 or 1 for each number of {source}")
            continue
        applied.append(weight)
        # Not a product: a NaN that is masked is gone, as it is where the weights are stored masked.
        found.tensors[stem] = torch.where(mask != 0, weight, torch.zeros_like(weight))
    if applied:
        zeros = sum(int((weight == 0).sum()) for weight in applied)
        share = f"{100 * zeros / max(sum(w.numel() for w in applied), 1):.2f} %"
        found.notes.append(
            f"{len(applied)} masks were applied; without them {share} would be zeros"
        )


def wanted_of(spec: ModelSpec | None, factory: str | None = None) -> Tensors:
    """What a checkpoint of a network of that spec holds: parameters as such, and buffers; of this
    library's networks without memory for numbers, which the code of others may need."""
    if spec is None:
        return {}
    with nullcontext() if spec.outside else torch.device("meta"):
        held = build(spec, factory).state_dict(keep_vars=True)
    return {name: tensor for name, tensor in held.items() if is_stored(name)}


def shown(architecture: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What the weights of a network of timm or torchvision show of it: the first convolution its
    channels, the last linear layer its classes."""
    if is_factory(architecture):
        return {}
    weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
    stems = [tensor.shape[1] for tensor in weights if tensor.ndim == 4]
    heads = [tensor.shape[0] for tensor in weights if tensor.ndim == 2]
    found = ("channels", stems[:1]), ("classes", heads[-1:])
    return {key: sizes[0] for key, sizes in found if sizes}


def outside_spec(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
    """The spec of a network that is none of this library's, from what is given of it (architecture,
    classes, channels and options, if it has some) or `shown` by its tensors. UserError where one
    is missing or wrong."""
    given = shown(given["architecture"], tensors) | dict(given)
    if missing := [key for key in ("classes", "channels") if key not in given]:
        raise UserError(
            f"the {missing[0]} of {given['architecture']} cannot be inferred; give --{missing[0]}"
        )
    return _spec(given)


def inferred(tensors: Tensors, given: Mapping[str, Any]) -> ModelSpec | None:
    """The network of this library that the tensors' names and shapes fit best; None where there is
    none.

    A fourth stage makes it a ResNet18. Width and channels are those of `conv1.weight`, classes
    those of the last linear layer, unless `given` says otherwise; normalization cannot be told from
    weights and is none. UserError where what is given describes no network.
    """
    stem = tensors.get("conv1.weight")
    linear = [t for name, t in tensors.items() if name.endswith("weight") and t.ndim == 2]
    fourth = any(name.startswith("layer4.") for name in tensors)
    sizes: dict[str, Any] = {"architecture": "resnet18" if fourth else "resnet20"}
    if stem is not None and stem.ndim == 4:
        sizes |= {"width": stem.shape[0], "channels": stem.shape[1]}
    if linear:
        sizes["classes"] = tensors.get("linear.weight", linear[-1]).shape[0]
    sizes |= given
    if not {"width", "channels", "classes"} <= sizes.keys():
        return None
    try:
        spec = _spec(sizes)
    except UserError:
        if given:
            raise
        return None
    firsts = (  # the first convolution of each block, some of whose filters may be gone
        f"layer{stage + 1}.{place}.conv1.weight"
        for stage, count in enumerate(BLOCKS[spec.architecture])
        for place in range(count)
    )
    inner = tuple(
        int(tensors[name].shape[0]) if name in tensors and tensors[name].ndim == 4 else width
        for name, width in zip(firsts, spec.blocks, strict=True)
    )
    try:
        return spec if inner == spec.blocks else _spec(sizes | {"inner": inner})
    except UserError:
        return spec


def _spec(sizes: Mapping[str, Any]) -> ModelSpec:
    """A network of these sizes that does not normalize; UserError where there is none."""
    channels = max(min(sizes["channels"], 5), 0)  # what are too many is refused
    nothing = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    return parse(ModelSpec, nothing | dict(sizes), "the network")
