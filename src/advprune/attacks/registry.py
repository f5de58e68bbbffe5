"""The seam that every attack of a suite fits: a registry, typed settings, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import Progress, no_progress
from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError
from advprune.core.profile import Profile
from advprune.core.resume import Parts
from advprune.core.settings import parse

Function = Callable[..., torch.Tensor]  # (model, images, labels, setting, context) -> images


@dataclass(frozen=True)
class Context:
    """How an attack is run, whichever it is: seed, batch size, and where it tells of its work.

    cost: counts what passes through the model. parts: where a long attack keeps what it finished.
    breakdown: an attack made of several notes here how many images are right after each.
    found: what a method notes of each image, `[N]`, by the name of its column in records.
    parent: what the model was made from, where it is known. pixels: the images will be rounded to 8
    bits, as clean ones are.
    """

    seed: int = 0
    batch: int = 128
    cost: Cost = field(default_factory=Cost)
    progress: Progress = no_progress
    parts: Parts | None = None
    breakdown: dict[str, int] = field(default_factory=dict)
    found: dict[str, torch.Tensor] = field(default_factory=dict)
    parent: nn.Module | None = None
    pixels: bool = False


@dataclass(frozen=True)
class Method:
    """An attack: its class of settings, its function, and whether it follows gradients."""

    settings: type[Attack]
    function: Function
    differentiates: bool


_REGISTRY: dict[str, Method] = {}


def method(
    name: str, settings: type[Attack], differentiates: bool = True
) -> Callable[[Function], Function]:
    """Register an attack under its `method` in params.yaml.

    Its function returns float images in [0, 1]; what uses it rounds them to 8 bits in the budget.
    differentiates: whether it follows the model's gradients.
    """

    def register(function: Function) -> Function:
        _REGISTRY[name] = Method(settings, function, differentiates)
        return function

    return register


def method_of(setting: Attack, place: str = "attack") -> Method:
    """The registered attack of a setting; UserError where there is none."""
    if setting.method not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UserError(f"{place}.method: there is no attack {setting.method!r}; known: {known}")
    return _REGISTRY[setting.method]


def differentiates(name: str) -> bool:
    """Whether the attack of that method follows a gradient; False where there is none."""
    return name in _REGISTRY and _REGISTRY[name].differentiates


def typed(name: str, setting: Attack) -> Attack:
    """The setting of `attacks.<name>`, as read or typed, by its attack's own class of settings.

    UserError names the key, the value and the range.
    """
    place = f"attacks.{name}"
    kind = method_of(setting, place).settings
    if isinstance(setting, kind):
        return setting
    return parse(kind, setting.model_dump(exclude_unset=True), place)


def attacks_of(profile: Profile) -> dict[str, Attack]:
    """All attacks of a profile by name, typed: wrong settings are refused here."""
    return {name: typed(name, setting) for name, setting in profile.attacks.items()}
