"""Families whose result depends on training, over seeds: HYDRA, LWM, tickets, GAP, binary.

Every number is a mean over seeds and test images with the interval of `evaluate.crossed`, which
covers other seeds and other images. Two points are compared on the same images and on dense
networks of the same seeds: the differences are paired in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from advprune.evaluate.compare import ALPHA, AT_CHANCE, LOWER_CLEAN, right
from advprune.evaluate.crossed import Mean, MeanComparison, compare_means, mean
from advprune.evaluate.robust import union
from advprune.evaluate.statistics import Rate
from advprune.report.chart import Chart
from advprune.report.compared import columns, explained, jointly
from advprune.report.formats import budget, counted, listed, number, with_interval
from advprune.report.run import Run, in_order
from advprune.report.section import Part, section

DENSE = "dense"  # the point without compression
# Families that learn which weights remain, and their controls.
CONTROLS = {"HYDRA": ("LWM",), "AWT": ("NTT", "magnitude_ticket", "random_ticket")}
DISTANCES = {"output_distance": "outputs", "kernel_distance": "tangent kernel"}
Side = Literal["clean", "robust", "area"]


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the study: which images its networks have right, `[S, n]`, one row per seed.

    zeros: share of all weights and biases that is zero, the mean over seeds. area: distances as
    parts of twice the main attack's budget, at most 1; their mean is the area under the security
    curve, which tells networks apart that are all broken at the budget.
    """

    name: str
    family: str
    setting: dict[str, Any]
    zeros: float
    clean: np.ndarray
    robust: np.ndarray
    area: np.ndarray

    @property
    def sparsity(self) -> float | None:
        """The share of weights removed, as set; 0 of the dense network, None where not set."""
        return 0.0 if self.family == DENSE else self.setting.get("sparsity")

    @property
    def is_tuned(self) -> bool:
        """Whether weights were trained after pruning, or nothing was pruned."""
        return self.family == DENSE or any(self.setting.get(key) for key in ("finetune", "train"))

    def mean(self, side: Side) -> Mean:
        """Mean accuracy over seeds and images."""
        return mean(getattr(self, side))

    def against(self, other: "Point", side: Side, margin: float) -> MeanComparison:
        """Paired with another point by seed and image."""
        return compare_means(getattr(self, side), getattr(other, side), margin)


@section("Families over seeds", order=70)
def seeds(run: Run) -> Iterator[Part]:
    """Of each study the points, learned masks against their controls, the search for tickets."""
    for name in run.studies_of("seeds"):
        if points := points_of(run, name):
            yield from _parts(run, name, points)


def _parts(run: Run, name: str, points: list[Point]) -> Iterator[Part]:
    study, (count, n) = run.params.studies[name], points[0].clean.shape
    attacks = list(dict.fromkeys([run.main, *study.settings.get("attacks", [])]))
    axes, hover = ("point", "accuracy", "family", "images"), ("sparsity", "seed_deviation")
    yield Part(
        f"Accuracy over seeds, on {study.of}",
        f"Robust: worst case over {listed(attacks)} (eps {budget(run.main_attack.eps)}); n = {n} "
        f"test images, {counted(count, 'seed')}, each with its own dense network. Intervals cover "
        "other seeds and other images (two-way random effects). Area: under the security curve up "
        f"to twice the budget, compared with the dense networks'. {explained('all points')}",
        table_of(run, points),
        Chart(
            f"sparsity-{name}", "points", over_sparsity(points), *axes, interval=True, hover=hover
        ),
    )
    yield Part(
        f"Learned masks against their controls, on {study.of}",
        "Same sparsity, same dense networks; differences are paired by seed and image. "
        f"{explained('the pairs of a family')} A mask without trained weights is compared with the "
        "whole network, and with the same training without pruning.",
        pair_table(run, points),
    )
    history = run.studies.get(f"{name}.history", pd.DataFrame())
    if "kernel_distance" in history:
        axes = ("steps", "distance", "ticket", "of")
        look: dict[str, Any] = {"x_label": "search steps", "y_label": "squared distance"}
        yield Part(
            f"Search for tickets, on {study.of}",
            "Outputs and tangent kernel of tickets against the dense network at initialization: "
            "squared distance over squared norm, mean over seeds.",
            chart=Chart(f"tickets-{name}", "line", search(history), *axes, reference=1.0, **look),
            folded=True,
        )


