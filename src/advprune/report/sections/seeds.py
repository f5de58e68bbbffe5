"""Sparse networks that are trained to be robust, over seeds: HYDRA, LWM and tickets.

Every number is a mean over seeds and test images with the interval of `evaluate.crossed`, which
covers other seeds and other images. Two points are compared on the same images and on dense
networks of the same seeds: the differences are paired in both.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import pandas as pd

from advprune.evaluate.compare import ALPHA, AT_CHANCE, holm, right
from advprune.evaluate.crossed import Mean, mean
from advprune.evaluate.verdict import worst_case
from advprune.report.chart import Chart
from advprune.report.formats import budget, counted, listed, number, percent
from advprune.report.run import Run
from advprune.report.section import Part, section

DENSE = "dense"
# Families that learn which weights stay, and those that show what the learning is good for.
CONTROLS = {
    "HYDRA": ("LWM",),
    "AWT": ("NTT", "inherited_ticket", "magnitude_ticket", "random_ticket"),
}
Side = Literal["clean", "robust"]
COURSE = {"probe_clean": "clean", "probe_robust": "robust"}
CHOSEN = {"val_accuracy": "probe_clean", "val_robust_accuracy": "probe_robust"}
DISTANCES = {"output_distance": "outputs", "kernel_distance": "tangent kernel"}
LEAST = 1e-3  # smaller distances, and those that are negative by chance, are drawn here


@dataclass(frozen=True, eq=False)
class Point:
    """A point of the study: which images its networks have right, `[S, n]`, one row per seed.

    zeros: share of all weights and biases that is zero, the mean over seeds.
    """

    name: str
    family: str
    setting: dict[str, Any]
    zeros: float
    clean: np.ndarray
    robust: np.ndarray

    @property
    def sparsity(self) -> float | None:
        """The share of weights removed, as set; 0 of the dense network, None where it is not set."""
        return 0.0 if self.family == DENSE else self.setting.get("sparsity")

    @property
    def is_tuned(self) -> bool:
        """Whether weights were trained after pruning, or nothing was pruned."""
        return self.family == DENSE or any(self.setting.get(key) for key in ("finetune", "train"))

    def mean(self, side: Side) -> Mean:
        """Mean accuracy over seeds and images."""
        return mean(getattr(self, side))

    def less(self, other: "Point", side: Side) -> Mean:
        """Mean paired difference from another point."""
        return mean(getattr(self, side).astype(float) - getattr(other, side))


@section("Sparse networks over seeds", order=70)
def seeds(run: Run) -> list[Part]:
    """The points, learned masks against their controls, training and the search for tickets."""
    return [part for name in run.studies_of("seeds") for part in _parts(run, name)]


def _parts(run: Run, name: str) -> list[Part]:
    points = points_of(run, name)
    if not points:
        return []
    dense, *others = points
    sparse = [one for one in others if one.sparsity]
    study, many = run.params.studies[name], name if len(run.studies_of("seeds")) > 1 else ""
    attacks = list(dict.fromkeys([run.main, *study.settings.get("attacks", [])]))
    counts = dense.clean.shape
    text = (
        f"Robust: worst case over {listed(attacks)} (eps {budget(run.main_attack.eps)}); n = "
        f"{counts[1]} test images, {counted(counts[0], 'seed')}, each with its own dense network. "
        "Intervals cover other seeds and other images (two-way random effects)."
    )
    chart = Chart(
        f"sparsity{many and '-'}{many}",
        "points",
        over_sparsity(sparse, dense),
        x="sparsity",
        y="accuracy",
        series="family",
        low="accuracy_low",
        high="accuracy_high",
        panel="images",
        ordered=True,
        hover=("point", "seed_deviation"),
    )
    parts = [Part(f"Accuracy over sparsity {many}".strip(), text, table_of(points, dense), chart)]
    if len(table := pair_table(run, points)):
        words = (
            "Same sparsity, same dense network; differences are paired by seed and image. p: "
            "corrected for the pairs of a family (Holm)."
        )
        parts.append(Part("Learned masks against their controls", words, table))
    if len(table := sub_networks(points)):
        words = (
            "No weight is trained, only the mask and batch-norm: against the whole network and "
            "against the same training with nothing pruned. p is not corrected."
        )
        parts.append(Part("Sub-networks of given weights", words, table))
    return parts + _courses(run, name)


@cache
def points_of(run: Run, name: str) -> list[Point]:
    """The dense networks, then the points of a study in params order."""
    records = run.studies[name]
    settings = {DENSE: {}} | {
        key: as_mapping(point.get("setting"))
        for key, point in run.params.studies[name].points.items()
    }
    return [
        _point(run, own, setting)
        for key, setting in settings.items()
        if len(own := records[records.point == key])
    ]


def _point(run: Run, records: pd.DataFrame, setting: dict[str, Any]) -> Point:
    by_seed = [own for _, own in records.groupby("seed", sort=True)]
    clean = [right(own[own.attack == run.main].sort_values("index"), "clean") for own in by_seed]
    robust = [right(worst_case(own, run.main)) for own in by_seed]
    zeros, first = float(records.groupby("seed").sparsity.first().mean()), records.iloc[0]
    hits = np.stack(clean), np.stack(robust)
    return Point(first.point, first.family, setting, zeros, *hits)


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a sparsity."""
    return (
        setting if isinstance(setting, dict) else {} if setting is None else {"sparsity": setting}
    )


