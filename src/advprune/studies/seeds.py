"""Seeds: families and binary networks, once per seed, beside the dense network of that seed.

One trained network shows one outcome; judging a family takes several. The seed sets initialization,
order and random starts of the dense network, the family's own training, and the starts of the
attack.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pandas as pd
from pydantic import Field, field_validator, model_validator
from torch import nn

from advprune.attacks.registry import typed
from advprune.core.ahead import ahead
from advprune.core.errors import UserError
from advprune.core.params import DENSE
from advprune.core.settings import Name, Settings
from advprune.core.train_settings import BinarySettings, RecipeSettings
from advprune.data import to_float
from advprune.evaluate.craft import Work, craft_shown, rows
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.studies.base import Given, Tables, study
from advprune.training.base import load_or_train, spec_for
from advprune.training.binary import binary_spec, train_binary
from advprune.training.inputs import Inputs
from advprune.training.standard import History

Trained = tuple[nn.Module, History]
# A network, what is to be said of it in each row, and the histories of its training by phase.
Made = tuple[nn.Module, dict[str, Any], dict[str, History]]
PROBED = 100  # validation images that each epoch is judged on, for the curves alone


BINARY = "BNN"  # in the place of a family: a binary network of the profile's channels


class Point(Settings):
    """A family at a setting; of a binary network, the keys of an entry of `binary`."""

    family: Name
    setting: Any = None

    @property
    def binary(self) -> BinarySettings | None:
        """The settings of a binary network; None for a family."""
        return BinarySettings.model_validate(self.setting or {}) if self.is_binary else None

    @property
    def is_binary(self) -> bool:
        """Whether it is a binary network, trained from scratch."""
        return self.family == BINARY

    @model_validator(mode="after")
    def _binary_as_it_is(self) -> "Point":
        if self.binary and self.binary.channels != "base":
            raise ValueError(
                "setting.channels: binary networks over seeds have those of the profile"
            )
        return self


class SeedsSettings(Settings):
    """seeds: how many, from the run's seed on. attacks: of the profile, besides the main one."""

    seeds: int = Field(default=3, ge=1, le=100)
    attacks: list[Name] = []
    points: dict[Name, Point] = {}

    @field_validator("points")
    @classmethod
    def _the_uncompressed_has_its_name(cls, points: dict[str, Point]) -> dict[str, Point]:
        if DENSE in points:
            raise ValueError(f"the name {DENSE!r} is taken by the uncompressed network")
        return points

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each point."""
        for name, point in self.points.items():
            if not point.is_binary:
                yield f"points.{name}", point.family, point.setting


@dataclass(frozen=True)
class Network:
    """A network of the study, made when it is asked for."""

    point: str
    seed: int
    made: Callable[[], Made]

    @property
    def name(self) -> str:
        """Its name among the parts."""
        return f"{self.point}-{self.seed}"


@study("seeds", SeedsSettings)
def seeds(settings: SeedsSettings, given: Given) -> Tables:
    """Records of all networks under all attacks, and the histories of their training.

    Both have the columns point (`dense` for the uncompressed), family, base (the recipe) and seed;
    the records also prune_ratio and sparsity (of all weights and biases, as found); the histories
    also phase (the name of the training among the family's notes; train for dense). UserError where
    the study is not of a dense network, or names an attack that the profile lacks.
    """
    recipe = given.of.removeprefix(f"{DENSE}-")
    if given.of not in given.params.dense():
        raise UserError(f"studies.{given.name}.of: {given.of} is no dense network of a recipe")
    attacks = list(dict.fromkeys([given.params.attack.main, *settings.attacks]))
    if missing := [name for name in attacks if name not in given.profile.attacks]:
        known = ", ".join(given.profile.attacks)
        raise UserError(f"studies.{given.name}.attacks: {missing[0]!r} is not among {known}")
    networks = list(_networks(settings, given, recipe))
    kept = partial(_tables, given, recipe, attacks)
    for what, some in (
        ("dense networks", [one for one in networks if one.point == DENSE]),
        (f"{given.name}, networks", networks),
    ):
        ahead(what, [partial(kept, one) for one in some])
    records, histories = zip((pd.DataFrame(), pd.DataFrame()), *map(kept, networks), strict=True)
    return {
        "records": pd.concat(records, ignore_index=True),
        "history": pd.concat(histories, ignore_index=True),
    }


def _networks(settings: SeedsSettings, given: Given, recipe: str) -> Iterator[Network]:
    """Seed by seed, the dense network first."""
    first = given.params.seed
    for seed in range(first, first + settings.seeds if settings.points else first):
        dense = cache(partial(_dense, given, recipe, seed))
        yield Network(DENSE, seed, partial(_uncompressed, dense))
        for name, point in settings.points.items():
            make = _binary if point.is_binary else _sparse
            yield Network(name, seed, partial(make, given, point, dense, f"{name}-{seed}"))


def _dense(given: Given, recipe: str, seed: int) -> Trained:
    """The dense network of a seed: the pipeline's own for the run's seed, else trained."""
    if seed == given.params.seed:
        return given.model.to(given.device), list(given.card["history"])
    state = given.parts.folder / f"{recipe}-{seed}.pt"
    how = RecipeSettings.model_validate(given.card["setting"])
    splits = given.splits["train"], given.splits["val"]
    return load_or_train(given.profile, recipe, how, Inputs(*splits, seed, given.device, state))


def _uncompressed(dense: Callable[[], Trained]) -> Made:
    model, history = dense()
    return model, {"family": DENSE, "prune_ratio": 0.0}, {"train": history}


def _sparse(given: Given, point: Point, dense: Callable[[], Trained], name: str) -> Made:
    val, seed = given.splits["val"], int(name.rpartition("-")[2])
    judged = to_float(val.images[:PROBED]), val.labels[:PROBED]
    state = given.parts.folder / f"{name}.pt"
    data = Data(*given.train, given.profile.train, state, probe=judged)
    pruned = prune(point.family, dense()[0], point.setting, data, seed)
    facts = {"family": point.family, "prune_ratio": pruned.ratio}
    return pruned.model, facts, histories_of(pruned.notes)


def _binary(given: Given, point: Point, dense: Callable[[], Trained], name: str) -> Made:
    """A binary network beside the dense one, of which it has only the architecture."""
    del dense
    setting, seed = point.binary or BinarySettings(), int(name.rpartition("-")[2])
    splits = given.splits["train"], given.splits["val"]
    inputs = Inputs(*splits, seed, given.device, given.parts.folder / f"{name}.pt")
    spec = binary_spec(spec_for(given.profile.model, splits[0]))
    model, history = train_binary(spec, setting, given.profile.train, inputs)
    return model, {"family": BINARY, "prune_ratio": 0.0}, {"train": history}


def _tables(
    given: Given, recipe: str, attacks: list[str], network: Network
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A network's records under every attack and the histories of its training, kept as parts."""
    made = cache(network.made)
    whose: dict[str, Any] = {"point": network.point, "base": recipe, "seed": network.seed}

    def attacked() -> pd.DataFrame:
        model, facts, _ = made()
        model, profile = model.to(given.device), given.profile
        work = Work(network.seed, profile.batch, given.params.attack.score_draws)
        tables = []
        for attack in attacks:
            setting = typed(attack, profile.attacks[attack])
            images, labels = (t[: getattr(setting, "images", None)] for t in given.test)
            what = f"{network.name} {attack}"
            crafted = craft_shown(what, model, (images, labels), setting, work)
            tables.append(rows(model, images, crafted, labels, attack, work))
        known = facts | {"sparsity": sparsity_of(model), **whose}
        return pd.concat(tables, ignore_index=True).assign(**known)

    def trained() -> pd.DataFrame:
        _, facts, found = made()
        tables = [pd.DataFrame(history).assign(phase=phase) for phase, history in found.items()]
        whole = pd.concat([pd.DataFrame(), *tables], ignore_index=True)
        return whole.assign(family=facts["family"], **whose)

    parts = given.parts
    return parts.frame(network.name, attacked), parts.frame(f"{network.name}-history", trained)


def histories_of(notes: Mapping[str, Any]) -> dict[str, History]:
    """The histories among a family's notes, by name, in order: one row per epoch of a training, or
    a measured step of a search."""
    lists = {name: value for name, value in notes.items() if isinstance(value, list) and value}
    return {
        name: value
        for name, value in lists.items()
        if isinstance(value[0], dict) and {"epoch", "step"} & value[0].keys()
    }
