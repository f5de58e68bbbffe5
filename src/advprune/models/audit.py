"""Audit of a checkpoint: what its tensors are, how sparse, and whether they make up a network.

A benchmark of compressed networks is as good as its checkpoints: a tensor under a wrong name leaves
random weights in its place, and a sparsity that is only said may be another in the file. Here
tensors are compared with what the architecture needs, name by name, and zeros are counted. No
network is run; the rule for what fits is the one by which `checkpoint.fill` loads.
"""

import hashlib
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pydantic import ValidationError

from advprune.core.errors import UserError
from advprune.core.networks import LIBRARY, is_library
from advprune.models.checkpoint import build, canonical, is_stored, misfit, stored
from advprune.models.outside import Rename, dtype_name, renaming
from advprune.models.spec import BLOCKS, ModelSpec

Tensors = dict[str, torch.Tensor]
SCORES = "popup_scores"
KNOWN_SHARE = 0.5  # of an architecture's names; with fewer, a file is no such network at all
MASK_ENDS = ("_mask", ".mask")


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


@dataclass
class Plain:
    """Tensors under a network's names, masks applied; the faults met on the way, and notes."""

    tensors: Tensors
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
        others, or where without an architecture nobody knows which those are."""
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
    wanted = _wanted(spec, factory)
    found = plain(tensors, keep, naming(spec, tensors, wanted))
    if spec is None:
        source = "given" if given else "inferred"
        spec = inferred(found.tensors, said)
        wanted = _wanted(spec, factory)
    found.faults += _contradicted(spec, said)
    known = {name: found.tensors[name] for name in wanted if name in found.tensors}
    rest = {name: tensor for name, tensor in found.tensors.items() if name not in known}
    if spec is None or len(known) < KNOWN_SHARE * len(wanted):
        faults, spec = [_unknown(spec, len(known), len(wanted))], None
    else:
        faults = list(_against(wanted, found.tensors))
    ordered = known | rest
    every = [t for name, t in ordered.items() if name.rpartition(".")[2] in ("weight", "bias")]
    return Audit(
        spec,
        source if spec else "none",
        tuple(_layers(ordered, tolerance)),
        sum(_zeros(tensor, tolerance) for tensor in every),
        sum(tensor.numel() for tensor in every),
        (
            *found.faults,
            *faults,
            *_numbers(rest if spec else ordered),
            *_variances(ordered),
            *_twice(found.tensors),
        ),
        (*found.notes, *_oddities(ordered, spec, tolerance)),
    )


def naming(
    spec: ModelSpec | None, tensors: Mapping[str, torch.Tensor], wanted: Container[str]
) -> Rename:
    """From a file's names to those of a network of that spec, which are `wanted`."""
    return renaming(tensors, wanted) if spec and spec.outside else canonical


def outside_spec(given: Mapping[str, Any]) -> ModelSpec:
    """The spec of a network that is none of this library's, from what is given of it.

    That is its architecture, classes, channels and options, if it has some. UserError where one is
    missing or wrong.
    """
    if missing := [key for key in ("classes", "channels") if key not in given]:
        raise UserError(
            f"of {given['architecture']} nobody can tell {missing[0]} by its tensors; give --"
            f"{missing[0]}"
        )
    none = {"mean": (0.0,) * given["channels"], "std": (1.0,) * given["channels"]}
    try:
        return ModelSpec(**none, **given)
    except ValidationError as error:
        raise _refused(error) from error


def _refused(error: ValidationError) -> UserError:
    """What is wrong with what was given of a network."""
    fault = error.errors()[0]
    key, words = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    return UserError(f"{key}: {words} (got {fault['input']!r})" if key else words)


def plain(
    tensors: Mapping[str, torch.Tensor],
    keep: float | None = None,
    rename: Rename = canonical,
) -> Plain:
    """Names without wrappers' prefixes, by `rename`, and masks applied to their weights.

    Understood are `X_orig` with `X_mask` (torch.nn.utils.prune), `X` with `X_mask`, a layer's
    `weight` with its `mask`, and a `weight` with `popup_scores`, of which each layer keeps the
    share `keep`. Raises UserError where `keep` is outside (0, 1].
    """
    if keep is not None and not 0 < keep <= 1:
        raise UserError(f"the share of weights to keep lies in (0, 1] (got {keep})")
    origin: dict[str, str] = {}
    found = Plain({})
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
    _apply_scores(found, keep)
    _apply_masks(found)
    return found


