"""A run: everything that the pipeline wrote under one profile, read back from its files."""

from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from advprune.core.attack_settings import AttackSettings
from advprune.core.claims import Claim
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.profile import FROZEN, RESERVED, Profile
from advprune.evaluate.flips import Reached, guessing, to_chance
from advprune.evaluate.robust import union
from advprune.evaluate.verdict import RELIABLE, Evidence, Verdict, verdict
from advprune.report.formats import budget

NOT_RUN = "not run"
MOSTLY_ZERO = 0.5  # from this sparsity on a model is shown among the sparse ones
Transfers = dict[tuple[str, str], pd.DataFrame]  # (source, attack) -> records of a target


@dataclass(frozen=True, eq=False)
class Model:
    """One row of the leaderboard and what was recorded about it.

    parent: what it was made from, root: the dense network it descends from (a dense network: its
    own name). do: train, prune or quantize. card: facts of the checkpoint. records: every attack,
    curve and probe. layers: where the main attack acts. transfers: answers to others' images.
    """

    name: str
    family: str
    parent: str
    root: str
    do: str
    card: dict[str, Any]
    records: pd.DataFrame
    layers: pd.DataFrame
    transfers: Transfers

    @property
    def is_dense(self) -> bool:
        """Whether it is a dense network, against which others are compared."""
        return self.name == self.root

    @property
    def recipe(self) -> str:
        """How the dense network was trained."""
        return self.root.removeprefix("dense-")

    @property
    def kind(self) -> str:
        """Which suite it went through: deterministic, randomized, quantized or binary."""
        if (self.records.attack == FROZEN).any():
            return "randomized"
        bits = int(self.card["bits"])
        return "binary" if bits == 1 else "quantized" if bits < 32 else "deterministic"

    @property
    def group(self) -> str:
        """The models that share a figure: `dense`, `standard-pruned`, `standard-binary`, …"""
        what = "sparse" if float(self.card["sparsity"]) >= MOSTLY_ZERO else "pruned"
        what = self.kind if self.kind in ("quantized", "binary") else what
        return "dense" if self.is_dense else f"{self.recipe}-{what}"

    @cache  # noqa: B019 (a model lives as long as its run)
    def attack(self, name: str) -> pd.DataFrame:
        """The records of one attack, in the order of the images; empty where it was not run."""
        return in_order(self.records[self.records.attack == name])

    def transferred(self, attack: str, source: str = "") -> pd.DataFrame:
        """Records of images crafted on `source`, by default its dense network; of its own images
        the white-box ones. Empty where there are none."""
        source = source or self.root
        if source == self.name:
            return self.attack(attack)
        return self.transfers.get((source, attack), self.records.iloc[:0])


class Absent(NamedTuple):
    """What has not been run, and the stage that makes it. kind: `model`, `study` or `transfer` (to
    the model `name`; empty: to all)."""

    kind: str
    name: str
    stage: str


