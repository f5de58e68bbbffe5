"""Which network a checkpoint without a header is, by options and by names and shapes."""

from collections.abc import Container, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pydantic import ValidationError

from advprune.core.errors import UserError
from advprune.models.checkpoint import build, canonical, is_stored
from advprune.models.outside import Rename, renaming
from advprune.models.spec import BLOCKS, ModelSpec

Tensors = dict[str, torch.Tensor]


def naming(
    spec: ModelSpec | None, tensors: Mapping[str, torch.Tensor], wanted: Container[str]
) -> Rename:
    """From a file's names to those of a network of that spec, which are `wanted`."""
    return renaming(tensors, wanted) if spec and spec.outside else canonical


def wanted_of(spec: ModelSpec | None, factory: str | None = None) -> Tensors:
    """What a checkpoint of a network of that spec holds: parameters as such, and buffers; of this
    library's networks without memory for numbers, which the code of others may need."""
    if spec is None:
        return {}
    with nullcontext() if spec.outside else torch.device("meta"):
        held = build(spec, factory).state_dict(keep_vars=True)
    return {name: tensor for name, tensor in held.items() if is_stored(name)}


def outside_spec(given: Mapping[str, Any]) -> ModelSpec:
    """The spec of a network that is none of this library's, from what is given of it.

    That is its architecture, classes, channels and options, if it has some. UserError where one is
    missing or wrong.
    """
    if missing := [key for key in ("classes", "channels") if key not in given]:
        raise UserError(
            f"the {missing[0]} of {given['architecture']} cannot be inferred; give --{missing[0]}"
        )
    return _spec(dict(given))


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
    if not {"width", "channels", "classes"} <= sizes.keys():
        return None
    candidates = []
    for architecture in [sizes["architecture"]] if "architecture" in sizes else list(BLOCKS):
        try:
            spec = _spec(sizes | {"architecture": architecture})
        except UserError:
            if given:
                raise
        else:
            candidates.append(_with_inner(tensors, spec))

    def fit(spec: ModelSpec) -> tuple[int, int]:
        """How many tensors have a place of their shape, and (less is better) how many have none."""
        wanted = wanted_of(spec)
        shared = wanted.keys() & tensors.keys()
        right = sum(tensors[name].shape == wanted[name].shape for name in shared)
        return right, -len(wanted.keys() ^ tensors.keys())

    return max(candidates, key=fit, default=None)


def _spec(sizes: Mapping[str, Any]) -> ModelSpec:
    """A network of these sizes that does not normalize; UserError where there is none."""
    channels = sizes["channels"]
    try:
        return ModelSpec(mean=(0.0,) * channels, std=(1.0,) * channels, **sizes)
    except ValidationError as error:
        fault = error.errors()[0]
        key, words = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
        text = f"{key}: {words} (got {fault['input']!r})" if key else words
        raise UserError(text) from error


def _with_inner(tensors: Tensors, spec: ModelSpec) -> ModelSpec:
    """The spec with the filters that the first convolution of each block has, if some are gone."""
    places = (
        f"layer{stage + 1}.{place}.conv1.weight"
        for stage, count in enumerate(BLOCKS[spec.architecture])
        for place in range(count)
    )
    inner = tuple(
        int(tensors[name].shape[0]) if name in tensors and tensors[name].ndim == 4 else width
        for name, width in zip(places, spec.blocks, strict=True)
    )
    if inner == spec.blocks:
        return spec
    try:
        return ModelSpec(**spec.model_dump() | {"inner": inner})
    except ValidationError:
        return spec