def _apply_scores(found: Plain, keep: float | None) -> None:
    """Turn `popup_scores` into masks: of each layer, int((1 - keep) n) smallest |scores| go."""
    ends = f".{SCORES}"
    names = [name for name in found.tensors if name.endswith(ends)]
    if names and keep is None:
        found.faults.append(
            f"mask: {len(names)} tensors of {SCORES} rank the weights, but the file does not say "
            "how many are kept: give that share (--keep)"
        )
    for name in names:
        scores = found.tensors.pop(name)
        if keep is None:
            continue
        gone = int((1 - keep) * scores.numel())
        mask = torch.ones(scores.numel())
        mask[scores.flatten().abs().argsort(stable=True)[:gone]] = 0
        found.tensors[name.removesuffix(ends) + ".weight_mask"] = mask.view_as(scores)


def _apply_masks(found: Plain) -> None:
    """Multiply masks into their weights, and say what the weights are without."""
    applied, zeros, count = 0, 0, 0
    for name in [name for name in found.tensors if name.endswith(MASK_ENDS)]:
        mask = found.tensors.pop(name)
        stem = name.removesuffix("_mask") if name.endswith("_mask") else f"{name[:-5]}.weight"
        source = f"{stem}_orig" if f"{stem}_orig" in found.tensors else stem
        if source not in found.tensors:
            found.faults.append(f"mask: {name} has no weight beside it")
            continue
        weight = found.tensors.pop(source)
        if mask.shape != weight.shape or not bool(((mask == 0) | (mask == 1)).all()):
            found.faults.append(f"mask: {name} is not 0 or 1 for each number of {source}")
            found.tensors[stem] = weight
            continue
        applied, zeros, count = applied + 1, zeros + _zeros(weight), count + weight.numel()
        # Not a product: a NaN that is masked is gone, as it is where the weights are stored masked.
        found.tensors[stem] = torch.where(mask != 0, weight, torch.zeros_like(weight))
    if applied:
        share = f"{100 * zeros / max(count, 1):.2f} %"
        found.notes.append(f"{applied} masks were applied; without them {share} would be zeros")


def inferred(tensors: Tensors, given: Mapping[str, Any]) -> ModelSpec | None:
    """The architecture that fits the tensors' names and shapes best; None where none can.

    Width and channels are those of `conv1.weight`, classes those of the last linear layer, unless
    `given` says otherwise; normalization cannot be told from weights and is none. UserError where
    what is given describes no network.
    """
    stem = tensors.get("conv1.weight")
    linear = [t for name, t in tensors.items() if name.endswith("weight") and t.ndim == 2]
    sizes: dict[str, Any] = {}
    if stem is not None and stem.ndim == 4:
        sizes = {"width": stem.shape[0], "channels": stem.shape[1]}
    if linear:
        sizes["classes"] = tensors.get("linear.weight", linear[-1]).shape[0]
    sizes |= given
    architectures = [sizes.pop("architecture")] if "architecture" in sizes else list(BLOCKS)
    candidates = [_candidate(tensors, name, sizes, bool(given)) for name in architectures]
    return max((c for c in candidates if c), key=lambda c: _fit(c, tensors), default=None)


def _candidate(
    tensors: Tensors, architecture: str, sizes: Mapping[str, Any], strict: bool
) -> ModelSpec | None:
    """A network of that architecture with these sizes, and with the filters that blocks have."""
    if not {"width", "channels", "classes"} <= sizes.keys():
        return None
    none = {"mean": (0.0,) * sizes["channels"], "std": (1.0,) * sizes["channels"]}
    try:
        spec = ModelSpec(architecture=architecture, **sizes, **none)
    except ValidationError as error:
        if not strict:
            return None
        raise _refused(error) from error
    inner = _inner(tensors, spec)
    try:
        return ModelSpec(**spec.model_dump() | {"inner": inner}) if inner else spec
    except ValidationError:
        return spec


