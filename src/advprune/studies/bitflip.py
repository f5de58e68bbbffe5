"""The bit-flip attack as an experiment: several batches, other objectives and random flips."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field
from torch import nn

from advprune.attacks.bit_search import bitflip, random_flips
from advprune.attacks.flip_trace import FlipTrace
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
from advprune.studies.base import Given, Images, Tables, settings_of, study
from advprune.training.accuracy import accuracy

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
    train: Images
    test: Images
    classes: int
    batch: int
    seed: int

    @property
    def level(self) -> float:
        """The accuracy at which a network guesses."""
        return guessing(self.settings.stop, self.classes, self.test[1].tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, `(C, H, W)`."""
        channels, height, width = self.test[0].shape[1:]
        return channels, height, width

    @property
    def budget(self) -> int:
        """Most flips per seed."""
        return self.entry.budget or self.settings.budget

    def run(self, model: nn.Module, parts: Parts) -> pd.DataFrame:
        """Records (see `evaluate.faults`) of every variant and seed; finished ones are kept in
        `parts`. UserError for a model that draws at random or a target that is no class."""
        self._check(model)
        stored = store(model, self.entry.bits, self.entry.scale, self.shape)
        runs = list(self._runs())
        ahead(
            f"{self.name}, runs", [partial(self._kept, stored, *run, parts, _alone) for run in runs]
        )
        with progress(f"{self.name}, flips", sum(most for *_, most in runs)) as advance:
            tables = [self._kept(stored, *run, parts, advance) for run in runs]
        return pd.concat(tables, ignore_index=True)

    def _check(self, model: nn.Module) -> None:
        if is_randomized(model):
            raise UserError(
                f"studies.{self.name}.of: this model draws at random, so that losses cannot be "
                "compared; name one that does not"
            )
        if "targeted" in self.entry.variants and self.settings.target >= self.classes:
            raise UserError(
                f"flips.target is {self.settings.target}; classes are 0 to {self.classes - 1}"
            )

    def _runs(self) -> Iterator[tuple[str, int, int]]:
        """Variant, seed and most flips of each run."""
        for variant in VARIANTS:
            if variant in ("untargeted", "random", *self.entry.variants):
                most = self.settings.random if variant == "random" else self.budget
                yield from ((variant, seed, most) for seed in range(self.settings.seeds))

    def _kept(
        self,
        stored: StoredModel,
        variant: str,
        seed: int,
        most: int,
        parts: Parts,
        advance: Advance,
    ) -> pd.DataFrame:
        """A run's records, computed or read back."""
        done = 0

        def count(flips: int) -> None:
            nonlocal done
            done += flips
            advance(flips)

        table = parts.frame(
            f"{variant}-{seed}", lambda: self._records(stored, variant, seed, most, count)
        )
        advance(most - done)  # flips that were not needed, or were made before a kill
        return table

    def _records(
        self, stored: StoredModel, variant: str, seed: int, most: int, count: Advance
    ) -> pd.DataFrame:
        attack = self._random if variant == "random" else self._searched
        trace = attack(stored, variant, seed, most, count)
        return _rows(trace, stored).assign(variant=variant, seed=seed)

    def _searched(
        self, stored: StoredModel, variant: str, seed: int, most: int, count: Advance
    ) -> FlipTrace:
        return bitflip(
            stored,
            self.images_of(seed),
            budget=most,
            stop=self.level,
            loss="margin" if variant == "margin" else "ce",
            each=self.entry.each if variant == "margin" else 1,
            target=self.settings.target if variant == "targeted" else None,
            evaluate=self._accuracy,
            every=self.settings.every,
            batch=self.batch,
            progress=count,
        )

    def _random(
        self, stored: StoredModel, variant: str, seed: int, most: int, count: Advance
    ) -> FlipTrace:
        generator = torch.Generator().manual_seed(salted(self.seed, variant, "flips", str(seed)))
        every = self.settings.random_every
        options: dict[str, Any] = {"evaluate": self._accuracy, "every": every, "progress": count}
        return random_flips(stored, budget=most, generator=generator, **options)

    def images_of(self, seed: int) -> torch.Tensor:
        """The training images of a seed, the same for all studies and variants."""
        generator = torch.Generator().manual_seed(salted(self.seed, "flips", "batch", str(seed)))
        images = self.train[0]
        return images[torch.randperm(len(images), generator=generator)[: self.settings.images]]

    def _accuracy(self, model: nn.Module) -> float:
        return accuracy(model, *self.test, self.batch)


def _alone(flips: int) -> None:
    """Nobody is told."""


def _rows(trace: FlipTrace, stored: StoredModel) -> pd.DataFrame:
    """A trace as records: the row before any flip, then one row per flip."""
    depths = {name: depth for depth, name in enumerate(stored.layers)}
    table = trace.table
    before = table.loss_before.iloc[0] if len(table) else float("nan")
    start = START | {"loss": before, "accuracy": trace.clean_accuracy}
    flips = table[KEPT].assign(
        depth=table.layer.map(depths).astype("int64"),
        loss=table.loss_after,
        accuracy=table.accuracy,
    )
    rows = [pd.DataFrame([start]), flips] if len(flips) else [pd.DataFrame([start])]
    found = pd.concat(rows, ignore_index=True)[list(START)]
    return found.assign(reason=trace.reason, layers=len(depths), stored_bits=stored.size)
