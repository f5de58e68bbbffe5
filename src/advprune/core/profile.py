"""A profile: everything that depends on the data set, resolved to numbers."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from pydantic import Field, model_validator

from advprune.core.attack_settings import (
    AnyAttack,
    AttackSettings,
    CurveSettings,
    FlipSettings,
    ProtocolSettings,
    SuiteSettings,
)
from advprune.core.errors import UserError
from advprune.core.settings import (
    PATH,
    L2Budget,
    Name,
    Settings,
    parse,
    parse_fraction,
    relative,
    within_pixels,
)
from advprune.core.train_settings import DataSettings, ModelSettings, TrainSettings

SHARED = ("attacks", "suite", "curves", "protocol", "flips")  # said once for all profiles
LENGTHS = ("step", "sigma", "within")  # of an attack, relative to its own budget
LEVEL = 1 / 255  # of 8-bit images, in units of the pixel range
CURVES = ("curve_eps", "curve_steps")  # the names of the curves' rows among the records
# The names of the probes' rows, from which the verdict is drawn (evaluate/probes.py).
PROBES = (
    *("probe_gradient", "probe_honesty", "probe_noise", "probe_single", "probe_stronger"),
    *("probe_nes", "probe_student", "probe_frozen"),
)
FROZEN = PROBES[-1]  # of a randomized model with its draws fixed
RESERVED = (*CURVES, *PROBES)


class Profile(Settings):
    """Everything that depends on the data set and on the time one has, resolved to numbers.

    eps: what attacks, curves and training are written relative to. norm: of attacks that name none.
    sweep_images: how many test images, the first ones, sweeps and compression curves attack; null:
    all. note: printed on the page: machine and time.
    """

    data: DataSettings
    model: ModelSettings
    eps: L2Budget
    norm: Literal["Linf", "L2"] = "Linf"
    train: TrainSettings
    attacks: dict[Name, AnyAttack] = Field(min_length=1)
    suite: SuiteSettings
    curves: CurveSettings
    protocol: ProtocolSettings
    flips: FlipSettings = FlipSettings()
    sweep_images: int | None = Field(default=None, ge=1)
    batch: int = Field(default=128, ge=1)
    show_images: bool = True
    note: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _suites_name_attacks(self) -> "Profile":
        if self.norm == "Linf":
            within_pixels(max(self.curves.eps), "curves.eps: ")
            within_pixels(max(self.protocol.eps), "protocol.eps: ")
        for kind, names in self.suite:
            for name in names:
                if name not in self.attacks:
                    known = ", ".join(self.attacks)
                    raise ValueError(f"suite.{kind}: {name!r} is not among the attacks ({known})")
            for name in names:
                if name not in self.suite.table:  # which repeats published schedules
                    self.check_path(name)
        for kind in ("table", "transfer"):
            for name in getattr(self.suite, kind):
                if self.attacks[name].method != "pgd":
                    raise ValueError(f"suite.{kind}: {name!r} is no attack of the PGD engine")
        if taken := set(RESERVED) & set(self.attacks):
            raise ValueError(f"attacks: the name {taken.pop()!r} is taken by the pipeline itself")
        return self

    def check_path(self, name: str) -> None:
        """ValueError where an attack's path from a random start is too short to cross the ball."""
        attack = self.attacks[name]
        if isinstance(attack, AttackSettings) and not attack.crosses:
            raise ValueError(
                f"attacks.{name}: {attack.steps} steps of {attack.step:.4g} cannot cross the ball "
                f"from a random start; steps * step is at least {PATH} eps"
            )

    def table(self) -> dict[str, AttackSettings]:
        """The attacks of the published table, by name."""
        return self._engine(self.suite.table)

    def transferred(self) -> dict[str, AttackSettings]:
        """The attacks whose images are tried on all other models, by name."""
        return self._engine(self.suite.transfer)

    def _engine(self, names: list[str]) -> dict[str, AttackSettings]:
        found = {name: self.attacks[name] for name in names}
        return {name: a for name, a in found.items() if isinstance(a, AttackSettings)}


def check_budget(eps: float, norm: Any) -> None:
    """ValueError where no image of 8 bits can be attacked within `eps`, the budget of a profile."""
    if not eps >= LEVEL * (1 - 1e-6):
        raise ValueError(
            f"eps: in images of 8 bits nothing changes by less than 1/255 (got {eps:g})"
        )
    if norm == "Linf":
        within_pixels(eps, "eps: ")


def resolve(shared: Mapping[str, Any], profile: Mapping[str, Any], where: str) -> Profile:
    """A profile's own settings over the shared ones; budgets, which are relative to the profile's
    `eps`, as numbers. UserError names the key below `where`, its value and what is allowed."""
    try:
        given = profile.get("eps")
        eps = float(parse_fraction(None if isinstance(given, bool) else given))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}.eps: write the budget, such as 8/255") from error
    try:
        check_budget(eps, profile.get("norm", "Linf"))
    except ValueError as error:
        raise UserError(f"{where}.{error}") from error
    own = {name: _mapping(profile.get(name), f"{where}.{name}") for name in (*SHARED, "train")}
    found = {name: _merged(shared[name], own[name]) for name in SHARED}
    attack = partial(_attack, eps, {"norm": profile["norm"]} if "norm" in profile else {})
    found["attacks"] = {name: attack(one) for name, one in found["attacks"].items()}
    protocol = found["protocol"]
    adaptive = _mapping(protocol.get("adaptive"), f"{where}.protocol.adaptive")
    protocol["adaptive"] = {name: attack(one) for name, one in adaptive.items()}
    protocol["iterative"] = attack(protocol.get("iterative"))
    for one in (found["curves"], protocol):
        if isinstance(budgets := one.get("eps"), list):
            one["eps"] = [relative(budget, eps) for budget in budgets]
    if profile.get("norm") == "L2" and "eps" not in own["train"]:
        raise UserError(f"{where}.train.eps: write the budget of training, which is in Linf")
    found["train"] = {**own["train"], "eps": relative(own["train"].get("eps", eps), eps)}
    return parse(Profile, {**profile, **found, "eps": eps}, where)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping of settings, empty where there is none; UserError for anything else."""
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{where}: write a mapping of settings (got {value!r})")
    return value or {}


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `shared`, mappings key by key."""
    found = dict(shared)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found


def _attack(eps: float, norm: Mapping[str, Any], setting: Any) -> Any:
    """An attack with numbers: its eps is relative to the profile's, its lengths to its own."""
    if not isinstance(setting, Mapping):
        return setting
    try:
        own = parse_fraction(relative(setting.get("eps", eps), eps))
    except ValueError:
        return setting  # refused with its name where it is typed
    known = {**norm, **setting, "eps": own}
    if isinstance(own, int | float):
        known |= {key: relative(known[key], own) for key in LENGTHS if key in known}
    return known
