"""Points of compression curves: settings of a study, and models of the leaderboard."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.core.params import FROM_DENSE
from advprune.evaluate.measures import clean_accuracy
from advprune.report.formats import number
from advprune.report.run import Model, Run, grouped

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
    """All points of each family, on the same images: models of the leaderboard, then settings of
    compression studies in params order.

    Models count that are made from the network of a study, by a studied family or with fine-tuning.
    """
    found: dict[str, list[Point]] = {}
    studies = run.studies_of("compression")
    parents = {study.of for study in studies.values()}
    studied = {family for study in studies.values() for family in study.points}
    for model in run.compressed:
        if model.parent in parents and model.do == "prune":
            point = point_of(run, model)
            if model.family in studied or "finetune" in point.setting:
                found.setdefault(model.family, []).append(point)
    for name, study in studies.items():
        for (family, order), rows in run.studies[name].groupby(["family", "order"], sort=False):
            tables = grouped(rows, "attack")
            there = {
                key.removeprefix(FROM_DENSE): tables.pop(key)
                for key in list(tables)
                if key.startswith(FROM_DENSE)
            }
            setting = as_mapping(study.points[family][order])
            point = Point(str(family), setting, float(rows.sparsity.iloc[0]), tables, there)
            found.setdefault(point.family, []).append(point)
    return found


def nearest(run: Run, point: Point, controls: list[Point]) -> Point:
    """The control of the nearest clean accuracy; in a tie, the one at the same setting."""

    def distance(control: Point) -> tuple[int, bool]:
        hits = [clean_accuracy(one.white[run.main]).hits for one in (control, point)]
        return abs(hits[0] - hits[1]), control.setting != point.setting

    return min(controls, key=distance)
