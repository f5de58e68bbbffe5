"""Copies of any nn.Module, with plain weights: torch re-parametrizes weights by hooks (its pruning,
weight and spectral norm) and by parametrizations."""

import copy
from typing import Any

import torch
import torch.nn.utils.prune as torch_prune
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from advprune.core.errors import InputError, first_line

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_plain(model: nn.Module) -> bool:
    """Whether a model is in evaluation mode, all of it, and none of its weights re-parametrized."""
    return not any(
        part.training or parametrize.is_parametrized(part) or _old_hooks(part)
        for part in model.modules()
    )


def _old_hooks(module: nn.Module) -> list[Any]:
    """The hooks of a module that re-parametrize a weight."""
    kinds = torch_prune.BasePruningMethod, WeightNorm, SpectralNorm
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, with the weights that re-parametrizations give in their place.
    InputError where a model cannot be copied."""
    derived = {  # that a re-parametrization computed and left as attributes, which no copy may hold
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        copied = copy.deepcopy(model, derived).eval()
    except Exception as error:  # of locks, open files and others of the user's attributes
        raise InputError(f"the model cannot be copied: {first_line(error)}") from error
    for module in list(copied.modules()):
        for hook in _old_hooks(module):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            else:
                torch_prune.remove(module, hook._tensor_name)
        if parametrize.is_parametrized(module):
            # Not by torch's own removal: it changes the class, which the caller's model has too.
            names = list(module.parametrizations)  # type: ignore[arg-type]
            weights = {name: getattr(module, name).detach().clone() for name in names}
            module.__class__ = parametrize.type_before_parametrizations(module)
            del module.parametrizations
            for name, weight in weights.items():
                module.register_parameter(name, nn.Parameter(weight))
    return copied


def hooked(model: nn.Module) -> list[str]:
    """The names of modules with hooks, or with another `forward` than that of their class."""
    return [
        name or "the model"
        for name, part in model.named_modules()
        if "forward" in vars(part) or any(getattr(part, hooks, None) for hooks in HOOKS)
    ]


def unshared(model: nn.Module) -> nn.Module:
    """The model, in place, with a module of its own behind every name, where modules that hold no
    tensors had several: a layer behind an activation would stand behind the first alone."""
    seen: set[int] = set()
    for name, part in list(model.named_modules(remove_duplicate=False))[1:]:  # the model is first
        again = id(part) in seen and model.get_submodule(name) is part
        if again and not (part.state_dict() or list(part.buffers())):
            model.set_submodule(name, copy.deepcopy(part))
        seen.add(id(part))
    return model
