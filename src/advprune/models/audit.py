"""Audit of a checkpoint: what its tensors are, how sparse, and which network they make up, if any.
What fits is what `checkpoint.fill` loads; no network is run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.networks import LIBRARY, is_factory, is_library
from advprune.core.settings import parse
from advprune.models.checkpoint import build, is_stored, misfits
from advprune.models.foreign import TRANSPOSED, WEIGHTED, dtype_name
from advprune.models.quantized import QuantizedLayer
from advprune.models.spec import ModelSpec
from advprune.models.weights import Tensors, plain

KNOWN_SHARE = 0.5  # of an architecture's names; with fewer, a file is no such network at all


@dataclass(frozen=True)
class Layer:
    """A weight or a bias, and how many of its numbers are zero."""

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

    spec: the architecture that the tensors were compared with; None where none fits. source:
    header, given or inferred. layers: the prunable weights, in the network's order. tensors: under
    the network's names, masks applied. zeros, count: of all parameters. faults: one line each; a
    network with a fault is not to be evaluated. notes: what is odd and yet no fault.
    """

    spec: ModelSpec | None
    source: str
    layers: tuple[Layer, ...]
    tensors: Tensors = field(repr=False)
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
        return _sums(self.layers)

    @property
    def prunable_sparsity(self) -> float:
        """Zeros over all weights of convolutions and linear layers, in [0, 1]."""
        return self.prunable[0] / max(self.prunable[1], 1)

    @property
    def sparsity(self) -> float:
        """Zeros over all weights and biases, in [0, 1]."""
        return self.zeros / max(self.count, 1)

    @property
    def remaining(self) -> float | None:
        """Sparsity of the prunable weights without first and last layer; None where there are no
        others, or where without an architecture these are unknown."""
        zeros, count = _sums(self.layers[1:-1] if self.spec else ())
        return zeros / count if count else None


def _sums(layers: Sequence[Layer]) -> tuple[int, int]:
    return sum(layer.zeros for layer in layers), sum(layer.count for layer in layers)


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
    given fixed. tolerance: numbers of at most this magnitude count as zeros. keep: as in
    `weights.plain`. factory: as in `checkpoint.build`. UserError where `given`, tolerance or keep
    are out of range, and where the network cannot be made.
    """
    if not 0 <= tolerance < inf:
        raise UserError(f"the tolerance of zeros is a number of at least 0 (got {tolerance})")
    said = given or {}
    source = "header" if spec else "given" if said else "inferred"
    if spec is None and not is_library(str(said.get("architecture", LIBRARY[0]))):
        spec = foreign_spec(said, tensors)
    network = network_of(spec, factory)
    found = plain(tensors, keep, spec, wanted_of(network))
    if spec is None:
        spec = inferred(found.tensors, said)
        network = network_of(spec, factory)
    wanted = wanted_of(network)
    known = {name: found.tensors[name] for name in wanted if name in found.tensors}
    ordered = known | found.tensors
    faults = found.faults
    if spec is None:
        faults.append(
            "architecture: no convolution conv1 and linear layer to tell the architecture by"
        )
    for key, value in said.items() if spec else ():  # a header may declare layers without tensors
        if (told := getattr(spec, key)) != value:
            faults.append(f"header: {key} is {told}, and not {value}")
    if spec and len(known) < KNOWN_SHARE * len(wanted):
        faults.append(
            f"architecture: none fits; the nearest, {spec.described}, finds "
            f"{len(known)} of its {len(wanted)} tensors"
        )
        spec = None
    faults += _faults(ordered, wanted, spec is not None)
    counted = list(_counted(ordered, wanted, tolerance))
    if spec and network:
        prunable = (*WEIGHTED, *TRANSPOSED, QuantizedLayer)
        mapping = {f"{n}.weight" for n, m in network.named_modules() if isinstance(m, prunable)}
    else:
        mapping = {x.name for x in counted if _ending(x.name) == "weight" and len(x.shape) > 1}
    layers = tuple(x for x in counted if x.name in mapping)
    notes = [*found.notes, *_notes(ordered, spec, source)]
    source = source if spec else "none"
    return Audit(spec, source, layers, found.tensors, *_sums(counted), tuple(faults), tuple(notes))


def _notes(tensors: Tensors, spec: ModelSpec | None, source: str) -> Iterator[str]:
    """What a reader should know and `fill` would accept."""
    kinds = [dtype_name(tensor) for tensor in tensors.values()]
    for kind in sorted(set(kinds) - {"float32"}):
        if spec is None or spec.quantization is None:
            yield f"type: {kinds.count(kind)} of {len(kinds)} tensors are {kind}"
    if spec and source == "inferred":
        yield (
            f"inferred: names and shapes fit {spec.architecture}, which has no max-pooling; they "
            "do not show pooling, strides or activations"
        )


def _counted(tensors: Tensors, wanted: Tensors, tolerance: float) -> Iterator[Layer]:
    """What is learned, and what is named like that, with its zeros."""
    for name, tensor in tensors.items():
        if isinstance(wanted.get(name), nn.Parameter) or _ending(name) in ("weight", "bias"):
            # As float64: the magnitude of the smallest int8 is no int8.
            sizes = (tensor if tensor.is_complex() else tensor.double()).abs()
            shape, zeros = tuple(tensor.shape), int((sizes <= tolerance).sum())
            yield Layer(name, shape, dtype_name(tensor), zeros, tensor.numel())


def _ending(name: str) -> str:
    return name.rpartition(".")[2]


def _faults(tensors: Tensors, wanted: Tensors, fits: bool) -> Iterator[str]:
    """What is missing, left over or does not fit its place, where the tensors are to fit; numbers
    that are none; variances of which batch-norm would make NaN."""
    if fits:
        yield from misfits(tensors, wanted)
    for name, tensor in tensors.items():
        looked_at = fits and name in wanted  # by `misfits`
        if not looked_at and (bad := int((~tensor.isfinite()).sum())):
            yield f"numbers: {name} holds {bad} that are NaN or infinite"
        is_variance = name.endswith("running_var") and tensor.is_floating_point()
        if is_variance and bool((tensor < 0).any()):
            yield f"numbers: {name} holds negative variances"


def network_of(spec: ModelSpec | None, factory: str | None = None) -> nn.Module | None:
    """The network of a spec; of this library's without memory for numbers."""
    if spec is None:
        return None
    with nullcontext() if spec.is_foreign else torch.device("meta"):
        return build(spec, factory)


