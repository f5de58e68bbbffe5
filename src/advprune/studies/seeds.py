"""Seeds: families and binary networks, once per seed, beside the dense network of that seed.

The seed sets initialization, order and random starts of the dense network, the family's own
training, and the starts of the attack.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from pydantic import Field, field_validator, model_validator
from torch import nn

from advprune.attacks.registry import typed
from advprune.core.ahead import ahead
from advprune.core.attack_settings import Attack
from advprune.core.errors import UserError
from advprune.core.params import DENSE, FROM_DENSE, Params
from advprune.core.settings import Name, Settings
from advprune.core.train_settings import BinarySettings, RecipeSettings
from advprune.evaluate.craft import craft
from advprune.evaluate.means import smallest_mean_difference
from advprune.evaluate.statistics import ALPHA
from advprune.evaluate.transfer import transfer_records
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.studies.base import Given, Tables, attacked, study, too_few_images
from advprune.training.binary import binary_spec, train_binary
from advprune.training.networks import load_or_train, spec_for
from advprune.training.standard import Row

# A network, what is to be said of it in each row, and the rows of the search for it, if any.
Made = tuple[nn.Module, dict[str, Any], list[Row]]
BINARY = "BNN"  # instead of a family: a binary network of the profile's channels
EFFECT = 0.2  # a fifth of all images: what a study has to be able to show


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
            raise ValueError("setting.channels: over seeds they are the profile's")
        return self


class SeedsSettings(Settings):
    """seeds: how many, from the run's seed on. attacks: of the profile, besides the main one.
    transfer: whether the main attack's images of the dense network of a seed are tried, too."""

    seeds: int = Field(default=3, ge=1, le=100)
    attacks: list[Name] = []
    transfer: bool = False
    points: dict[Name, Point] = {}

    @field_validator("points")
    @classmethod
    def _the_uncompressed_has_its_name(cls, points: dict[str, Point]) -> dict[str, Point]:
        if DENSE in points:
            raise ValueError(f"the name {DENSE!r} is taken by the dense network")
        return points

    def families(self) -> Iterator[tuple[str, str, Any]]:
        """Place, family and setting of each point."""
        for name, point in self.points.items():
            if point.binary is None:
                yield f"points.{name}", point.family, point.setting


def underpowered(params: Params, typed: dict[str, SeedsSettings]) -> Iterator[str]:
    """In the best case all seeds agree; the points of a study are compared together."""
    for name, settings in typed.items():
        chosen_attacks(params, name, params.studies[name].of, settings)
        points = len(settings.points)
        if not points:
            continue
        if settings.seeds < 2:
            yield f"studies.{name}.seeds: points are compared over 2 seeds at least (got 1)"
        least = partial(smallest_mean_difference, alpha=ALPHA / points)
        if few := too_few_images(params, least, EFFECT):
            images, enough = few
            yield (
                f"studies.{name}: {images} test images cannot show a difference of "
                f"{100 * EFFECT:.0f} points for {points} points (Holm, 80 % power); {enough} "
                "can (data.test_limit)"
            )