def of_mean(found: Mean, name: str) -> dict[str, float]:
    """`name`, `name_low`, `name_high`: an accuracy, its interval cut to [0, 1]."""
    low, high = np.clip(found.interval, 0, 1)
    return {name: found.value, f"{name}_low": float(low), f"{name}_high": float(high)}


def of_difference(found: Mean, name: str) -> dict[str, float]:
    """`name`, `name_low`, `name_high` of a difference."""
    low, high = found.interval
    return {name: found.value, f"{name}_low": low, f"{name}_high": high}


def table_of(points: list[Point], dense: Point) -> pd.DataFrame:
    """One row per point: clean and robust accuracy, robust accuracy against the dense network."""
    rows = []
    for one in points:
        row: dict[str, Any] = {"point": one.name, "family": one.family}
        row |= {"sparsity:set": one.sparsity, "sparsity:found": one.zeros}
        row |= of_mean(one.mean("clean"), "clean_accuracy")
        row |= of_mean(one.mean("robust"), "robust_accuracy")
        row["seed_deviation"] = one.mean("robust").deviation
        if one is not dense:
            row |= of_difference(one.less(dense, "robust"), "robust_difference")
        rows.append(row | {"setting": number(one.setting)})
    return pd.DataFrame(rows)


def over_sparsity(points: list[Point], dense: Point) -> pd.DataFrame:
    """One row per point and side, the dense network at sparsity 0."""
    rows: list[dict[str, Any]] = [
        {"point": one.name, "family": one.family, "sparsity": one.sparsity, "images": side}
        | {"seed_deviation": one.mean(side).deviation}
        | of_mean(one.mean(side), "accuracy")
        for side in ("clean", "robust")
        for one in [dense, *sorted(points, key=lambda point: point.sparsity or 0.0)]
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Pair:
    """A point against a control. p: of the robust difference. void: both are at chance."""

    point: Point
    control: Point
    p: float
    void: bool

    @property
    def outcome(self) -> str:
        """higher, lower, not significant, or at chance."""
        if self.void or self.p >= ALPHA:
            return AT_CHANCE if self.void else "not significant"
        return "higher" if self.point.less(self.control, "robust").value > 0 else "lower"


def pairs(run: Run, points: list[Point], family: str) -> list[Pair]:
    """A family's points against controls of the same sparsity, both tuned or neither.

    p-values are corrected over the family's pairs (Holm), those at chance apart.
    """
    found = [
        Pair(one, other, one.less(other, "robust").p, all(_at_chance(run, p) for p in (one, other)))
        for one in points
        if one.family == family
        for other in points
        if other.family in CONTROLS[family] and _comparable(one, other)
    ]
    rest = iter(holm([pair.p for pair in found if not pair.void]))
    return [pair if pair.void else replace(pair, p=next(rest)) for pair in found]


def _at_chance(run: Run, point: Point) -> bool:
    return point.mean("clean").interval[0] <= 1 / len(run.classes)


def _comparable(one: Point, other: Point) -> bool:
    return all(getattr(one, k) == getattr(other, k) for k in ("sparsity", "is_tuned"))


def pair_table(run: Run, points: list[Point]) -> pd.DataFrame:
    """One row per point and control."""
    return pd.DataFrame(
        _beside(pair.point, pair.control) | {"p": pair.p, "outcome": pair.outcome}
        for family in CONTROLS
        for pair in pairs(run, points, family)
    )


def _beside(one: Point, other: Point) -> dict[str, Any]:
    row: dict[str, Any] = {"point": one.name, "control": other.name, "sparsity": one.sparsity}
    row |= {"robust_accuracy": one.mean("robust").value}
    row |= {"robust_accuracy:control": other.mean("robust").value}
    row |= of_difference(one.less(other, "clean"), "clean_difference")
    return row | of_difference(one.less(other, "robust"), "robust_difference")


def sub_networks(points: list[Point]) -> pd.DataFrame:
    """Points whose weights are those of their dense network, beside it and with nothing pruned."""
    rows = []
    for one in points:
        if one.is_tuned or not one.sparsity:
            continue
        alike = [w for w in points if w.family == one.family and not w.is_tuned]
        for other in [points[0], *(whole for whole in alike if whole.sparsity == 0)]:
            rows.append(_beside(one, other) | {"p": one.less(other, "robust").p})
    return pd.DataFrame(rows)


def _courses(run: Run, name: str) -> list[Part]:
    """Training over epochs, one chart per family that learns its mask, and the search for tickets."""
    history, parts = run.studies.get(f"{name}.history", pd.DataFrame()), []
    if history.empty:
        return []
    for family, controls in CONTROLS.items():
        rows = course(history[history.family.isin([family, *controls, DENSE])])
        if set(rows.point) - {DENSE}:
            chart = Chart(
                f"training-{family}",
                "line",
                rows,
                x="epoch",
                y="accuracy",
                series="point",
                panel="images",
            )
            text = (
                "Means over seeds on validation images, phases of training one after another. The "
                "last epoch is taken; no test image chooses."
            )
            parts.append(Part(f"Training of {family} and its controls", text, None, chart, True))
    if len(rows := search(run, name)):
        chart = Chart(
            "tickets",
            "line",
            rows,
            x="steps",
            y="distance",
            series="ticket",
            low="distance_low",
            high="distance_high",
            panel="of",
            log_y=True,
            reference=1.0,
            x_label="search steps",
            y_label="squared distance",
        )
        text = (
            "Outputs and tangent kernel of tickets against the dense network at initialization: "
            "squared distance over squared norm, mean and range over seeds."
        )
        parts.append(Part("Search for tickets", text, None, chart, True))
    return parts


def course(history: pd.DataFrame) -> pd.DataFrame:
    """Accuracy on validation images over epochs, the phases of a training one after another."""
    found = []
    for point, own in history.groupby("point", sort=False):
        if point == DENSE:  # its accuracies are those by which its epoch was chosen
            own = own.drop(columns=list(COURSE), errors="ignore").rename(columns=CHOSEN)
        columns = [column for column in COURSE if column in own]
        if own.empty or not columns or "epoch" not in own:
            continue
        means = own.groupby(["phase", "epoch"], sort=False)[columns].mean()
        means = means.dropna(how="all").reset_index(drop=True)
        for column in columns:
            found += [
                {"point": point, "epoch": epoch + 1, "images": COURSE[column], "accuracy": value}
                for epoch, value in means[column].items()
            ]
    return pd.DataFrame(found, columns=["point", "epoch", "images", "accuracy"])


def search(run: Run, name: str) -> pd.DataFrame:
    """Distances from the dense network over the steps of the search; empty without tickets."""
    history = run.studies[f"{name}.history"]
    if "kernel_distance" not in history:
        return pd.DataFrame()
    known, rows = history.dropna(subset="kernel_distance"), []
    settings = run.params.studies[name].points
    for (point, family, step), own in known.groupby(["point", "family", "step"], sort=False):
        sparsity = as_mapping(settings[point].get("setting")).get("sparsity")
        for column, words in DISTANCES.items():
            values = own[column].clip(lower=LEAST)
            rows.append(
                {"ticket": f"{family} {percent(sparsity)} %", "steps": int(step), "of": words}
                | {"distance": values.mean(), "distance_low": values.min()}
                | {"distance_high": values.max()}
            )
    return pd.DataFrame(rows)
