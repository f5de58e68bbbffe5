"""Weights of other projects: renamed as a network's own, masks multiplied in, loaded."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.files import referenced, sha256_of
from advprune.models.benchmarks import recognized
from advprune.models.checkpoint import build, fill, is_stored, stored
from advprune.models.spec import ModelSpec
from advprune.models.tensor_file import naming, read_weights

Tensors = dict[str, torch.Tensor]
SCORES = "popup_scores"
MASKS = ("_mask", ".mask")  # at the end of a name: that of `X`, and of a layer's weight


@dataclass
class Plain:
    """Tensors under a network's names, masks applied; the faults met on the way, and notes."""

    tensors: Tensors = field(default_factory=dict)
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
    `weight` with its `mask`, and with `popup_scores` (HYDRA), of which each layer keeps the share
    `keep`, in (0, 1], with the largest magnitudes. What the network has itself (`wanted`) is none
    of these.
    """
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"the share of weights to keep lies in (0, 1] (got {keep})")
    found, rename = Plain(), naming(spec, tensors, wanted)
    held, faults, origin = found.tensors, found.faults, dict[str, str]()
    for name, tensor in tensors.items():
        if not is_stored(new := rename(name)):
            continue
        if new in held:
            faults.append(f"twice: {origin[new]} and {name} are both called {new}")
            continue
        origin[new], held[new] = name, tensor
    scores = [name for name in held if name.endswith(f".{SCORES}")]
    if scores and keep is None:
        faults.append(
            f"mask: {len(scores)} tensors of {SCORES} rank the weights, but the file does not say "
            "how many are kept: give that share (--keep)"
        )
    for name in scores:
        ranks = held.pop(name)
        if keep is not None:  # int((1 - keep) n) smallest |scores| go
            mask = torch.ones(ranks.numel())
            mask[ranks.flatten().abs().argsort(stable=True)[: int((1 - keep) * len(mask))]] = 0
            held[name.removesuffix(SCORES) + "weight_mask"] = mask.view_as(ranks)
    masked = []  # weights, as they were
    for name in [name for name in held if name.endswith(MASKS) and name not in wanted]:
        mask = held.pop(name)
        stem = name.removesuffix("_mask") if name.endswith("_mask") else f"{name[:-5]}.weight"
        source = f"{stem}_orig" if f"{stem}_orig" in held else stem
        if source not in held:
            faults.append(f"mask: {name} has no weight beside it")
            continue
        weight = held[stem] = held.pop(source)
        if mask.shape != weight.shape or not bool(((mask == 0) | (mask == 1)).all()):
            faults.append(f"mask: {name} is not 0 or 1 for each number of {source}")
            continue
        masked.append(weight)
        # Not a product: a NaN that is masked is gone, as it is where the weights are stored masked.
        held[stem] = torch.where(mask != 0, weight, torch.zeros_like(weight))
    if masked:
        zeros = sum(int((weight == 0).sum()) for weight in masked)
        share = f"{100 * zeros / max(sum(w.numel() for w in masked), 1):.2f} %"
        found.notes.append(f"{len(masked)} masks were applied; without them {share} would be zeros")
    return found


def expected(reference: str, sha256: str | None) -> Path:
    """The file that a profile's `weights` name; UserError where there is none, or its sha256 is not
    the one that is given."""
    path = referenced(reference)
    if sha256 is not None and (found := sha256_of(path)) != sha256:
        raise UserError(f"{reference} has sha256 {found}, but params.yaml expects {sha256}")
    return path


def load_foreign(
    spec: ModelSpec, reference: str, sha256: str | None, factory: str | None = None
) -> nn.Module:
    """Build `spec` and fill it with weights from elsewhere, under whatever names (`plain`).

    reference: a path to a safetensors file or a PyTorch state dict, or `package:<name>/<file>` for
    a file inside an installed package. factory: as in `build`. UserError where the hash differs or
    tensors do not fit.
    """
    path = expected(reference, sha256)
    model, (tensors, _) = build(spec, factory), read_weights(path)
    if spec.architecture.startswith("cifar/") and (theirs := recognized(tensors)):
        tensors = theirs.tensors
    read = plain(tensors, spec=spec, wanted=stored(model))
    for fault in read.faults:
        raise UserError(f"{reference}: {fault}")
    fill(model, read.tensors, where=reference)
    return model
