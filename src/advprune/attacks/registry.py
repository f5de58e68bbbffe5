"""The interface of attacks: a registry, typed settings, and the context of a run.

An attack is one function of a model, images `[N, C, H, W]` in [0, 1], labels `[N]`, its setting and
a `Context`. It returns images of the same shape in [0, 1].
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import Progress, no_progress
from advprune.core.attack_settings import KINDS, Attack, AttackSettings, SuiteSettings
from advprune.core.errors import InputError, UserError
from advprune.core.profile import Profile
from advprune.core.settings import Settings, parse

T = TypeVar("T", bound=Settings)
Function = Callable[..., Any]  # (model, images, labels, setting, context) -> images


@dataclass(frozen=True)
class Context:
    """How an attack is run, whichever it is: seed, batch size, and where it tells of its work.

    generator: a CPU generator instead of one from `seed`. batch: images per pass; a sample's start
    does not depend on it. cost: counts what passes through the model. progress: called with
    image-steps done. breakdown: an attack made of several notes how many images are right after
    each. found: what a method notes of each image, `[N]`, by column of the records. parent: what
    the model was made from, for `backward: parent`. pixels: the images will be rounded to 8 bits,
    as clean ones are, and only what fools after that is fooled. start: images to begin from, of an
    attack that can.
    """

    seed: int = 0
    generator: torch.Generator | None = None
    batch: int = 128
    cost: Cost = field(default_factory=Cost)
    progress: Progress = no_progress
    breakdown: dict[str, int] = field(default_factory=dict)
    found: dict[str, Tensor] = field(default_factory=dict)
    parent: nn.Module | None = None
    pixels: bool = False
    start: Tensor | None = None


@dataclass(frozen=True)
class Method:
    """An attack: its class of settings, its function, and what can be said of all such attacks.

    gradients: whether it follows the model's; of a package of attacks, the classes that do.
    searches: those of its parts (keys of its breakdown) that ask for answers alone. distances:
    whether it finds one of each image, which is noted in `Context.found`; its images are then
    stretched to the budget. starts: whether it can begin from given images.
    """

    settings: type[Attack]
    function: Function
    gradients: bool | Collection[str] = True
    searches: Collection[str] = ()
    distances: bool = False
    starts: bool = False


_REGISTRY: dict[str, Method] = {}


def method(name: str, settings: type[Attack], **known: Any) -> Callable[[Function], Function]:
    """Register an attack under its `method` in params.yaml; known: more fields of `Method`.

    The function of one with distances returns images and distances `[N]`, not images alone.
    """

    def register(function: Function) -> Function:
        def within_budget(
            model: nn.Module, images: Tensor, labels: Tensor, s: Attack, how: Context
        ) -> Tensor:
            found, how.found["distance"] = function(model, images, labels, s, how)
            return stretched(found, images, how.found["distance"], s.eps)

        run = within_budget if known.get("distances") else function
        _REGISTRY[name] = Method(settings, run, **known)
        return function

    return register


def stretched(found: Tensor, clean: Tensor, distances: Tensor, eps: float) -> Tensor:
    """Images at the edge of the budget, in the direction found: a smaller change stretched, so that
    rounding does not undo it, a larger one shortened; the clean ones where nothing was found."""
    share = torch.where(distances.isfinite(), eps / distances.clamp_min(1e-12), 0.0)
    return (clean + share.view(-1, 1, 1, 1) * (found - clean)).clamp(0, 1)


def checked(kind: type[T], who: str, options: dict[str, Any]) -> T:
    """Options as settings of that kind; InputError in one line for one that is unknown or wrong."""
    try:
        return parse(kind, options, who)
    except UserError as error:
        raise InputError(error) from error


def given(name: str, /, **options: Any) -> tuple[Attack, Context]:
    """The setting and the context of a method that options by their names make; see `checked`."""
    if name not in _REGISTRY:
        raise InputError(f"there is no attack {name!r}; known: {', '.join(sorted(_REGISTRY))}")
    run = {f.name: options.pop(f.name) for f in fields(Context) if f.name in options}
    return checked(_REGISTRY[name].settings, name, {"method": name, **options}), Context(**run)


def attack(
    name: str, /, model: nn.Module, images: Tensor, labels: Tensor, **options: Any
) -> Tensor:
    """The images `[N, C, H, W]` in [0, 1] that a method finds by its name (`apgd`, `square`, …).

    options: of its settings (`eps`, `steps`, …) and of `Context`. InputError, a ValueError, on
    shapes, ranges or options that make no sense. A model that draws at random is attacked to the
    end: to leave a sample at its first misclassified draw would reward a lucky one.
    """
    setting, how = given(name, **options)
    found: Tensor = method_of(setting).function(model, images, labels, setting, how)
    return found


def method_of(setting: Attack, place: str = "attack") -> Method:
    """The registered attack of a setting; UserError where there is none."""
    if setting.method not in _REGISTRY:
        known = ", ".join(sorted(_REGISTRY))
        raise UserError(f"{place}.method: there is no attack {setting.method!r}; known: {known}")
    return _REGISTRY[setting.method]


@cache
def follows_gradient(recorded: str, breakdown: str = "") -> bool:
    """Whether an attack follows the model's gradient and nothing else, by its columns in records
    (method and breakdown); False of an unknown one."""
    name, _, kind = recorded.partition(".")
    if (known := _REGISTRY.get(name)) is None:
        return False
    follows = known.gradients if isinstance(known.gradients, bool) else kind in known.gradients
    parts = json.loads(breakdown or "{}")
    return follows and not (known.searches and (not parts or set(parts) & set(known.searches)))


@cache
def fooled_by_search(recorded: str, breakdown: str) -> int | None:
    """How many images the query-only parts of an attack broke, by its breakdown (how many images
    are right after each part); None of an attack that has no such parts."""
    known, left = _REGISTRY.get(recorded), json.loads(breakdown or "{}")
    if known is None or not known.searches:
        return None
    before = dict(zip(list(left)[1:], left.values(), strict=False))
    return sum(before[part] - left[part] for part in known.searches if part in before)


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
    """All attacks of a profile by name, typed. UserError where settings are wrong, or an attack
    cannot come `after` another, or not work `within` what that has found."""
    found = {name: typed(name, setting) for name, setting in profile.attacks.items()}
    for name, one in found.items():
        if isinstance(one, AttackSettings) and one.adam and one.norm != "Linf":
            raise UserError(f"attacks.{name}.adam: of Linf alone; leave it out")
        check_order(name, found, profile.suite)
    return found


def check_order(name: str, attacks: Mapping[str, Attack], suite: SuiteSettings) -> None:
    """UserError where an attack cannot come `after` another, or not work `within` what that has
    found, in a suite that has it."""
    attack, place = attacks[name], f"attacks.{name}"
    after, within = attack.after, attack.within
    if after is None and within is None:
        return
    first = attacks.get(after or "") if after != name else None
    suites = {kind: own for kind in KINDS if name in (own := suite.of(kind))}
    before = {kind: after in own[: own.index(name)] for kind, own in suites.items()}
    behind = any(after in own[own.index(name) :] for own in suites.values())
    where = " or ".join(f"suite.{kind}" for kind in suites)
    able = ", ".join(key for key, one in sorted(_REGISTRY.items()) if one.starts)
    rules = {
        f"after: name another attack ({', '.join(attacks)}) of the same budget on every image": (
            first is not None
            and (first.norm, first.eps) == (attack.norm, attack.eps)
            and getattr(first, "images", None) is None
        ),
        "after: searches for distances, table and transfer take every image; leave after out": (
            name not in suite.kept and not method_of(attack).distances
        ),
        f"after: name {after} before {name} in {where}": (
            not behind and (any(before.values()) or not suites)
        ),
        f"within: only of method {able}; leave within out": (
            within is None or method_of(attack).starts
        ),
        f"within: {after} finds no distances; leave within out": (
            within is None or (first is not None and method_of(first).distances)
        ),
        "within: what lies within the budget is broken; give more": (
            within is None or within > attack.eps
        ),
        f"within: take {name} out of suite.randomized": (
            within is None or "randomized" not in suites
        ),
        f"within: name {after} before {name} in {where}": within is None or all(before.values()),
    }
    for rule, holds in rules.items():
        if not holds:
            raise UserError(f"{place}.{rule}")
