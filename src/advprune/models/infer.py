"""Which network a checkpoint without a header holds: the one given, or what its tensors show."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from advprune.core.errors import UserError
from advprune.core.networks import BLOCKS, is_factory
from advprune.core.settings import parse
from advprune.models.checkpoint import build, is_stored
from advprune.models.foreign import Tensors
from advprune.models.spec import ModelSpec


def wanted_of(spec: ModelSpec | None, factory: str | None = None) -> Tensors:
    """What a checkpoint of a network of that spec holds: parameters as such, and buffers; of this
    library's networks without memory for numbers, which the code of others may need."""
    if spec is None:
        return {}
    with nullcontext() if spec.outside else torch.device("meta"):
        held = build(spec, factory).state_dict(keep_vars=True)
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