@cache
def points_of(run: Run, name: str) -> list[Point]:
    """The dense networks, then the points of a study in params order."""
    records, given = run.studies[name], run.params.studies[name].settings["points"]
    settings: dict[str, dict[str, Any]] = {DENSE: {}}
    settings |= {key: as_mapping(one.get("setting")) for key, one in given.items()}
    found, norm, eps = [], run.main_attack.norm, run.main_attack.eps
    for key, setting in settings.items():
        if len(own := records[records.point == key]):
            by_seed = own.groupby("seed", sort=True)
            clean = [right(in_order(one[one.attack == run.main]), "clean") for _, one in by_seed]
            whole = [union(one, [], norm, eps) for _, one in by_seed]
            area = np.stack([one.distance for one in whole]).clip(0, 2 * eps) / (2 * eps)
            tables = np.stack(clean), np.stack([right(one) for one in whole]), area
            zeros = float(by_seed.sparsity.first().mean())
            found.append(Point(key, own.family.iloc[0], setting, zeros, *tables))
    return found


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a sparsity."""
    given = {} if setting is None else {"sparsity": setting}
    return setting if isinstance(setting, dict) else given


def ranged(column: str, found: Mean) -> dict[str, Any]:
    """A mean as a column with its interval; that of an accuracy is cut to [0, 1], and where all
    seeds and images agree it is Wilson's over images: none of n is not never."""
    low, high = np.clip(found.interval, 0, 1).tolist()
    if found.error == 0:
        low, high = Rate(round(found.value * found.images), found.images).interval
    return with_interval(column, found.value, low, high)


def table_of(run: Run, points: list[Point]) -> pd.DataFrame:
    """One row per point: accuracies, and the area under the security curve against dense."""
    dense, margin = points[0], run.params.statistics.margin
    others = {one: one.against(dense, "area", margin) for one in points[1:]}
    against = jointly({one: guarded(run, one, dense, test) for one, test in others.items()})
    rows = []
    for one in points:
        row: dict[str, Any] = {"point": one.name, "family": one.family}
        row |= {"sparsity:set": one.sparsity, "sparsity:found": one.zeros}
        row |= ranged("clean_accuracy", one.mean("clean"))
        row |= ranged("robust_accuracy", one.mean("robust"))
        row |= {"seed_deviation": one.mean("robust").deviation}
        row |= ranged("area_accuracy", one.mean("area"))
        if one in against:
            row |= columns(against[one], "area_difference")
        rows.append(row | {"setting": number(one.setting)})
    return pd.DataFrame(rows)


def guarded(run: Run, one: Point, other: Point, test: MeanComparison) -> MeanComparison:
    """A robust comparison, void where the first is at chance (the interval of its clean accuracy
    reaches down to guessing), or where its clean accuracy is significantly lower: then it may only
    be what it always answers."""
    clean = one.against(other, "clean", test.margin)
    lower = clean.p < ALPHA and clean.direction < 0
    guesses = one.mean("clean").interval[0] <= 1 / len(run.classes)
    return replace(test, void=AT_CHANCE if guesses else LOWER_CLEAN if lower else "")


def over_sparsity(points: list[Point]) -> pd.DataFrame:
    """One row per point and side, from dense to sparse; points without a sparsity are left out."""
    known = [one for one in points if one.sparsity is not None]
    return pd.DataFrame(
        {"point": one.name, "family": one.family, "sparsity": one.sparsity, "images": side}
        | {"seed_deviation": one.mean(side).deviation}
        | ranged("accuracy", one.mean(side))
        for side in ("clean", "robust")
        for one in sorted(known, key=lambda point: point.sparsity or 0.0)
    )


def controls_of(points: list[Point], one: Point) -> list[Point]:
    """Controls of a learned mask: of the same sparsity, trained afterwards like it; where no weight
    is trained the whole network, and the same training with nothing pruned."""
    if one.family not in CONTROLS or not one.sparsity:
        return []
    if not one.is_tuned:
        alike = [p for p in points if p.family == one.family and not p.is_tuned]
        return [points[0], *(whole for whole in alike if whole.sparsity == 0)]
    others = [p for p in points if p.family in CONTROLS[one.family] and p.is_tuned]
    return [p for p in others if p.sparsity == one.sparsity]


def pair_table(run: Run, points: list[Point]) -> pd.DataFrame:
    """One row per point and control, the robust differences of a family corrected together."""
    rows: list[dict[str, Any]] = []
    margin = run.params.statistics.margin
    for family in CONTROLS:
        learned = [one for one in points if one.family == family]
        tests = {
            (one, other): guarded(run, one, other, one.against(other, "robust", margin))
            for one in learned
            for other in controls_of(points, one)
        }
        for (one, other), test in jointly(tests).items():
            clean = replace(one.against(other, "clean", margin), tests=len(tests))
            row: dict[str, Any] = {"point": one.name, "control": other.name}
            row |= {"sparsity": one.sparsity, "robust_accuracy": one.mean("robust").value}
            row |= {"robust_accuracy:control": other.mean("robust").value}
            row |= with_interval("clean_difference", clean.difference, *clean.interval)
            rows.append(row | columns(test, "robust_difference"))
    return pd.DataFrame(rows)


def search(history: pd.DataFrame) -> pd.DataFrame:
    """Distances of tickets from the dense network over search steps, means over seeds."""
    known = history.dropna(subset="kernel_distance")
    return pd.DataFrame(
        {"ticket": point, "steps": step, "of": words} | {"distance": own[column].mean()}
        for column, words in DISTANCES.items()
        for (point, step), own in known.groupby(["point", "step"], sort=False)
    )
