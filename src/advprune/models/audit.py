"""Audit of a checkpoint: what its tensors are, how sparse, and whether they make up a network.

A benchmark of compressed networks is as good as its checkpoints: a tensor under a wrong name leaves
random weights in its place, and the sparsity in the file may differ from the one that is claimed.
Here tensors are compared with what the architecture needs, name by name, and zeros are counted. No
network is run; the rule for what fits is the one by which `checkpoint.fill` loads.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.networks import LIBRARY, is_library
from advprune.models.checkpoint import misfit
from advprune.models.infer import Tensors, inferred, naming, outside_spec, wanted_of
from advprune.models.outside import dtype_name
from advprune.models.spec import ModelSpec
from advprune.models.unmask import plain

KNOWN_SHARE = 0.5  # of an architecture's names; with fewer, a file is no such network at all


@dataclass(frozen=True)
class Layer:
    """The weight of a convolution or linear layer, and how many of its numbers are zero."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    zeros: int
    count: int

    @property
    def sparsity(self) -> float:
        """zeros / count."""
        return self.zeros / max(self.count, 1)


@dataclass(frozen=True)
class Audit:
    """What a checkpoint holds.

    spec: the architecture that the tensors were compared with; None where none fits. source: where
    that is from (header, given or inferred). layers: the prunable weights, in the network's order
    (in the file's without an architecture). zeros, count: of all weights and biases, those of
    batch-norm too; running statistics do not count. faults: one line each; a network with a fault
    is not to be evaluated. notes: what is odd and yet no fault.
    """

    spec: ModelSpec | None
    source: str
    layers: tuple[Layer, ...]
    zeros: int
    count: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether there is no fault."""
        return not self.faults

    @property
    def prunable(self) -> tuple[int, int]:
        """Zeros and numbers in the weights of convolutions and linear layers."""
        return sum(layer.zeros for layer in self.layers), sum(layer.count for layer in self.layers)

    @property
    def prunable_sparsity(self) -> float:
        """Zeros over all weights of convolutions and linear layers, in [0, 1]."""
        zeros, count = self.prunable
        return zeros / max(count, 1)

    @property
    def sparsity(self) -> float:
        """Zeros over all weights and biases, in [0, 1]."""
        return self.zeros / max(self.count, 1)

    @property
    def remaining(self) -> float | None:
        """Sparsity of the prunable weights without first and last layer; None where there are no
        others, or where without an architecture these are unknown."""
        inner = self.layers[1:-1] if self.spec else ()
        count = sum(layer.count for layer in inner)
        return sum(layer.zeros for layer in inner) / count if count else None


def audit(
    tensors: Mapping[str, torch.Tensor],
    spec: ModelSpec | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    tolerance: float = 0.0,
    keep: float | None = None,
    factory: str | None = None,
) -> Audit:
    """Audit the `tensors` of a checkpoint, under the names that the file gives them.

    spec: what they should be, from the file's header; `given`, of architecture, width, channels and
    classes, must not contradict it. Without a header the architecture is inferred, with what is
    given fixed. tolerance: numbers of at most this magnitude count as zeros, at least 0. keep: the
    share of each layer's weights that the largest |popup_scores| keep, in (0, 1], for files that
    hold such scores (HYDRA, Sehwag et al., 2020, where it is called k). factory: the function of
    the user's that may be called to make the network (`checkpoint.build`). Raises UserError where
    `given`, tolerance or keep are out of range, and where the network cannot be made.
    """
    if tolerance < 0:
        raise UserError(f"the tolerance of zeros is at least 0 (got {tolerance})")
    source, said = "header", given or {}
    if spec is None and not is_library(str(said.get("architecture", LIBRARY[0]))):
        source, spec = "given", outside_spec(said)
    wanted = wanted_of(spec, factory)
    found = plain(tensors, keep, naming(spec, tensors, wanted), wanted)
    if spec is None:
        source = "given" if given else "inferred"
        spec = inferred(found.tensors, said)
        wanted = wanted_of(spec, factory)
    faults = list(found.faults)
    for key, value in said.items() if spec else ():  # a header may declare layers without tensors
        if (told := getattr(spec, key)) != value:
            faults.append(f"header: {key} is {told}, and not {value}")
    known = {name: found.tensors[name] for name in wanted if name in found.tensors}
    rest = {name: tensor for name, tensor in found.tensors.items() if name not in known}
    ordered = known | rest
    if spec is None:
        faults.append(
            "architecture: no convolution conv1 and linear layer to tell the architecture by"
        )
    elif len(known) < KNOWN_SHARE * len(wanted):
        faults.append(
            f"architecture: none fits; the nearest, {spec.described}, finds "
            f"{len(known)} of its {len(wanted)} tensors"
        )
        spec = None
    else:
        faults += _against(wanted, found.tensors)
    own = {n for n, t in wanted.items() if n in found.tensors and not isinstance(t, nn.Parameter)}
    compared = {n: t for n, t in found.tensors.items() if n not in own or not t.is_floating_point()}
    faults += [*_numbers(ordered, rest if spec else ordered), *_twice(compared)]
    weights = {n: t for n, t in ordered.items() if n.rpartition(".")[2] in ("weight", "bias")}
    zeros = {name: _zeros(tensor, tolerance) for name, tensor in weights.items()}
    layers = tuple(
        Layer(name, tuple(t.shape), dtype_name(t), zeros[name], t.numel())
        for name, t in weights.items()
        if name.rpartition(".")[2] == "weight" and t.ndim >= 2
    )
    count = sum(tensor.numel() for tensor in weights.values())
    notes = [*found.notes, *_oddities(ordered, layers, spec)]
    if spec is not None and source == "inferred":
        notes.append(
            f"inferred: names and shapes fit {spec.architecture}, which has no max-pooling; they "
            "do not show pooling, strides or activations"
        )
    lines = tuple(faults), tuple(notes)
    return Audit(spec, source if spec else "none", layers, sum(zeros.values()), count, *lines)


def _against(wanted: Tensors, tensors: Tensors) -> Iterator[str]:
    """What is missing, left over, or does not fit its place."""
    for name in wanted:
        if name not in tensors:
            yield f"missing: {name} {list(wanted[name].shape)}"
    for name in tensors:
        if name not in wanted:
            yield f"left over: {name} {list(tensors[name].shape)}"
    for name in wanted:
        if name in tensors and (fault := misfit(tensors[name], wanted[name])):
            yield f"misfit: {name} {fault}"


def _numbers(tensors: Tensors, without_place: Tensors) -> Iterator[str]:
    """NaN and infinite numbers, where `misfit` has not looked, and variances below zero, of which
    batch-norm would make NaN."""
    for name, tensor in without_place.items():
        if bad := int((~tensor.isfinite()).sum()):
            yield f"numbers: {name} holds {bad} that are NaN or infinite"
    for name, tensor in tensors.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            yield f"numbers: {name} holds negative variances"


def _oddities(tensors: Tensors, layers: tuple[Layer, ...], spec: ModelSpec | None) -> Iterator[str]:
    """What a reader should know and `fill` would accept."""
    if spec is None or spec.quantization is None:
        kinds = [dtype_name(tensor) for tensor in tensors.values()]
        for kind in sorted(set(kinds) - {"float32"}):
            yield f"type: {kinds.count(kind)} of {len(kinds)} tensors are {kind}"
    for layer in layers:
        if layer.zeros == layer.count:
            yield f"empty: every number of {layer.name} is zero"


def _twice(tensors: Tensors) -> Iterator[str]:
    """Weights that are, bit for bit, those of another layer; constant ones prove nothing."""
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.numel() or bool((tensor == tensor.flatten()[0]).all()):
            continue
        numbers = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        key = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(numbers.data).digest())
        if key in seen:
            yield f"twice: {seen[key]} and {name} hold the same numbers"
        seen.setdefault(key, name)


def _zeros(tensor: torch.Tensor, tolerance: float = 0.0) -> int:
    if not tolerance:
        return int((tensor == 0).sum())
    # As float64: the magnitude of the smallest int8 is no int8.
    size = tensor.abs() if tensor.is_complex() else tensor.double().abs()
    return int((size <= tolerance).sum())
