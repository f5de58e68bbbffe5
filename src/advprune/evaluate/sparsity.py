"""The study of sparse networks: families at settings, per seed, on dense networks of that seed.

One trained network says what one run gave; how a way of pruning does is a matter of several. The
seed sets initialization, order and random starts of the dense network, the family's own training,
and the starts of the attack.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from advprune.core.ahead import ahead
from advprune.core.params import DENSE, Params, SparsePoint
from advprune.core.progress import progress
from advprune.core.resume import Parts
from advprune.data import Split, to_float
from advprune.evaluate.craft import Work, budget_of, craft, rows
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.training.base import load_or_train
from advprune.training.standard import History

Trained = tuple[nn.Module, History]
# A network, what is to be said of it in each row, and the histories of its training by phase.
Made = tuple[nn.Module, dict[str, Any], dict[str, History]]
PROBED = 100  # validation images that each epoch is judged on, for the curves alone


@dataclass(frozen=True)
class Network:
    """A network of the study, made when it is asked for."""

    point: str
    base: str
    seed: int
    made: Callable[[], Made]

    @property
    def name(self) -> str:
        """Its name among the parts."""
        return f"{self.point}-{self.base}-{self.seed}"


@dataclass(frozen=True, eq=False)
class SparsityStudy:
    """All points of `params.sparsity_study` on uint8 splits; only `test` is ever attacked.

    parts: keeps finished networks and unfinished training. given: dense networks that are there
    already, with their histories, by recipe and seed; the others are trained, or loaded where the
    profile says so (then they are the same for each seed).
    """

    params: Params
    train: Split
    val: Split
    test: Split
    parts: Parts
    device: torch.device
    given: Mapping[tuple[str, int], Trained] = field(default_factory=dict)

    def run(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The records of all networks under all attacks, and the histories of their training.

        Both with the columns point (`dense` for the uncompressed), family, base and seed; the
        records with prune_ratio and sparsity (of all weights and biases, as found), too; the
        histories with phase (the name of the training among the family's notes; train for dense).
        """
        networks = list(self._networks())
        dense = [one for one in networks if one.point == DENSE]
        for what, some in (("dense networks", dense), ("study, networks", networks)):
            ahead(what, [partial(self._tables, one) for one in some])
        tables = [
            self._tables(one, f"{number} of {len(networks)}")
            for number, one in enumerate(networks, 1)
        ]
        records, histories = zip((pd.DataFrame(), pd.DataFrame()), *tables, strict=True)
        return pd.concat(records, ignore_index=True), pd.concat(histories, ignore_index=True)

    def _tables(self, network: Network, count: str = "") -> tuple[pd.DataFrame, pd.DataFrame]:
        """A network's records and histories, kept as parts."""
        made = cache(network.made)
        attacked = partial(self._records, network, made, count)
        trained = partial(_history, network, made)
        records = self.parts.frame(network.name, attacked)
        return records, self.parts.frame(f"{network.name}-history", trained)

    def _networks(self) -> Iterator[Network]:
        """Seed by seed, the dense networks first."""
        study, first = self.params.sparsity_study, self.params.seed
        if not study.points:
            return
        for seed in range(first, first + study.seeds):
            dense = {base: cache(partial(self._dense, base, seed)) for base in study.recipes}
            for base in study.recipes:
                yield Network(DENSE, base, seed, partial(_as_it_is, dense[base]))
            for name, point in study.points.items():
                base = study.base_of(point)
                key = f"{name}-{base}-{seed}"
                made = partial(self._sparse, point, dense[base], seed, self._state(key))
                yield Network(name, base, seed, made)

    def _dense(self, recipe: str, seed: int) -> Trained:
        if (recipe, seed) in self.given:
            model, history = self.given[recipe, seed]
            return model.to(self.device), history
        return load_or_train(
            self.params.active(),
            recipe,
            self.params.recipes[recipe],
            self.train,
            self.val,
            seed,
            self.device,
            self._state(f"{recipe}-{seed}"),
        )

    def _sparse(
        self, point: SparsePoint, dense: Callable[[], Trained], seed: int, state: Path
    ) -> Made:
        how, images = self.params.active().train, to_float(self.train.images)
        judged = to_float(self.val.images[:PROBED]), self.val.labels[:PROBED]
        data = Data(images, self.train.labels, how, state, probe=judged)
        pruned = prune(point.family, dense()[0], point.setting, data, seed)
        facts = {"family": point.family, "prune_ratio": pruned.ratio}
        return pruned.model, facts, histories_of(pruned.notes)

    def _state(self, name: str) -> Path:
        return self.parts.folder / f"{name}.pt"

    @cached_property
    def _images(self) -> torch.Tensor:
        return to_float(self.test.images)

    def _records(self, network: Network, made: Callable[[], Made], count: str) -> pd.DataFrame:
        """A network under every attack of the study."""
        model, facts, _ = made()
        known = facts | {"sparsity": sparsity_of(model), **_whose(network)}
        attacks = [self.params.attack.main, *self.params.sparsity_study.attacks]
        tables = [
            self._attacked(f"{network.name} ({count}) {attack}", model, network.seed, attack)
            for attack in dict.fromkeys(attacks)
        ]
        return pd.concat(tables, ignore_index=True).assign(**known)

    def _attacked(self, title: str, model: nn.Module, seed: int, attack: str) -> pd.DataFrame:
        profile = self.params.active()
        setting = profile.attacks[attack]
        first = slice(getattr(setting, "images", None))
        images, labels = self._images[first], self.test.labels[first]
        budget = budget_of(setting)
        with progress(title, len(images) * budget.steps * budget.restarts) as advance:
            work = Work(seed, profile.batch, self.params.attack.score_draws, progress=advance)
            crafted = craft(model.to(self.device), images, labels, setting, work)
        return rows(model, images, crafted, labels, attack, work)


def histories_of(notes: Mapping[str, Any]) -> dict[str, History]:
    """The histories among a family's notes, by name and in order: one row per epoch of a
    training, or per measured step of a search."""
    lists = {name: value for name, value in notes.items() if isinstance(value, list) and value}
    return {
        name: value
        for name, value in lists.items()
        if isinstance(value[0], dict) and {"epoch", "step"} & value[0].keys()
    }


def _as_it_is(dense: Callable[[], Trained]) -> Made:
    model, history = dense()
    return model, {"family": DENSE, "prune_ratio": 0.0}, {"train": history}


def _whose(network: Network) -> dict[str, Any]:
    return {"point": network.point, "base": network.base, "seed": network.seed}


def _history(network: Network, made: Callable[[], Made]) -> pd.DataFrame:
    """The histories of a network's training, phase by phase."""
    _, facts, found = made()
    tables = [pd.DataFrame(history).assign(phase=phase) for phase, history in found.items()]
    return pd.concat([pd.DataFrame(), *tables], ignore_index=True).assign(
        family=facts["family"], **_whose(network)
    )
