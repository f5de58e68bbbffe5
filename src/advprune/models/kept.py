"""What the modules of a model keep, which a pass could change, and a module of its own behind every
name (for models/border.py)."""

import copy
from typing import Any

import torch
from torch import nn


def kept_by(model: nn.Module) -> dict[str, tuple[Any, int]]:
    """What the modules of a model keep, by name: numbers, texts, lengths of lists, and tensors with
    how often they were written to."""
    found: dict[str, tuple[Any, int]] = {}
    for name, part in model.named_modules():
        for key, value in (vars(part) | part._buffers | part._parameters).items():
            place = f"{name}.{key}".lstrip(".")
            if isinstance(value, torch.Tensor):
                found[place] = value, 0 if value.is_inference() else value._version
            elif isinstance(value, int | float | str):
                found[place] = value, 0
            elif isinstance(value, list | dict) and not key.startswith("_"):
                found[place] = None, len(value)
    return found


def differ(one: tuple[Any, int] | None, other: tuple[Any, int]) -> bool:
    """Whether two states of what a module keeps differ; the same numbers anew do not."""
    if one is None or one[0] is other[0]:
        return one is None or one[1] != other[1]
    tensors = torch.is_tensor(one[0]) and torch.is_tensor(other[0])
    return not torch.equal(one[0], other[0]) if tensors else one != other


def unshared(model: nn.Module) -> nn.Module:
    """The model, in place, with a module of its own behind every name, where modules that hold no
    tensors had several: else a layer behind an activation would stand behind the first alone."""
    seen: set[int] = set()
    for name, part in list(model.named_modules(remove_duplicate=False))[1:]:  # the model is first
        again = id(part) in seen and model.get_submodule(name) is part
        if again and not (part.state_dict() or list(part.buffers())):
            model.set_submodule(name, copy.deepcopy(part))
        seen.add(id(part))
    return model