@study("seeds", SeedsSettings, underpowered, reads=("model", "train", "attacks", "suite"))
def seeds(settings: SeedsSettings, given: Given) -> Tables:
    """Records of all networks under all attacks, and the history of the searches for tickets.

    Both have the columns point (`dense` for the uncompressed), family, base (the recipe) and seed;
    the records also prune_ratio and sparsity (of all weights and biases, as found). UserError where
    the study is not of a dense network, or names an attack that the profile lacks.
    """
    attacks = chosen_attacks(given.params, given.name, given.of, settings)
    main = given.params.attack.main
    recipe, own = given.of.removeprefix(f"{DENSE}-"), given.params.seed

    def kept(point: str, seed: int, make: Callable[[], Made]) -> tuple[pd.DataFrame, pd.DataFrame]:
        """A network's records under every attack and the history of its search, as parts."""
        made, name = cache(make), f"{point}-{seed}"
        whose: dict[str, Any] = {"point": point, "base": recipe, "seed": seed}

        def records() -> pd.DataFrame:
            model, facts, _ = made()
            work = replace(given.work, seed=seed)
            table = attacked(name, model.to(given.device), given.test, attacks, work)
            if settings.transfer and point != DENSE:
                crafted = {(DENSE, FROM_DENSE + main): images_of(seed)}
                transferred = transfer_records(model, *given.test, crafted, work)
                known = given.profile.table()[main]
                table = pd.concat([table, transferred.assign(eps=known.eps, steps=known.steps)])
            return table.assign(**facts, sparsity=sparsity_of(model), **whose)

        def history() -> pd.DataFrame:
            _, facts, search = made()
            return pd.DataFrame(search).assign(family=facts["family"], **whose)

        return given.parts.frame(name, records), given.parts.frame(f"{name}-history", history)

    @cache
    def images_of(seed: int) -> torch.Tensor:
        """The main attack's images of the dense network of a seed, uint8 `[N, C, H, W]`."""
        work = replace(given.work, seed=seed)
        return craft(dense[seed]()[0].to(given.device), *given.test, attacks[main], work).pixels

    numbers = range(own, own + settings.seeds if settings.points else own)
    dense = {seed: cache(partial(network, given, recipe, seed)) for seed in numbers}
    jobs = {}
    for seed in numbers:
        jobs[seed, DENSE] = partial(kept, DENSE, seed, dense[seed])
        for name, point in settings.points.items():
            make = partial(compressed, given, name, point, seed, dense[seed])
            jobs[seed, name] = partial(kept, name, seed, make)
    # Points of a seed need its dense network; that of the run's seed is there before.
    first = [job for (seed, name), job in jobs.items() if name == DENSE and seed != own]
    ahead("dense networks", first + [job for (seed, _), job in jobs.items() if seed == own])
    ahead(f"{given.name}, networks", [*jobs.values()])
    tables = zip((pd.DataFrame(), pd.DataFrame()), *(job() for job in jobs.values()), strict=True)
    records, histories = (pd.concat(some, ignore_index=True) for some in tables)
    return {"records": records, "history": histories}


def chosen_attacks(
    params: Params, name: str, of: str, settings: SeedsSettings
) -> dict[str, Attack]:
    """The main attack and those that the study `name` of the model `of` names, typed; UserError as
    in `seeds`."""
    place, known = f"studies.{name}", params.active().attacks
    if of not in params.dense():
        raise UserError(f"{place}.of: {of} is no dense network of a recipe")
    names = list(dict.fromkeys([params.attack.main, *settings.attacks]))
    for one in names:
        if one not in known:
            raise UserError(f"{place}.attacks: {one!r} is not among {', '.join(known)}")
        if known[one].within is not None:
            raise UserError(f"{place}.attacks: {one} begins where another ended, in suites alone")
    return {one: typed(one, known[one]) for one in names}


def network(given: Given, recipe: str, seed: int) -> Made:
    """The dense network of a seed: the pipeline's own for the run's seed, else trained."""
    model = given.model.to(given.device)
    if seed != given.params.seed:
        how = RecipeSettings.model_validate(given.card["setting"])
        known = given.inputs(f"dense-{recipe}", seed)
        model, _ = load_or_train(given.profile, None, how, known)
    return model, {"family": DENSE, "prune_ratio": 0.0}, []


def compressed(given: Given, name: str, point: Point, seed: int, dense: Callable[[], Made]) -> Made:
    """A point's network: the dense one of the seed under a family, or a binary network, which has
    only its architecture."""
    profile, known = given.profile, given.inputs(f"point-{name}", seed)
    if point.binary is not None:
        spec = binary_spec(spec_for(profile.model, known.train))
        model, _ = train_binary(spec, point.binary, profile.train, known)
        return model, {"family": BINARY, "prune_ratio": 0.0}, []
    data = Data(*given.train, profile.train, known.state)
    pruned = prune(point.family, dense()[0], point.setting, data, seed)
    facts = {"family": point.family, "prune_ratio": pruned.ratio}
    return pruned.model, facts, pruned.notes.get("search", [])
