"""The bit-flip attack as an experiment: several batches, other objectives and random flips."""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import nn

from advprune.attacks.bit_search import bitflip, random_flips
from advprune.attacks.stored_bits import StoredModel, store
from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.settings import Settings
from advprune.core.train_settings import BinarySettings, RecipeSettings
from advprune.evaluate.flips import START, VARIANTS, Stored, guessing, pairs_of, smallest_flip_p
from advprune.evaluate.statistics import ALPHA
from advprune.models.spec import spec_of
from advprune.models.stochastic import is_randomized
from advprune.studies.base import Given, Tables, smallest, study
from advprune.training.binary import train_binary
from advprune.training.networks import load_or_train
from advprune.training.standard import accuracy


class BitFlipSettings(Settings):
    """How the weights are stored, and how they are attacked."""

    bits: int = Field(default=8, ge=1, le=8)
    scale: Literal["layer", "channel"] = "layer"  # one for each
    variants: list[Literal["margin", "targeted"]] = []  # besides untargeted and random flips
    # Candidates of each layer that `margin` tries by a forward pass; untargeted flips try one.
    each: int = Field(default=1, ge=1, le=20)
    # Flips per batch, and between two measurements of accuracy; null: those of the profile.
    budget: int | None = Field(default=None, ge=1, le=1000000)
    every: int | None = Field(default=None, ge=1)
    floats: bool = False  # whether batch-norm and scales, of 32 bits, are attacked as well
    trainings: int = Field(default=1, ge=1, le=100)  # networks: those after the first trained anew


def underpowered(params: Params, typed: dict[str, BitFlipSettings]) -> Iterator[str]:
    """In the best case every batch of one network needs more flips than every batch of another; all
    comparisons of all studies are corrected together."""
    entries = [Stored(n, params.studies[n].of, one.bits, one.scale) for n, one in typed.items()]
    tests = len(pairs_of(entries, params.dense()[0]))
    seeds = params.active().flips.seeds

    def least(seeds: int) -> float:
        return min(1.0, smallest_flip_p(seeds, seeds) * tests)

    if tests and least(seeds) >= ALPHA:
        yield (
            f"flips.seeds: with {seeds} batches none of {tests} comparisons can be significant "
            f"(p >= {least(seeds):.2g} by Holm); {smallest(lambda n: least(n) < ALPHA)} batches "
            "are enough, or fewer studies"
        )


@study("bitflip", BitFlipSettings, underpowered, reads=("flips", "model", "train"))
def bitflips(entry: BitFlipSettings, given: Given) -> Tables:
    """Records (see `evaluate.flips`) of every variant on every batch; each training has batches of
    its own. UserError for a model of integers, one that draws at random, a target that is no class,
    or trainings of a model that is not trained from scratch."""
    flips, place = given.profile.flips, f"studies.{given.name}.of"
    classes = len(given.splits["test"].classes)
    if given.card["bits"] not in (1, 32):
        raise UserError(
            f"{place}: {given.of} holds integers; name a model whose weights are floats"
        )
    if is_randomized(given.model):
        raise UserError(f"{place}: this model draws at random; name one that does not")
    if "targeted" in entry.variants and flips.target >= classes:
        raise UserError(f"flips.target is {flips.target}; classes are 0 to {classes - 1}")
    shape = given.splits["test"].shape
    networks = [given.model, *(trained(given, n) for n in range(1, entry.trainings))]
    how = entry.bits, entry.scale, shape, entry.floats
    stored = [store(one.to(given.device), *how) for one in networks]
    tried = [v for v in VARIANTS if v in ("untargeted", "random", *entry.variants)]
    most = dict.fromkeys(tried, entry.budget or flips.budget) | {"random": flips.random}

    jobs = {
        f"{variant}-{seed}": partial(
            recorded, entry, given, stored[seed // flips.seeds], variant, seed, most[variant]
        )
        for variant in tried
        for seed in range(flips.seeds * entry.trainings)
    }
    return {"records": pd.concat(given.finished("runs", jobs).values(), ignore_index=True)}


def trained(given: Given, number: int) -> nn.Module:
    """The study's network, trained from another seed: a dense one, or a binary one of the channels
    that it has."""
    how, profile = given.params.setting(given.of), given.profile
    known = given.inputs("training", given.params.seed + number)
    if isinstance(how, BinarySettings):
        return train_binary(spec_of(given.model), how, profile.train, known)[0]
    if isinstance(how, RecipeSettings):
        return load_or_train(profile, None, how, known)[0]
    raise UserError(f"studies.{given.name}.trainings: {given.of} is not trained from scratch")


def recorded(
    entry: BitFlipSettings, given: Given, stored: StoredModel, variant: str, seed: int, budget: int
) -> pd.DataFrame:
    """A run as records: the row before any flip, then one row per flip."""
    settings, batch = given.profile.flips, given.profile.batch
    common: dict[str, Any] = {"evaluate": lambda model: accuracy(model, *given.test, batch)}
    common["budget"] = budget
    if variant == "random":
        salt = salted(given.params.seed, variant, "flips", str(seed))
        generator = torch.Generator().manual_seed(salt)
        trace = random_flips(stored, every=settings.random_every, generator=generator, **common)
    else:
        trace = bitflip(
            stored,
            attacker_images(given, seed),
            stop=guessing(settings.stop, len(given.splits["test"].classes), given.test[1].tolist()),
            loss="margin" if variant == "margin" else "ce",
            each=entry.each if variant == "margin" else 1,
            target=settings.target if variant == "targeted" else None,
            every=entry.every or settings.every,
            batch=batch,
            **common,
        )
    table, depths = trace.table, {name: depth for depth, name in enumerate(stored.layers)}
    before = table.loss_before.iloc[0] if len(table) else float("nan")
    start = pd.DataFrame([START | {"loss": before, "accuracy": trace.start_accuracy}])
    depth = table.layer.map(depths).astype("int64")
    flips = table.assign(depth=depth, loss=table.loss_after)[list(START)]
    found = pd.concat([start, flips] if len(flips) else [start], ignore_index=True)
    found = found.assign(reason=trace.reason, layers=len(depths), stored_bits=stored.size)
    found = found.assign(variant=variant, seed=seed)
    return found if entry.trainings == 1 else found.assign(training=seed // settings.seeds)


def attacker_images(given: Given, seed: int) -> torch.Tensor:
    """The batch `[N, C, H, W]` of a seed, from the training images; the same for all studies and
    variants."""
    salt = salted(given.params.seed, "flips", "batch", str(seed))
    images, generator = given.train[0], torch.Generator().manual_seed(salt)
    return images[torch.randperm(len(images), generator=generator)[: given.profile.flips.images]]
