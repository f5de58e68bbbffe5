"""The settings of a run: the only module that knows params.yaml.

What is said once for all profiles (attacks, suite, curves, protocol, flips) is written relative to
the profile's budget; `Params.active()` resolves it. Settings of families and of studies are typed
beside each, in `advprune.pruning` and `advprune.studies`; here they are kept as read. Nothing in
this module needs torch.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from advprune.core.attack_settings import (
    AnyAttack,
    AttackChoice,
    AttackSettings,
    CurveSettings,
    FlipSettings,
    ProtocolSettings,
    SuiteSettings,
)
from advprune.core.errors import UserError
from advprune.core.networks import is_library
from advprune.core.settings import (
    Budget,
    ModelName,
    Name,
    Settings,
    parse,
    parse_fraction,
    relative,
)
from advprune.core.train_settings import (
    BinarySettings,
    DataSettings,
    ModelSettings,
    QuantizeSettings,
    RecipeSettings,
    SurrogateSettings,
    TrainSettings,
)

FILE = "params.yaml"
CURVES = ("curve_eps", "curve_steps")  # the names of the curves' rows among the records
# The names of the probes' rows, from which the verdict is drawn (evaluate/probes.py).
PROBES = ("probe_gradient", "probe_noise", "probe_single", "probe_stronger", "probe_frozen")
WORST = "worst_case"  # per image, the attack of the suite that does most harm
CARRIED = "from_dense_"  # before an attack's name: its images were crafted on the dense network
DENSE = "dense"  # before a recipe: the network that it trains
RESERVED = (*CURVES, *PROBES, WORST)
SECTIONS = {  # what may be done to make a model, and where its settings stand
    "prune": ("prune",),
    "quantize": ("quantize",),
    "train": ("binary", "surrogates", "substitutes"),
}
ATTACKERS = ("surrogates", "substitutes")  # networks of an attacker's own: never judged themselves


class Entry(Settings):
    """One entry of `models`: what is done, to which parent, by which settings (`prune.E`)."""

    do: Literal["prune", "quantize", "train"]
    of: ModelName
    by: str = Field(pattern=r"^[a-z]+\.[A-Za-z0-9][A-Za-z0-9_]*$")

    @property
    def section(self) -> str:
        """Where its settings stand in params.yaml: `prune` of `prune.E`."""
        return self.by.partition(".")[0]

    @property
    def key(self) -> str:
        """The name of its settings there: `E` of `prune.E`."""
        return self.by.partition(".")[2]


class StudyEntry(BaseModel):
    """One entry of `studies`: its kind, the model it is about, and the kind's own settings."""

    model_config = ConfigDict(extra="allow", frozen=True)
    study: Name
    of: ModelName

    @property
    def settings(self) -> dict[str, Any]:
        """The kind's own settings, as read."""
        return dict(self.model_extra or {})


class Profile(Settings):
    """Everything that depends on the data set and on the time one has, resolved to numbers.

    eps: the budget that attacks, curves and training are written relative to (Linf). sweep_images:
    how many test images, the first ones, the settings of sweeps and of compression curves are
    attacked on; null takes all. note: printed on the page beside the data: machine and time.
    """

    data: DataSettings
    model: ModelSettings
    eps: Budget
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
        for kind, names in self.suite:
            for name in names:
                if name not in self.attacks:
                    known = ", ".join(self.attacks)
                    raise ValueError(f"suite.{kind}: {name!r} is not among the attacks ({known})")
        for kind in ("table", "transfer"):
            for name in getattr(self.suite, kind):
                if self.attacks[name].method != "pgd":
                    raise ValueError(f"suite.{kind}: {name!r} is no attack of the PGD engine")
        if taken := set(RESERVED) & set(self.attacks):
            raise ValueError(f"attacks: the name {taken.pop()!r} is taken by the pipeline itself")
        return self

    def table(self) -> dict[str, AttackSettings]:
        """The attacks of the published table, by name."""
        return self._engine(self.suite.table)

    def exchanged(self) -> dict[str, AttackSettings]:
        """The attacks whose images all models exchange, by name."""
        return self._engine(self.suite.transfer)

    def _engine(self, names: list[str]) -> dict[str, AttackSettings]:
        found = {name: self.attacks[name] for name in names}
        return {name: a for name, a in found.items() if isinstance(a, AttackSettings)}


ProfileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


class Params(Settings):
    """All of params.yaml; `profiles` are kept as read, and `active` resolves the chosen one."""

    profile: ProfileName
    seed: int = Field(default=0, ge=0, lt=2**31)
    recipes: dict[Name, RecipeSettings] = Field(min_length=1)
    prune: dict[Name, Any] = {}
    quantize: dict[Name, QuantizeSettings] = {}
    binary: dict[Name, BinarySettings] = {}
    surrogates: dict[Name, SurrogateSettings] = {}
    substitutes: dict[Name, SurrogateSettings] = {}
    models: dict[ModelName, Entry] = {}
    studies: dict[ModelName, StudyEntry] = {}
    attack: AttackChoice
    attacks: dict[Name, dict[str, Any]]
    suite: dict[str, Any]
    curves: dict[str, Any]
    protocol: dict[str, Any]
    flips: dict[str, Any] = {}
    profiles: dict[ProfileName, dict[str, Any]]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        if self.profile not in self.profiles:
            known = ", ".join(self.profiles)
            raise ValueError(f"profile: there is no profile {self.profile!r}; known: {known}")
        for name, entry in self.models.items():
            self._check_entry(name, entry)
        known_models = [*self.dense(), *self.models]
        for name, study in self.studies.items():
            if study.of not in known_models:
                raise ValueError(
                    f"studies.{name}.of: there is no model {study.of!r}; known: "
                    f"{', '.join(known_models)}"
                )
        return self

    def _check_entry(self, name: str, entry: Entry) -> None:
        """An entry of `models` names settings and a parent that exist, and leads to a network."""
        where = f"models.{name}"
        if name in self.dense():
            raise ValueError(f"{where}: this is the name of a recipe's network; choose another")
        if entry.section not in SECTIONS[entry.do]:
            allowed = " or ".join(f"{section}.<name>" for section in SECTIONS[entry.do])
            raise ValueError(f"{where}.by: do: {entry.do} takes {allowed} (got {entry.by!r})")
        if entry.key not in (known := getattr(self, entry.section)):
            raise ValueError(
                f"{where}.by: there is no {entry.by!r}; known under {entry.section}: "
                f"{', '.join(known) or 'none'}"
            )
        chain = [name]
        while (parent := self.models[chain[-1]].of) not in self.dense():
            if parent not in self.models:
                known_models = ", ".join([*self.dense(), *self.models])
                raise ValueError(
                    f"models.{chain[-1]}.of: there is no model {parent!r}; known: {known_models}"
                )
            if parent in chain:
                raise ValueError(f"{where}.of: {' of '.join([*chain, parent])} has no beginning")
            if parent in self.attackers():
                raise ValueError(f"{where}.of: {parent!r} is an attacker's own network")
            chain.append(parent)

    def dense(self) -> list[str]:
        """The names of the recipes' networks, `dense-<recipe>`."""
        return [f"{DENSE}-{recipe}" for recipe in self.recipes]

    def attackers(self) -> list[str]:
        """The networks that attackers train for themselves: images are crafted on them, no more."""
        return [name for name, entry in self.models.items() if entry.section in ATTACKERS]

    def root(self, model: str) -> str:
        """The dense network that a model descends from; of a dense network itself."""
        while model in self.models:
            model = self.models[model].of
        return model

    def leaderboard(self) -> list[str]:
        """All models that are judged: each recipe's network, followed by its descendants."""
        judged = [name for name in self.models if name not in self.attackers()]
        return [
            name
            for dense in self.dense()
            for name in (dense, *(one for one in judged if self.root(one) == dense))
        ]

    def setting(self, model: str) -> Any:
        """The settings that a model was made by, as in params.yaml or typed; of a dense network its
        recipe."""
        if model not in self.models:
            return self.recipes[model.removeprefix(f"{DENSE}-")]
        entry = self.models[model]
        return getattr(self, entry.section)[entry.key]

    def family(self, model: str) -> str:
        """What a model is called without its parent: `E`, `int8`, `BNN`, or `dense`.

        Where `prune.<key>` names a family of its own (`family:`), the key is the name.
        """
        return self.models[model].key if model in self.models else DENSE

    def active(self) -> Profile:
        """The settings of the chosen profile."""
        return self._active

    @cached_property
    def _active(self) -> Profile:
        """Shared settings and the profile's own put together, budgets as numbers."""
        own = dict(self.profiles[self.profile])
        where = f"{FILE}: profiles.{self.profile}"
        try:
            eps = float(parse_fraction(own.get("eps")))
        except (TypeError, ValueError) as error:
            raise UserError(f"{where}.eps: write the budget, such as 8/255") from error
        attacks = _merged(self.attacks, own.get("attacks") or {})
        protocol = _merged(self.protocol, own.get("protocol") or {})
        protocol["eps"] = _budgets(protocol.get("eps"), eps)
        protocol["iterative"] = _attack(protocol.get("iterative"), eps)
        adaptive = protocol.get("adaptive") or {}
        protocol["adaptive"] = {name: _attack(one, eps) for name, one in adaptive.items()}
        curves = _merged(self.curves, own.get("curves") or {})
        curves["eps"] = _budgets(curves.get("eps"), eps)
        train = own.get("train") or {}
        budget = relative(train.get("eps", eps), eps)
        step = relative(train.get("step", "eps/4"), eps)
        resolved = own | {
            "eps": eps,
            "train": {**train, "eps": budget, "step": step},
            "attacks": {name: _attack(one, eps) for name, one in attacks.items()},
            "suite": _merged(self.suite, own.get("suite") or {}),
            "curves": curves,
            "protocol": protocol,
            "flips": _merged(self.flips, own.get("flips") or {}),
        }
        profile = parse(Profile, resolved, where=where)
        self._check_active(profile)
        return profile

    def _check_active(self, profile: Profile) -> None:
        """What the models and the suite need is there in the resolved profile."""
        for kind in ("table", "transfer"):
            if self.attack.main not in (names := getattr(profile.suite, kind)):
                raise UserError(
                    f"{FILE}: attack.main: {self.attack.main!r} is not in suite.{kind} "
                    f"({', '.join(names)})"
                )
        extras = [extra.key for extra in self.attack.extra]
        for key in extras:
            if extras.count(key) > 1 or key in {*profile.attacks, *RESERVED}:
                raise UserError(f"{FILE}: attack.extra: the name {key!r} is taken; give a `label`")
        binary = [name for name, entry in self.models.items() if entry.section == "binary"]
        network = profile.model.network
        if binary and not is_library(network):
            raise UserError(
                f"{FILE}: binary networks are made of resnet18 or resnet20, and {network} is "
                f"neither; take {', '.join(binary)} out of models"
            )


def _merged(shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`own` over `shared`, mappings key by key."""
    found = dict(shared)
    for key, value in own.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = _merged(found[key], value) if both else value
    return found


def _attack(setting: Any, eps: float) -> Any:
    """An attack with numbers: its eps relative to the profile's, its step to its own."""
    if not isinstance(setting, Mapping):
        return setting
    try:
        own = parse_fraction(relative(setting.get("eps", eps), eps))
    except ValueError:
        return setting  # refused with its name where it is typed
    known = {**setting, "eps": own}
    if "step" in known and isinstance(own, int | float):
        known["step"] = relative(known["step"], own)
    return known


def _budgets(values: Any, eps: float) -> Any:
    """A list of budgets as numbers."""
    return [relative(one, eps) for one in values] if isinstance(values, list) else values


def load(path: Path = Path(FILE), profile: str | None = None) -> Params:
    """Read and check params.yaml; `profile` overrides the file's own choice.

    Raises UserError with one line that names the key, its value and what is allowed.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds no settings; restore it from the repository")
    params = parse(Params, {**raw, "profile": profile} if profile else raw, where=str(path))
    params.active()
    return params
