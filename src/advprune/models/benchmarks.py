"""Checkpoints of RobustBench and AdversarialPruningBenchmark under this library's names.

Their networks are told by names and shapes of the tensors: each kind by some names that no other
has. ResNet18 in the form that is usual for CIFAR needs no row: it is this library's `resnet18`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from advprune.core.errors import UserError
from advprune.models.tensor_file import bare

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recognized:
    """The network of a file."""

    tensors: dict[str, torch.Tensor]  # by this library's names
    given: dict[str, Any]  # what describes it
    normalized: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std, if held
    notes: list[str] = field(default_factory=list)  # what was left out


@dataclass(frozen=True)
class _Dialect:
    architecture: str
    signature: tuple[str, ...]  # names that all such files have
    options: Callable[[Tensors], dict[str, Any]]  # of the network, from the tensors
    absent: tuple[str, ...] = ()  # names that no such file has
    rename: Callable[[str], str | None] = str  # from their names to ours; None: it has no use


def _out(tensors: Tensors, name: str) -> int:
    if not tensors[name].ndim:
        raise UserError(f"{name} is a single number where these networks have weights")
    return int(tensors[name].shape[0])


def _vgg(tensors: Tensors) -> dict[str, Any]:
    hidden = _out(tensors, "classifier.0.weight") if "classifier.0.weight" in tensors else 0
    bias = "features.0.bias" in tensors
    return {"width": _out(tensors, "features.0.weight"), "hidden": hidden, "bias": bias}


PWOA = {"layer6.0": "classifier.0", "layer7.0": "classifier.2", "layer8": "classifier.4"}
STARTS = (0, 7, 14, 24, 34)  # of VGG16's stages among the modules of `features`


def _from_stages(name: str) -> str:
    """PwoA's VGG16: `layer<stage>.<place>.<0 or 1>` for convolutions and their batch-norms."""
    for theirs, ours in PWOA.items():
        if name.startswith(f"{theirs}."):
            return ours + name.removeprefix(theirs)
    stage, *rest = name.removeprefix("layer").split(".")
    if len(rest) != 3 or not name.startswith("layer") or not (stage + rest[0] + rest[1]).isdigit():
        return name
    if not 1 <= int(stage) <= len(STARTS):
        return name
    return f"features.{STARTS[int(stage) - 1] + 3 * int(rest[0]) + int(rest[1])}.{rest[2]}"


VGG = ("features.0.weight", "features.40.weight", "features.41.running_var")
DIALECTS = (
    _Dialect(
        "cifar/wide_resnet",  # Carmon's, HYDRA's and others after TRADES' code
        ("block1.layer.0.conv1.weight", "conv1.weight", "fc.weight"),
        lambda t: {
            "depth": 6 * len({n.split(".")[2] for n in t if n.startswith("block1.layer.")}) + 4,
            "widen": _out(t, "block1.layer.0.conv1.weight") // 16,
        },
        rename=lambda name: None if name.startswith("sub_block1.") else name,
    ),
    _Dialect(
        "cifar/preact_resnet18",  # Wong's, Rice's; RobustBird and FlyingBird
        ("layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "conv1.weight", "linear.weight"),
        lambda tensors: {"width": _out(tensors, "conv1.weight"), "norm": "bn.weight" in tensors},
        absent=("bn1.weight", "layer4.0.shortcut.1.weight"),
    ),
    _Dialect("cifar/vgg16", (*VGG, "classifier.weight"), _vgg),  # RADMM, TwinRep, the Birds
    _Dialect("cifar/vgg16", (*VGG, "classifier.4.weight"), _vgg),  # HYDRA and HARP
    _Dialect(
        "cifar/vgg16",  # PwoA
        ("layer1.0.0.weight", "layer5.2.0.weight", "layer8.weight"),
        lambda tensors: _vgg({_from_stages(name): tensor for name, tensor in tensors.items()}),
        rename=_from_stages,
    ),
)


def recognized(tensors: Tensors) -> Recognized | None:
    """The benchmark's network in a file, by its tensors; None where it is none of these."""
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        held.setdefault(bare(name), tensor)
    seen = {name.removesuffix("_orig"): tensor for name, tensor in held.items()}  # of masked layers
    for dialect in DIALECTS:
        fits = all(name in seen for name in dialect.signature)
        if not fits or len(held) < len(tensors) or any(name in seen for name in dialect.absent):
            continue
        # RobustBench's networks keep what they normalize by among their tensors.
        buffers = [held.pop(name).flatten().tolist() for name in ("mu", "sigma") if name in held]
        renamed = {dialect.rename(name): tensor for name, tensor in held.items()}
        left = sum(dialect.rename(name) is None for name in held)
        return Recognized(
            {name: tensor for name, tensor in renamed.items() if name is not None},
            {"architecture": dialect.architecture, "options": dialect.options(seen)},
            (tuple(buffers[0]), tuple(buffers[1])) if len(buffers) == 2 else None,
            [f"{left} tensors were left out that the network does not use"] if left else [],
        )
    return None