def wanted_of(network: nn.Module | None) -> Tensors:
    """What a checkpoint of a network holds: parameters as such, and buffers."""
    held = network.state_dict(keep_vars=True) if network else {}
    return {name: tensor for name, tensor in held.items() if is_stored(name)}


def shown(architecture: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """What the weights of a network that is not of the user's code show of it: the first
    convolution its channels, the last linear layer its classes."""
    if is_factory(architecture):
        return {}
    weights = [tensor for name, tensor in tensors.items() if name.endswith("weight")]
    stems = [tensor.shape[1] for tensor in weights if tensor.ndim == 4]
    heads = [tensor.shape[0] for tensor in weights if tensor.ndim == 2]
    found = ("channels", stems[:1]), ("classes", heads[-1:])
    return {key: sizes[0] for key, sizes in found if sizes}


def foreign_spec(given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ModelSpec:
    """The spec of a foreign network, from what is given of it (architecture, classes, channels,
    options) or `shown` by its tensors. UserError where one is missing or wrong."""
    given = shown(given["architecture"], tensors) | dict(given)
    if missing := [key for key in ("classes", "channels") if key not in given]:
        raise UserError(
            f"the {missing[0]} of {given['architecture']} cannot be inferred; give --{missing[0]}"
        )
    return _spec(given)


def inferred(tensors: Tensors, given: Mapping[str, Any]) -> ModelSpec | None:
    """The network of this library that the tensors' names and shapes fit best, with what is
    `given`; None where there is none. A fourth stage makes it a ResNet18; normalization cannot be
    told from weights. UserError where what is given describes no network."""
    architecture = "resnet18" if any(n.startswith("layer4.") for n in tensors) else "resnet20"
    sizes: dict[str, Any] = {"architecture": architecture, **shown(architecture, tensors)}
    if (stem := tensors.get("conv1.weight")) is not None and stem.ndim == 4:
        sizes |= {"width": stem.shape[0], "channels": stem.shape[1]}
    sizes |= given
    if not {"width", "channels", "classes"} <= sizes.keys():
        return None
    try:
        spec = _spec(sizes)
    except UserError:
        if given:
            raise
        return None
    # Behind the stem, the first convolution of each block, some of whose filters may be gone.
    firsts = [name for name in wanted_of(network_of(spec)) if name.endswith("conv1.weight")][1:]
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
