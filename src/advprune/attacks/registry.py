"""The interface of attacks: a registry, typed settings, and the context of a run."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache

from torch import Tensor, nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import Progress, no_progress
from advprune.core.attack_settings import KINDS, Attack, SuiteSettings
from advprune.core.errors import UserError
from advprune.core.profile import Profile
from advprune.core.resume import Parts
from advprune.core.settings import parse

Function = Callable[..., Tensor]  # (model, images, labels, setting, context) -> images


@dataclass(frozen=True)
class Context:
    """How an attack is run, whichever it is: seed, batch size, and where it tells of its work.

    cost: counts what passes through the model. parts: where a long attack keeps what it finished.
    breakdown: an attack made of several notes how many images are right after each. found: what a
    method notes of each image, `[N]`, by column of the records. parent: what the model was made
    from. pixels: the images will be rounded to 8 bits, as clean ones are. start: images to begin
    from, of an attack that can.
    """

    seed: int = 0
    batch: int = 128
    cost: Cost = field(default_factory=Cost)
    progress: Progress = no_progress
    parts: Parts | None = None
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
    whether it notes one of each image. starts: whether it can begin from given images.
    """

    settings: type[Attack]
    function: Function
    gradients: bool | Collection[str]
    searches: Collection[str]
    distances: bool
    starts: bool

    @property
    def differentiates(self) -> bool:
        """Whether it takes gradients of the model."""
        return bool(self.gradients)


_REGISTRY: dict[str, Method] = {}


def method(
    name: str,
    settings: type[Attack],
    *,
    gradients: bool | Collection[str] = True,
    searches: Collection[str] = (),
    distances: bool = False,
    starts: bool = False,
) -> Callable[[Function], Function]:
    """Register an attack under its `method` in params.yaml; the other arguments: see `Method`.

    Its function returns float images in [0, 1]; what uses it rounds them to 8 bits in the budget.
    """

    def register(function: Function) -> Function:
        _REGISTRY[name] = Method(settings, function, gradients, searches, distances, starts)
        return function

    return register


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
    for name in found:
        check_order(name, found, profile.suite)
    return found


def check_order(name: str, attacks: Mapping[str, Attack], suite: SuiteSettings) -> None:
    """UserError where an attack cannot come `after` another, or not work `within` what that has
    found, in a suite that has it."""
    attack, place = attacks[name], f"attacks.{name}"
    after, within = attack.after, attack.within
    if after is None:
        if within is not None:
            raise UserError(f"{place}.within: name the search for distances as well (after)")
        return
    if after not in attacks:
        known = ", ".join(attacks)
        raise UserError(f"{place}.after: {after!r} is not among the attacks ({known})")
    first, begins = attacks[after], within is not None
    suites = {kind: own for kind in KINDS if name in (own := suite.of(kind))}
    is_run = not suites or any(after in own for own in suites.values())
    where = " or ".join(f"suite.{kind}" for kind in suites)
    able = ", ".join(key for key, one in sorted(_REGISTRY.items()) if one.starts)
    wrong = {
        "after: this is the attack itself; leave after out": after == name,
        f"after: {attack.method} finds a distance for every image; leave after out": (
            method_of(attack).distances
        ),
        f"after: {after} has another budget": (first.norm, first.eps) != (attack.norm, attack.eps),
        f"after: {after} has only some images; leave after out": (
            getattr(first, "images", None) is not None
        ),
        "after: table and transfer take every image; leave after out": name in suite.kept,
        f"after: {after} is not run there; add it to {where}": not is_run,
        "within: what lies within the budget is broken; give more": (
            within is not None and within <= attack.eps
        ),
        f"within: {after} finds no distances; leave within out": (
            begins and not method_of(first).distances
        ),
        f"within: of method {able} alone; leave within out": (
            begins and not method_of(attack).starts
        ),
    }
    for why, holds in wrong.items():
        if holds:
            raise UserError(f"{place}.{why}")
    for kind, own in suites.items():
        if after in own[own.index(name) :] or (begins and after not in own):
            raise UserError(f"suite.{kind}: name {after} before {name}")
        if begins and kind == "randomized":
            raise UserError(f"suite.{kind}: random models are attacked whole; take {name} out")