@dataclass(frozen=True, eq=False)
class Run:
    """A run of the pipeline: settings, models in the order of the leaderboard, studies by name.

    attackers: records of surrogates and substitutes on their own images. source, classes: of the
    data set. clean_images: uint8 `[N, C, H, W]`. folder: the root of its files.
    """

    params: Params
    models: list[Model]
    attackers: Transfers
    studies: dict[str, pd.DataFrame]
    source: str
    classes: list[str]
    clean_images: np.ndarray
    folder: Path
    claims: tuple[Claim, ...] = ()
    absent: tuple[Absent, ...] = ()

    @cached_property
    def profile(self) -> Profile:
        """The settings in force."""
        return self.params.active()

    @property
    def main(self) -> str:
        """The attack that curves, layers and transfer are about."""
        return self.params.attack.main

    @property
    def attacks(self) -> dict[str, AttackSettings]:
        """The attacks of nn-prune's table by name; the main one is among them."""
        return self.profile.table()

    @property
    def main_attack(self) -> AttackSettings:
        """The main attack's settings."""
        return self.attacks[self.main]

    @property
    def main_words(self) -> str:
        """The main attack as sections introduce it."""
        one = self.main_attack
        return f"the main attack, {self.main} (PGD, {one.steps} steps, eps {budget(one.eps)})"

    @property
    def transfer_attacks(self) -> list[str]:
        """The attacks whose images are tried on other models, the main one first."""
        return sorted(self.profile.suite.transfer, key=lambda name: name != self.main)

    @cached_property
    def n(self) -> int:
        """How many images are attacked."""
        return len(self.models[0].attack(self.main))

    @cached_property
    def roots(self) -> list[Model]:
        """The dense networks."""
        return [model for model in self.models if model.is_dense]

    @cached_property
    def compressed(self) -> list[Model]:
        """All other models."""
        return [model for model in self.models if not model.is_dense]

    @cached_property
    def by_name(self) -> dict[str, Model]:
        """The models of the leaderboard by name."""
        return {model.name: model for model in self.models}

    def model(self, name: str) -> Model:
        """A model by name; UserError where it is not on the leaderboard."""
        if name not in self.by_name:
            raise UserError(f"{name} is not on the leaderboard of this run; run `dvc repro`")
        return self.by_name[name]

    def dense_of(self, model: Model) -> Model:
        """The dense network that a model descends from and is compared with."""
        return self.by_name[model.root]

    def descendants(self, root: Model) -> list[Model]:
        """The models that descend from a dense network, without it."""
        return [m for m in self.models if m.root == root.name and m is not root]

    @cached_property
    def groups(self) -> dict[str, list[Model]]:
        """Models that share a figure, their dense network first."""
        found: dict[str, list[Model]] = {}
        for model in self.compressed:
            found.setdefault(model.group, [self.dense_of(model)]).append(model)
        return found | {one.recipe: [one] for one in self.roots if not self.descendants(one)}

    @cached_property
    def places(self) -> dict[str, int]:
        """By name of model and family, the number of its colour; -1 for dense networks."""
        families = list(dict.fromkeys(model.family for model in self.compressed))
        found = {family: place for place, family in enumerate(families)} | {"dense": -1}
        return found | {model.name: found[model.family] for model in self.models}

    @cache  # noqa: B019 (a run lives as long as the stage)
    def robust(self, model: Model) -> pd.DataFrame:
        """Per image, what does most harm within the budget, and the distance (robust.union)."""
        main = self.main_attack
        return union(model.records, model.transfers.values(), main.norm, main.eps)

    def distances(self, model: Model) -> np.ndarray:
        """Smallest perturbation found that fools the model, by image `[n]`; infinite: none."""
        return self.robust(model).distance.to_numpy()

    @cache  # noqa: B019
    def verdict(self, model: Model) -> Verdict:
        """Whether the model's robust accuracy can be believed."""
        evidence = Evidence(
            model.records,
            self.main,
            len(self.classes),
            model.transfers,
            parent=None if model.is_dense else self.dense_of(model).attack(self.main),
            twin_agreement=model.card["twin_agreement"],
            pixels=self.clean_images[0].size,
        )
        return verdict(evidence)

    def in_doubt(self, model: Model) -> bool:
        """Whether robust accuracy and distances are upper bounds: a check is not passed."""
        return self.verdict(model).level != RELIABLE

    def studies_of(self, kind: str) -> dict[str, Any]:
        """The settings of the studies of one kind that have records, by name."""
        chosen = self.params.studies.items()
        return {n: study for n, study in chosen if study.study == kind and n in self.studies}

    def attack_names(self, model: Model) -> list[str]:
        """The attacks of a model's suite and the extra ones, without curves and probes."""
        names = model.records.attack.unique()
        return [str(name) for name in names if name not in RESERVED]

    @cached_property
    def chance(self) -> float:
        """The accuracy at which a network under the bit-flip attack counts as guessing."""
        labels = self.models[0].attack(self.main).label.tolist()
        return guessing(self.profile.flips.stop, len(self.classes), labels)

    @cache  # noqa: B019
    def flips(self, model: Model, variant: str = "untargeted") -> Reached | None:
        """Bits to chance, from the study of the model with most bits; None where there is none."""
        own = [one for one in self.studies_of("bitflip").items() if one[1].of == model.name]
        name, _ = max(own, key=lambda one: int(one[1].bits), default=(None, None))
        return None if name is None else to_chance(self.studies[name], self.chance, variant)

    @cached_property
    def swept(self) -> "Run":
        """The same on the images that settings of sweeps and compression curves are attacked on."""
        n = self.profile.sweep_images
        return self if n is None else self.first(n)

    def first(self, n: int) -> "Run":
        """The models and attackers of the run on its first n images; studies as they are."""

        def part(records: pd.DataFrame) -> pd.DataFrame:
            return records[records["index"] < n]

        models = [
            replace(
                model,
                records=part(model.records),
                transfers={key: part(table) for key, table in model.transfers.items()},
            )
            for model in self.models
        ]
        attackers = {source: part(table) for source, table in self.attackers.items()}
        return replace(self, models=models, attackers=attackers)


def in_order(records: pd.DataFrame) -> pd.DataFrame:
    """Records in the order of the images."""
    return records.sort_values("index", ignore_index=True)


def grouped(records: pd.DataFrame, column: str) -> dict[Any, pd.DataFrame]:
    """Records by the values of a column as they appear, each in the order of the images."""
    return {value: in_order(part) for value, part in records.groupby(column, sort=False)}
