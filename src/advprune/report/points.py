"""Points of the studies `sweep` and `compression`: a family at one setting, under attack."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.core.params import CARRIED
from advprune.report.run import Model, Run, by


@dataclass(frozen=True, eq=False)
class Point:
    """A compressed network and its records: a point of a study or a model of the leaderboard.

    setting: as in params.yaml. white: records under each attack on itself, by name. transferred:
    records on images of its dense network, by attack.
    """

    family: str
    setting: Any
    prune_ratio: float
    sparsity: float
    white: dict[str, pd.DataFrame]
    transferred: dict[str, pd.DataFrame]


def points(run: Run, kind: str) -> dict[str, list[Point]]:
    """The points of all studies of a kind (`sweep`, `compression`), by family, in params order."""
    found: dict[str, list[Point]] = {}
    for name, study in run.studies_of(kind).items():
        for family, settings in study.points.items():
            rows = run.studies[name][lambda t, family=family: t.family == family]
            for order, setting in enumerate(settings):
                if len(own := rows[rows.order == order]):
                    found.setdefault(family, []).append(_point(family, setting, own))
    return found


def _point(family: str, setting: Any, rows: pd.DataFrame) -> Point:
    white: dict[str, pd.DataFrame] = {}
    transferred: dict[str, pd.DataFrame] = {}
    for name, table in by(rows, "attack").items():
        (transferred if name.startswith(CARRIED) else white)[name.removeprefix(CARRIED)] = table
    ratio, sparsity = (float(rows[column].iloc[0]) for column in ("prune_ratio", "sparsity"))
    return Point(family, setting, ratio, sparsity, white, transferred)


def point_of(run: Run, model: Model) -> Point:
    """A model of the leaderboard as a point."""
    white = {name: model.attack(name) for name in run.attacks}
    transferred = {name: model.transferred(name) for name in exchanged(run)}
    ratios = model.card["prune_ratio"], model.card["sparsity"]
    return Point(model.family, run.params.setting(model.name), *ratios, white, transferred)


def exchanged(run: Run) -> list[str]:
    """The attacks whose images dense networks and attackers send to all models, main one first."""
    return sorted(run.profile.suite.transfer, key=lambda name: name != run.main)
