"""The tensors of a checkpoint under a network's own names, with masks applied to their weights."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import torch

from advprune.core.errors import UserError
from advprune.models.checkpoint import canonical, is_stored
from advprune.models.outside import Rename

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
    rename: Rename = canonical,
    wanted: Container[str] = (),
) -> Plain:
    """Names without wrappers' prefixes, by `rename`, and masks applied to their weights.

    Understood are `X_orig` with `X_mask` (torch.nn.utils.prune), `X` with `X_mask`, a layer's
    `weight` with its `mask`, and a `weight` with `popup_scores`, of which each layer keeps the
    share `keep`. What the network has itself (`wanted`) is none of these. Raises UserError where
    `keep` is outside (0, 1].
    """
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"the share of weights to keep lies in (0, 1] (got {keep})")
    origin: dict[str, str] = {}
    found = Plain()
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
