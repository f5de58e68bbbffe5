"""The bit-flip attack as an experiment: several batches, other objectives and random flips."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import nn

from advprune.attacks.bit_search import bitflip, random_flips
from advprune.attacks.stored_bits import StoredModel, store
from advprune.core.ahead import ahead
from advprune.core.attack_settings import FlipSettings
from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.progress import progress
from advprune.core.resume import Parts
from advprune.core.settings import Settings
from advprune.evaluate.faults import START, VARIANTS, Stored, guessing
from advprune.models.stochastic import is_randomized
from advprune.studies.base import Given, Tables, settings_of, study
from advprune.training.accuracy import accuracy
from advprune.training.inputs import Pair

Advance = Callable[[int], None]
KEPT = ["flip", "step", "layer", "index", "bit", "hamming", "n_b", "forwards", "gradients"]


class BitFlipSettings(Settings):
    """How the weights are stored, and how they are attacked.

    scale: one for each layer or each output channel. variants: what is tried besides untargeted and
    random flips. each: how many candidates of each layer the variant `margin` tries by a forward
    pass; untargeted flips try one, as published. budget: most flips a batch; null takes the
    profile's.
    """

    bits: int = Field(default=8, ge=1, le=8)
    scale: Literal["layer", "channel"] = "layer"
    variants: list[Literal["margin", "targeted"]] = []
    each: int = Field(default=1, ge=1, le=20)
    budget: int | None = Field(default=None, ge=1, le=1000000)


def stored_entries(params: Params) -> list[Stored]:
    """All bit-flip studies of the settings, in their order."""
    found = []
    for name, entry in params.studies.items():
        if isinstance(one := settings_of(params, name), BitFlipSettings):
            found.append(Stored(name, entry.of, one.bits, one.scale))
    return found


@study("bitflip", BitFlipSettings)
def bitflips(settings: BitFlipSettings, given: Given) -> Tables:
    """Every variant on every batch; the model's weights must be in floating point."""
    if given.card["bits"] not in (1, 32):
        raise UserError(
            f"studies.{given.name}.of: {given.of} holds integers; name a model whose weights are "
            "in floating point"
        )
    flipping = Flipping(
        given.name,
        settings,
        given.profile.flips,
        given.train,
        given.test,
        len(given.splits["test"].classes),
        given.profile.batch,
        given.params.seed,
    )
    return {"records": flipping.run(given.model.to(given.device), given.parts)}


@dataclass(frozen=True)
class Flipping:
    """A bit-flip study: a model, how it is stored, and how it is attacked.

    train, test: float images `[N, C, H, W]` in [0, 1] and labels `[N]`. Batches to attack on are
    drawn from the training images; accuracy is that on the test images. classes: of the labels.
    """

    name: str
    entry: BitFlipSettings
    settings: FlipSettings
    train: Pair
    test: Pair
    classes: int
    batch: int
    seed: int

    @property
    def level(self) -> float:
        """The accuracy at which a network guesses."""
        return guessing(self.settings.stop, self.classes, self.test[1].tolist())

    @property
    def budget(self) -> int:
        """Most flips per seed."""
        return self.entry.budget or self.settings.budget

    def run(self, model: nn.Module, parts: Parts) -> pd.DataFrame:
        """Records (see `evaluate.faults`) of every variant and seed; finished ones are kept in
        `parts`. UserError for a model that draws at random or a target that is no class."""
        if is_randomized(model):
            raise UserError(
                f"studies.{self.name}.of: this model draws at random, so that losses cannot be "
                "compared; name one that does not"
            )
        if "targeted" in self.entry.variants and self.settings.target >= self.classes:
            raise UserError(
                f"flips.target is {self.settings.target}; classes are 0 to {self.classes - 1}"
            )
        channels, height, width = self.test[0].shape[1:]
        stored = store(model, self.entry.bits, self.entry.scale, (channels, height, width))
        tried = [v for v in VARIANTS if v in ("untargeted", "random", *self.entry.variants)]
        runs = [(variant, seed) for variant in tried for seed in range(self.settings.seeds)]
        most = dict.fromkeys(tried, self.budget) | {"random": self.settings.random}

        def kept(variant: str, seed: int, advance: Advance = lambda flips: None) -> pd.DataFrame:
            """A run's records, computed or read back."""
            done = [0]

            def count(flips: int) -> None:
                done.append(flips)
                advance(flips)

            def records() -> pd.DataFrame:
                return self._records(stored, variant, seed, most[variant], count)

            table = parts.frame(f"{variant}-{seed}", records)
            advance(most[variant] - sum(done))  # those not needed, or made before a kill
            return table

        ahead(f"{self.name}, runs", [partial(kept, *run) for run in runs])
        with progress(f"{self.name}, flips", sum(most[variant] for variant, _ in runs)) as advance:
            tables = [kept(*run, advance) for run in runs]
        return pd.concat(tables, ignore_index=True)

    def _records(
        self, stored: StoredModel, variant: str, seed: int, most: int, count: Advance
    ) -> pd.DataFrame:
        """A run's trace as records: the row before any flip, then one row per flip."""

        def right(model: nn.Module) -> float:
            return accuracy(model, *self.test, self.batch)

        common: Any = {"budget": most, "evaluate": right, "progress": count}
        if variant == "random":
            salt = salted(self.seed, variant, "flips", str(seed))
            common |= {"generator": torch.Generator().manual_seed(salt)}
            trace = random_flips(stored, every=self.settings.random_every, **common)
        else:
            trace = bitflip(
                stored,
                self.images_of(seed),
                stop=self.level,
                loss="margin" if variant == "margin" else "ce",
                each=self.entry.each if variant == "margin" else 1,
                target=self.settings.target if variant == "targeted" else None,
                every=self.settings.every,
                batch=self.batch,
                **common,
            )
        table, depths = trace.table, {name: depth for depth, name in enumerate(stored.layers)}
        before = table.loss_before.iloc[0] if len(table) else float("nan")
        start = START | {"loss": before, "accuracy": trace.clean_accuracy}
        flips = table[KEPT].assign(
            depth=table.layer.map(depths).astype("int64"),
            loss=table.loss_after,
            accuracy=table.accuracy,
        )
        rows = [pd.DataFrame([start]), flips] if len(flips) else [pd.DataFrame([start])]
        found = pd.concat(rows, ignore_index=True)[list(START)]
        found = found.assign(reason=trace.reason, layers=len(depths), stored_bits=stored.size)
        return found.assign(variant=variant, seed=seed)

    def images_of(self, seed: int) -> torch.Tensor:
        """The training images of a seed, the same for all studies and variants."""
        generator = torch.Generator().manual_seed(salted(self.seed, "flips", "batch", str(seed)))
        images = self.train[0]
        return images[torch.randperm(len(images), generator=generator)[: self.settings.images]]
