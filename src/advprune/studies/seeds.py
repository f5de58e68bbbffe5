"""Seeds: families and binary networks, once per seed, beside the dense network of that seed.

One trained network shows one outcome; judging a family takes several. The seed sets initialization,
order and random starts of the dense network, the family's own training, and the starts of the
attack.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
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
from advprune.evaluate.craft import Work
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.studies.base import Given, Tables, attacked, study
from advprune.training.base import load_or_train, spec_for
from advprune.training.binary import binary_spec, train_binary
from advprune.training.inputs import Inputs
from advprune.training.standard import Row

# A network, what is to be said of it in each row, and the rows of the search for it, if any.
Made = tuple[nn.Module, dict[str, Any], list[Row]]
BINARY = "BNN"  # in the place of a family: a binary network of the profile's channels


class Point(Settings):
    """A family at a setting; of a binary network, the keys of an entry of `binary`."""

    family: Name
    setting: Any = None

    @property
    def binary(self) -> BinarySettings | None:
        """The settings of a binary network, trained from scratch; None for a family."""
        return BinarySettings.model_validate(self.setting or {}) if self.family == BINARY else None

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
            if point.binary is None:
                yield f"points.{name}", point.family, point.setting


@study("seeds", SeedsSettings)
def seeds(settings: SeedsSettings, given: Given) -> Tables:
    """Records of all networks under all attacks, and the history of the searches for tickets.

    Both have the columns point (`dense` for the uncompressed), family, base (the recipe) and seed;
    the records also prune_ratio and sparsity (of all weights and biases, as found). UserError where
    the study is not of a dense network, or names an attack that the profile lacks.
    """
    recipe, known = given.of.removeprefix(f"{DENSE}-"), given.profile.attacks
    if given.of not in given.params.dense():
        raise UserError(f"studies.{given.name}.of: {given.of} is no dense network of a recipe")
    names = list(dict.fromkeys([given.params.attack.main, *settings.attacks]))
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"studies.{given.name}.attacks: {missing[0]!r} is not among {', '.join(known)}"
        )
    attacks = {name: typed(name, known[name]) for name in names}

    def kept(point: str, seed: int, make: Callable[[], Made]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A network's records under every attack and the history of its search, as parts."""
        made, name = cache(make), f"{point}-{seed}"
        whose: dict[str, Any] = {"point": point, "base": recipe, "seed": seed}

        def records() -> pd.DataFrame:
            model, facts, _ = made()
            work = Work(seed, given.profile.batch, given.params.attack.score_draws)
            table = attacked(name, model.to(given.device), given.test, attacks, work)
            return table.assign(**facts, sparsity=sparsity_of(model), **whose)

        def history() -> pd.DataFrame:
            _, facts, search = made()
            return pd.DataFrame(search).assign(family=facts["family"], **whose)

        return given.parts.frame(name, records), given.parts.frame(f"{name}-history", history)

    networks = list(_networks(settings, given, recipe))
    jobs = [partial(kept, *network) for network in networks]
    first = [job for job, (point, *_) in zip(jobs, networks, strict=True) if point == DENSE]
    for what, some in (("dense networks", first), (f"{given.name}, networks", jobs)):
        ahead(what, some)
    tables = zip((pd.DataFrame(), pd.DataFrame()), *(job() for job in jobs), strict=True)
    records, histories = (pd.concat(some, ignore_index=True) for some in tables)
    return {"records": records, "history": histories}


def _networks(
    settings: SeedsSettings, given: Given, recipe: str
) -> Iterator[tuple[str, int, Callable[[], Made]]]:
    """Point, seed and how its network is made, seed by seed, the dense network first."""
    first = given.params.seed
    for seed in range(first, first + settings.seeds if settings.points else first):
        dense = cache(partial(_dense, given, recipe, seed))
        yield DENSE, seed, dense
        for name, point in settings.points.items():
            state = given.parts.folder / f"{name}-{seed}.pt"
            make = partial(_sparse, given, point, dense)
            if point.binary is not None:
                make = partial(_binary, given, point.binary)
            yield name, seed, partial(make, seed, state)


def _dense(given: Given, recipe: str, seed: int) -> Made:
    """The dense network of a seed: the pipeline's own for the run's seed, else trained."""
    model = given.model.to(given.device)
    if seed != given.params.seed:
        state = given.parts.folder / f"{recipe}-{seed}.pt"
        how = RecipeSettings.model_validate(given.card["setting"])
        inputs = Inputs(given.splits["train"], given.splits["val"], seed, given.device, state)
        model, _ = load_or_train(given.profile, recipe, how, inputs)
    return model, {"family": DENSE, "prune_ratio": 0.0}, []


def _sparse(given: Given, point: Point, dense: Callable[[], Made], seed: int, state: Path) -> Made:
    data = Data(*given.train, given.profile.train, state)
    pruned = prune(point.family, dense()[0], point.setting, data, seed)
    facts = {"family": point.family, "prune_ratio": pruned.ratio}
    return pruned.model, facts, pruned.notes.get("search", [])


def _binary(given: Given, setting: BinarySettings, seed: int, state: Path) -> Made:
    """A binary network beside the dense one, of which it has only the architecture."""
    profile, train = given.profile, given.splits["train"]
    inputs = Inputs(train, given.splits["val"], seed, given.device, state)
    spec = binary_spec(spec_for(profile.model, train))
    model, _ = train_binary(spec, setting, profile.train, inputs)
    return model, {"family": BINARY, "prune_ratio": 0.0}, []
