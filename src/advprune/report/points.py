"""Points of the study `compression`, and models of the leaderboard beside them."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.core.params import FROM_DENSE
from advprune.evaluate.measures import clean_accuracy
from advprune.report.formats import number
from advprune.report.run import Model, Run, by

GREEDY = ("GAP_global", "GAP_layer")
AMOUNTS = {"compression", "sparsity", "finetune"}  # keys that do not make a variant


@dataclass(frozen=True, eq=False)
class Point:
    """A family at one setting, and its records.

    setting: as a mapping, keys without a value left out. white: records under each attack on
    itself, by name. transferred: records on images of its dense network, by attack.
    """

    family: str
    setting: dict[str, Any]
    sparsity: float
    white: dict[str, pd.DataFrame]
    transferred: dict[str, pd.DataFrame]

    @property
    def is_plain(self) -> bool:
        """Whether it is its family's plain form, not a variant of GAP."""
        return self.family not in GREEDY or set(self.setting) <= AMOUNTS

    @property
    def words(self) -> str:
        """Its setting without the fine-tuning."""
        return number({k: v for k, v in self.setting.items() if k != "finetune"})


def points(run: Run) -> dict[str, list[Point]]:
    """The points of all studies of the kind `compression`, by family, in params order."""
    found: dict[str, list[Point]] = {}
    for name, study in run.studies_of("compression").items():
        records = run.studies[name]
        for family, settings in study.points.items():
            for order, setting in enumerate(settings):
                rows = records[(records.family == family) & (records.order == order)]
                if rows.empty:
                    continue
                tables, start = by(rows, "attack"), FROM_DENSE
                white = {k: own for k, own in tables.items() if not k.startswith(start)}
                there = {k.removeprefix(start): own for k, own in tables.items() if k not in white}
                sparsity = float(rows.sparsity.iloc[0])
                point = Point(family, as_mapping(setting), sparsity, white, there)
                found.setdefault(family, []).append(point)
    return found


def point_of(run: Run, model: Model) -> Point:
    """A model of the leaderboard as a point."""
    white = {name: model.attack(name) for name in run.attacks}
    transferred = {name: model.transferred(name) for name in run.transfer_attacks}
    setting = as_mapping(run.params.setting(model.name))
    return Point(model.family, setting, model.card["sparsity"], white, transferred)


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a compression; keys without a value are left out."""
    mapping = setting if isinstance(setting, dict) else {"compression": setting}
    return {key: value for key, value in mapping.items() if value is not None}


def by_family(run: Run) -> dict[str, list[Point]]:
    """All points of each family on the same images: its models, then the study's points.

    Models: those of the study's network of a studied family, or fine-tuned after pruning.
    """
    studied = points(run)
    parents = {study.of for study in run.studies_of("compression").values()}
    found: dict[str, list[Point]] = {}
    for model in run.compressed:
        if model.parent in parents and model.do == "prune":
            point = point_of(run, model)
            if model.family in studied or "finetune" in point.setting:
                found.setdefault(model.family, []).append(point)
    for family, own in studied.items():
        found.setdefault(family, []).extend(own)
    return found


def nearest(run: Run, point: Point, controls: list[Point]) -> Point:
    """The control of the nearest clean accuracy; in a tie, the one at the same setting."""

    def distance(control: Point) -> tuple[int, bool]:
        hits = [clean_accuracy(one.white[run.main]).hits for one in (control, point)]
        return abs(hits[0] - hits[1]), control.setting != point.setting

    return min(controls, key=distance)