def _inner(tensors: Tensors, spec: ModelSpec) -> tuple[int, ...]:
    """The filters of the first convolution of each block; empty where none is missing."""
    places = [
        f"layer{stage + 1}.{place}.conv1.weight"
        for stage, count in enumerate(BLOCKS[spec.architecture])
        for place in range(count)
    ]
    widths = spec.blocks
    found = tuple(
        int(tensors[name].shape[0]) if name in tensors and tensors[name].ndim == 4 else width
        for name, width in zip(places, widths, strict=True)
    )
    return () if found == widths else found


def _fit(spec: ModelSpec, tensors: Tensors) -> tuple[int, int]:
    """How many tensors have a place of their shape, and (less is better) how many have none."""
    wanted = _wanted(spec)
    shared = [name for name in wanted if name in tensors]
    right = sum(tensors[name].shape == wanted[name].shape for name in shared)
    return right, -(len(wanted) + len(tensors) - 2 * len(shared))


def _wanted(spec: ModelSpec | None, factory: str | None = None) -> Tensors:
    """What a network of that spec holds: names, shapes and types, of this library's networks
    without memory for numbers."""
    if spec is None:
        return {}
    if spec.outside:  # its code may need real numbers
        return stored(build(spec, factory))
    with torch.device("meta"):
        return stored(build(spec))


def _unknown(spec: ModelSpec | None, known: int, wanted: int) -> str:
    if spec is None:
        return "architecture: no convolution conv1 and linear layer to tell the architecture by"
    return (
        f"architecture: none fits; the nearest, {spec.described}, finds "
        f"{known} of its {wanted} tensors"
    )


def _contradicted(spec: ModelSpec | None, given: Mapping[str, Any]) -> Iterator[str]:
    """Where a header says something else than was given: it may hold layers without tensors."""
    for key, value in given.items():
        if spec is not None and (told := getattr(spec, key)) != value:
            yield f"header: {key} is {told}, and not {value}"


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


def _numbers(tensors: Tensors) -> Iterator[str]:
    """NaN and infinite numbers, in tensors that have no place to be compared with."""
    for name, tensor in tensors.items():
        bad = int((~tensor.isfinite()).sum())
        if bad:
            yield f"numbers: {name} holds {bad} that are NaN or infinite"


def _variances(tensors: Tensors) -> Iterator[str]:
    """Variances below zero, of which batch-norm would make NaN."""
    for name, tensor in tensors.items():
        if name.endswith("running_var") and bool((tensor < 0).any()):
            yield f"numbers: {name} holds negative variances"


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


def _layers(tensors: Tensors, tolerance: float) -> Iterator[Layer]:
    for name, tensor in tensors.items():
        if name.rpartition(".")[2] == "weight" and tensor.ndim >= 2:
            zeros = _zeros(tensor, tolerance)
            yield Layer(name, tuple(tensor.shape), dtype_name(tensor), zeros, tensor.numel())


def _zeros(tensor: torch.Tensor, tolerance: float = 0.0) -> int:
    if not tolerance:
        return int((tensor == 0).sum())
    # As float64: the magnitude of the smallest int8 is no int8.
    size = tensor.abs() if tensor.is_complex() else tensor.double().abs()
    return int((size <= tolerance).sum())


def _oddities(tensors: Tensors, spec: ModelSpec | None, tolerance: float) -> Iterator[str]:
    """What a reader should know and `fill` would accept."""
    if spec is None or spec.quantization is None:
        kinds = [dtype_name(tensor) for tensor in tensors.values()]
        for kind in sorted(set(kinds) - {"float32"}):
            yield f"type: {kinds.count(kind)} of {len(kinds)} tensors are {kind}"
    for layer in _layers(tensors, tolerance):
        if layer.zeros == layer.count:
            yield f"empty: every number of {layer.name} is zero"
