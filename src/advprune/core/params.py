"""The settings of a run: the only module that knows params.yaml. Nothing here needs torch.

Settings of families and of studies are typed beside each, in `advprune.pruning` and
`advprune.studies`; here they are kept as read.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from advprune.core.attack_settings import AttackChoice
from advprune.core.errors import UserError
from advprune.core.networks import is_library
from advprune.core.profile import RESERVED, SHARED, Profile, resolve
from advprune.core.settings import ModelName, Name, Settings, parse, text_of, yaml_of
from advprune.core.train_settings import (
    BinarySettings,
    QuantizeSettings,
    RecipeSettings,
    SurrogateSettings,
)

FILE = "params.yaml"
FROM_DENSE = "from_dense_"  # before an attack's name: its images were crafted on the dense network
DENSE = "dense"  # before a recipe: the network that it trains
SECTIONS = {  # what may be done to make a model, and where its settings stand
    "prune": ("prune",),
    "quantize": ("quantize",),
    "train": ("binary", "surrogates", "substitutes"),
}
ATTACKERS = ("surrogates", "substitutes")  # an attacker's own networks, not on the leaderboard


class Entry(Settings):
    """One entry of `models`: how it is made, from which parent, with which settings (`prune.E`)."""

    do: Literal["prune", "quantize", "train"]
    of: ModelName
    by: str = Field(pattern=r"^[a-z]+\.[A-Za-z0-9][A-Za-z0-9_]*$")

    @property
    def section(self) -> str:
        """The section of its settings in params.yaml: `prune` of `prune.E`."""
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


class StatisticsSettings(Settings):
    """margin: two accuracies are equivalent if their difference is shown to be below it."""

    margin: float = Field(default=0.02, gt=0, lt=1)


class Params(Settings):
    """All of params.yaml; `profiles` are kept as read, and `active` resolves the chosen one."""

    profile: ModelName  # as models are called, with hyphens
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
    statistics: StatisticsSettings = StatisticsSettings()
    profiles: dict[ModelName, dict[str, Any]]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        models = [*self.dense(), *self.models]
        _known("profile", "profile", self.profile, self.profiles)
        for name, entry in self.models.items():
            where, section = f"models.{name}", entry.section
            if name in self.dense():
                raise ValueError(f"{where}: this is the name of a recipe's network; choose another")
            if section not in SECTIONS[entry.do]:
                allowed = " or ".join(f"{one}.<name>" for one in SECTIONS[entry.do])
                raise ValueError(f"{where}.by: do: {entry.do} takes {allowed} (got {entry.by!r})")
            if entry.key not in (known := getattr(self, section)):
                raise ValueError(
                    f"{where}.by: there is no {entry.by!r}; known under {section}: "
                    f"{', '.join(known) or 'none'}"
                )
            chain = [name]
            while (parent := self.models[chain[-1]].of) not in self.dense():
                _known(f"models.{chain[-1]}.of", "model", parent, models)
                if parent in chain:
                    raise ValueError(f"{where}.of: {' of '.join([*chain, parent])} is circular")
                if parent in self.attackers():
                    raise ValueError(f"{where}.of: {parent!r} is an attacker's own network")
                chain.append(parent)
        for name, study in self.studies.items():
            _known(f"studies.{name}.of", "model", study.of, models)
        return self

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
        """The settings that a model was made by; of a dense network its recipe."""
        if model not in self.models:
            return self.recipes[model.removeprefix(f"{DENSE}-")]
        entry = self.models[model]
        return getattr(self, entry.section)[entry.key]

    def family(self, model: str) -> str:
        """What a model is called without its parent: its key in params.yaml, or `dense`."""
        return self.models[model].key if model in self.models else DENSE

    def active(self) -> Profile:
        """The settings of the chosen profile: shared ones and its own, budgets as numbers."""
        return self._active

    def attacks_in_force(self) -> dict[str, Any]:
        """What models are attacked with, as data/<profile>/attacks.json holds it."""
        kept = {"attacks", "suite", "curves", "batch"}
        profile = self.active().model_dump(mode="json", include=kept)
        return {"attack": self.attack.model_dump(mode="json"), **profile}

    @cached_property
    def _active(self) -> Profile:
        shared = {name: getattr(self, name) for name in SHARED}
        profile = resolve(shared, self.profiles[self.profile], f"{FILE}: profiles.{self.profile}")
        main, network = self.attack.main, profile.model.network
        for kind in ("table", "transfer"):
            if main not in (names := getattr(profile.suite, kind)):
                names = ", ".join(names)
                raise UserError(f"{FILE}: attack.main: {main!r} is not in suite.{kind} ({names})")
        try:
            profile.check_path(main)
        except ValueError as error:
            raise UserError(f"{FILE}: {error}") from error
        extras = [extra.key for extra in self.attack.extra]
        for key in extras:
            if extras.count(key) > 1 or key in {*profile.attacks, *RESERVED}:
                raise UserError(f"{FILE}: attack.extra: the name {key!r} is taken; give a `label`")
        binary = [name for name, entry in self.models.items() if entry.section == "binary"]
        if binary and not is_library(network):
            raise UserError(
                f"{FILE}: binary networks are made of resnet18 or resnet20, and {network} is "
                f"neither; take {', '.join(binary)} out of models"
            )
        return profile


def _known(where: str, what: str, name: str, names: Iterable[str]) -> None:
    """ValueError where there is none of that name."""
    if name not in names:
        raise ValueError(f"{where}: there is no {what} {name!r}; known: {', '.join(names)}")


def load(path: Path = Path(FILE), profile: str | None = None) -> Params:
    """Read and check params.yaml; `profile` overrides the file's own choice.

    Raises UserError with one line that names the key, its value and what is allowed.
    """
    raw = yaml_of(text_of(path), str(path))
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds no settings; restore it from the repository")
    params = parse(Params, {**raw, "profile": profile} if profile else raw, where=str(path))
    params.active()
    return params
