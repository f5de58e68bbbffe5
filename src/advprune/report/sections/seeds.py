"""Families whose result depends on training, over seeds: HYDRA, LWM, tickets, GAP, binary.

Every number is a mean over seeds and test images with the interval of `evaluate.crossed`, which
covers other seeds and other images. Two points are compared on the same images and on dense
networks of the same seeds: the differences are paired in both.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from advprune.evaluate.compare import ALPHA, AT_CHANCE, LOWER_CLEAN, corrected, right
from advprune.evaluate.crossed import Mean, MeanComparison, compare_means, mean
from advprune.evaluate.robust import union
from advprune.evaluate.statistics import Rate
from advprune.report.chart import Chart
from advprune.report.compared import columns, explained
from advprune.report.formats import bounds, budget, counted, listed, number
from advprune.report.run import Run, in_order
from advprune.report.section import Part, section

DENSE = "dense"  # the point without compression
# Families that learn which weights remain, and their controls.
CONTROLS = {
    "HYDRA": ("LWM",),
    "AWT": ("NTT", "magnitude_ticket", "random_ticket"),
}
DISTANCES = {"output_distance": "outputs", "kernel_distance": "tangent kernel"}
CLEAN = "clean_difference", *bounds("clean_difference")
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
def seeds(run: Run) -> list[Part]:
    """The points, learned masks against their controls, the search for tickets."""
    return [part for name in run.studies_of("seeds") for part in _parts(run, name)]


def _parts(run: Run, name: str) -> list[Part]:
    points = points_of(run, name)
    if not points:
        return []
    study = run.params.studies[name]
    (count, n), about = points[0].clean.shape, f"on {study.of}"
    attacks = list(dict.fromkeys([run.main, *study.settings.get("attacks", [])]))
    text = (
        f"Robust: worst case over {listed(attacks)} (eps {budget(run.main_attack.eps)}); n = {n} "
        f"test images, {counted(count, 'seed')}, each with its own dense network. Intervals cover "
        "other seeds and other images (two-way random effects). Area: under the security curve up "
        f"to twice the budget, compared with the dense networks'. {explained('all points')}"
    )
    axes, hover = ("point", "accuracy", "family"), ("sparsity", "seed_deviation")
    look: dict[str, Any] = {"interval": True, "panel": "images", "hover": hover}
    chart = Chart(f"sparsity-{name}", "points", over_sparsity(points), *axes, **look)
    parts = [Part(f"Accuracy over seeds, {about}", text, table_of(run, points), chart)]
    if len(table := pair_table(run, points)):
        words = (
            "Same sparsity, same dense networks; differences are paired by seed and image. "
            f"{explained('the pairs of a family')} A mask without trained weights is compared with "
            "the whole network, and with the same training without pruning."
        )
        parts.append(Part(f"Learned masks against their controls, {about}", words, table))
    history = run.studies.get(f"{name}.history", pd.DataFrame())
    if "kernel_distance" in history:
        axes = ("steps", "distance", "ticket")
        look = {"x_label": "search steps", "y_label": "squared distance", "reference": 1.0}
        chart = Chart(f"tickets-{name}", "line", search(history), *axes, panel="of", **look)
        words = (
            "Outputs and tangent kernel of tickets against the dense network at initialization: "
            "squared distance over squared norm, mean over seeds."
        )
        parts.append(Part(f"Search for tickets, {about}", words, None, chart, folded=True))
    return parts


@cache
def points_of(run: Run, name: str) -> list[Point]:
    """The dense networks, then the points of a study in params order."""
    records, given = run.studies[name], run.params.studies[name].settings["points"]
    settings: dict[str, dict[str, Any]] = {DENSE: {}}
    settings |= {key: as_mapping(one.get("setting")) for key, one in given.items()}
    found, eps = [], run.main_attack.eps
    for key, setting in settings.items():
        if len(own := records[records.point == key]):
            seeds_of = own.groupby("seed", sort=True)
            clean = [right(in_order(one[one.attack == run.main]), "clean") for _, one in seeds_of]
            whole = [union(one, [], run.main_attack.norm, eps) for _, one in seeds_of]
            robust = np.stack([right(one) for one in whole])
            area = np.stack([one.distance for one in whole]).clip(0, 2 * eps) / (2 * eps)
            zeros, family = float(seeds_of.sparsity.first().mean()), own.family.iloc[0]
            found.append(Point(key, family, setting, zeros, np.stack(clean), robust, area))
    return found


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a sparsity."""
    given = {} if setting is None else {"sparsity": setting}
    return setting if isinstance(setting, dict) else given


