"""The interface of a family: a registry, typed settings, and what pruning returns."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of, salted
from advprune.core.errors import UserError
from advprune.core.settings import Settings, parse
from advprune.models.border import check_images, compressible
from advprune.models.insert import inserted, missed_activations, places
from advprune.models.stochastic import undisturbed
from advprune.training.inputs import Data, Pair


@dataclass(frozen=True)
class Pruned:
    """A compressed model and what was done to it."""

    model: nn.Module  # may be physically smaller than the dense one
    # By parameter of the dense model, True where a number was changed (E, S, R) or removed (masks).
    changed: dict[str, torch.Tensor]
    notes: dict[str, Any] = field(default_factory=dict)  # a family's own facts

    @property
    def ratio(self) -> float:
        """Prune ratio: changed parameters over all parameters of the dense model, in [0, 1]."""
        total = sum(changed.numel() for changed in self.changed.values())
        return sum(int(c.sum()) for c in self.changed.values()) / max(total, 1)


Family = Callable[..., Pruned]  # (model, setting, data, **fixed)
_REGISTRY: dict[str, tuple[type[Settings], Family]] = {}


def family(name: str, setting: type[Settings], **fixed: Any) -> Callable[[Family], Family]:
    """Register a family under its key in params.yaml; `fixed`: what else it is called with. A bare
    number there is the first field of `setting`, where no other has to be given."""

    def register(function: Family) -> Family:
        _REGISTRY[name] = setting, update_wrapper(partial(function, **fixed), function)
        return function

    return register


def families() -> dict[str, tuple[type[Settings], Family]]:
    """By key, each family's class of settings and its function, in the order of registration."""
    return dict(_REGISTRY)


def setting_of(name: str, value: Any, place: str = "") -> Any:
    """Check a family's setting; UserError names the key (`place`), the value and the range."""
    place = place or f"prune.{name}"
    if not isinstance(name, str) or name not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UserError(f"{place}: there is no family {name!r}; known: {known}")
    kind = _REGISTRY[name][0]
    if isinstance(value, kind):
        return value
    if not isinstance(value, dict):
        first, *others = kind.model_fields
        if any(kind.model_fields[other].is_required() for other in others):
            raise UserError(f"{place}: write a mapping of settings (got {value!r})")
        value = {first: value}
    return parse(kind, value, where=place)


def chosen(key: str, value: Any) -> tuple[str, Any]:
    """Family and setting of an entry of `prune`: the key is the family unless `family:` says."""
    if isinstance(value, dict) and "family" in value:
        return value["family"], {name: one for name, one in value.items() if name != "family"}
    return key, value


def prune(
    name: str, model: nn.Module, setting: Any, data: Data | Pair | None = None, seed: int = 0
) -> Pruned:
    """Apply the family `name` to a copy of `model`; the model itself stays as it was.

    setting: a number or mapping as in params.yaml, or the family's setting object. data: training
    images `[N, C, H, W]` in [0, 1] and labels, for families that learn; a `Data` says as well how
    to train. Families that put layers in note at how many places, as `sites`. UserError for an
    unknown family, a wrong setting, missing data and a model that is not `compressible`.
    """
    checked, salt = setting_of(name, setting), salted(seed, "prune", name)
    if isinstance(data, tuple) and len(data) == 2:
        data = Data(*data)
    if not isinstance(data, Data | None):
        raise UserError(f"{name}: data is a tuple of images and labels, or a Data")
    given = data or Data(torch.zeros(0), torch.zeros(0))
    given = replace(given, seed=seed, generator=torch.Generator().manual_seed(salt))
    images = data.images if data else None
    try:
        if data:
            check_images("training data", data.images, data.labels)
        with undisturbed(device_of(model), salt):
            mine = compressible("model", model, images)
            before = inserted(mine)
            found = _REGISTRY[name][1](mine, checked, given)
            added = inserted(found.model) - before
            first = None if images is None else images[:1]
            if added["relu"] and (missed := missed_activations(found.model, first)):
                count = len(places(found.model, "relu"))
                raise UserError(
                    f"it would act at {count} of {count + len(missed)} activations: {missed[0]}; "
                    "make it a module of torch's, such as nn.ReLU, or derive its class from one"
                )
    except (UserError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error
    return replace(found, notes=found.notes | ({"sites": added.total()} if added else {}))


def unchanged(model: nn.Module) -> Pruned:
    """A model whose parameters are all the dense network's own: layers were put in, no more."""
    names = model.named_parameters()
    return Pruned(model, {name: torch.zeros_like(p, dtype=torch.bool) for name, p in names})


def require(data: Data) -> Data:
    """The data; UserError where there are no training images, which a family needs."""
    if not len(data.images):
        raise UserError("this family learns from training images; pass data=(images, labels)")
    return data