def ranged(column: str, found: Mean) -> dict[str, Any]:
    """A mean as a column with its interval; that of an accuracy is cut to [0, 1], and where all
    seeds and images agree it is Wilson's over images: none of n is not never."""
    ends: tuple[float | None, ...] = found.interval
    if column.endswith("accuracy") and found.error == 0:
        ends = Rate(round(found.value * found.images), found.images).interval
    elif column.endswith("accuracy"):
        ends = tuple(map(float, np.clip(found.interval, 0, 1)))
    return dict(zip((column, *bounds(column)), (found.value, *ends), strict=True))


def table_of(run: Run, points: list[Point]) -> pd.DataFrame:
    """One row per point: accuracies, and the area under the security curve against dense."""
    dense, others, margin = points[0], points[1:], run.params.statistics.margin
    tests = [guarded(run, one, dense, one.against(dense, "area", margin)) for one in others]
    against = dict(zip(others, corrected(tests), strict=True))
    rows = []
    for one in points:
        row: dict[str, Any] = {"point": one.name, "family": one.family}
        row |= {"sparsity:set": one.sparsity, "sparsity:found": one.zeros}
        row |= ranged("clean_accuracy", one.mean("clean"))
        row |= ranged("robust_accuracy", one.mean("robust"))
        row["seed_deviation"] = one.mean("robust").deviation
        row |= ranged("area_accuracy", one.mean("area"))
        if one in against:
            row |= columns(against[one], "area_difference")
        rows.append(row | {"setting": number(one.setting)})
    return pd.DataFrame(rows)


def guarded(run: Run, one: Point, other: Point, test: MeanComparison) -> MeanComparison:
    """A robust comparison, void where the first is at chance, or where its clean accuracy is
    significantly lower: then it may only be what it always answers."""
    clean = one.against(other, "clean", test.margin)
    lower = clean.p < ALPHA and clean.direction < 0
    return replace(test, void=AT_CHANCE if at_chance(run, one) else LOWER_CLEAN if lower else "")


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
        pairs = [(one, other) for one in learned for other in controls_of(points, one)]
        tests = [guarded(run, *pair, pair[0].against(pair[1], "robust", margin)) for pair in pairs]
        for (one, other), test in zip(pairs, corrected(tests), strict=True):
            row: dict[str, Any] = {"point": one.name, "control": other.name}
            row |= {"sparsity": one.sparsity, "robust_accuracy": one.mean("robust").value}
            row |= {"robust_accuracy:control": other.mean("robust").value}
            clean = replace(one.against(other, "clean", margin), tests=len(tests))
            row |= dict(zip(CLEAN, (clean.difference, *clean.interval), strict=True))
            rows.append(row | columns(test, "robust_difference"))
    return pd.DataFrame(rows)


def at_chance(run: Run, point: Point) -> bool:
    """Whether the clean accuracy's interval reaches down to guessing."""
    return point.mean("clean").interval[0] <= 1 / len(run.classes)


def search(history: pd.DataFrame) -> pd.DataFrame:
    """Distances of tickets from the dense network over search steps, means over seeds."""
    known = history.dropna(subset="kernel_distance")
    return pd.DataFrame(
        {"ticket": point, "steps": step, "of": words} | {"distance": own[column].mean()}
        for column, words in DISTANCES.items()
        for (point, step), own in known.groupby(["point", "step"], sort=False)
    )
