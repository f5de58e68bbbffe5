"""Families whose result depends on training, over seeds: HYDRA, LWM, tickets, GAP, binary.

Every number is a mean over seeds and test images with the interval of `evaluate.means`, which
covers other seeds and other images. Two points are compared on the same images and on dense
networks of the same seeds: the differences are paired in both.
"""

from dataclasses import replace
from functools import cache

import pandas as pd

from advprune.evaluate.seeds import CONTROLS, SeededPoint, controls_of, guarded, seeded_points
from advprune.pruning import chosen
from advprune.report.formats import budget, counted, listed, number, with_interval
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.sections.verdict import iterative
from advprune.report.tables import AREA, Row, columns, explained, jointly, rated, tested

DISTANCES = {"output_distance": "outputs", "kernel_distance": "tangent kernel"}


@section("Families over seeds", order=70)
def seeds(run: Run) -> Parts:
    """Of each study the points, learned masks against their controls, the search for tickets."""
    for name in run.studies_of("seeds"):
        if not (points := points_of(run, name)):
            continue
        study, (count, n) = run.params.studies[name], points[0].clean.shape
        attacks = list(dict.fromkeys([run.main, *study.settings.get("attacks", [])]))
        marks = pd.DataFrame(  # from dense to sparse
            {"point": one.name, "family": one.family, "sparsity": one.zeros, "images": side}
            | {"seed_deviation": one.mean(side).deviation}
            | rated("accuracy", one.mean(side))
            for side in ("clean", "robust")
            for one in sorted(points, key=lambda point: point.sparsity or 0.0)
        )
        axes = ("point", "accuracy", "family", "images")
        look: Row = {"interval": True, "hover": ("sparsity", "seed_deviation")}
        yield Part(
            f"Accuracy over seeds, on {study.of}",
            f"Robust: withstands {listed(attacks)} (eps {budget(run.main_attack.eps)}); n = {n} "
            f"test images, {counted(count, 'seed')}, each with a dense network of its own. "
            "Intervals cover other seeds and other images. A point is an upper bound where the "
            "model of the same family and dense network on the leaderboard is suspect or broken. "
            f"{AREA}; its difference is from the dense networks. {explained('all points')}",
            table_of(run, points),
            Chart(f"sparsity-{name}", "points", marks, *axes, **look),
        )
        yield Part(
            f"Learned masks against their controls, on {study.of}",
            "At the same sparsity and from the same dense networks, paired by seed and image; "
            "where only the mask was trained, against the whole network and the same training "
            f"without pruning as well. {explained('the pairs of a family')}",
            pair_table(run, points),
        )
        yield from iterative(run.studies[name], "point", "seed")
        history = run.studies.get(f"{name}.history", pd.DataFrame())
        if "kernel_distance" in history:
            axes = ("steps", "distance", "ticket", "of")
            look = {"x_label": "search steps", "y_label": "squared distance", "reference": 1.0}
            yield Part(
                f"Search for tickets, on {study.of}",
                "How far outputs and tangent kernel of a ticket are from those of the dense "
                "network at initialization: squared distance over squared norm, mean over seeds.",
                chart=Chart(f"tickets-{name}", "line", search(history), *axes, **look),
                folded=True,
            )


@cache
def points_of(run: Run, name: str) -> list[SeededPoint]:
    """The dense networks, then the points of a study in params order. A point is in doubt with any
    model of the leaderboard that is made as it is: by its family, from the same dense network."""
    study, main = run.params.studies[name], run.main_attack
    given = study.settings["points"]
    settings = {key: one.get("setting") for key, one in given.items()}
    doubts = {
        chosen(model.family, run.params.setting(model.name))[0]: (
            f"{model.name}, of the same family, is {run.verdict(model).level}"
        )
        for model in run.models
        if model.root == study.of and run.in_doubt(model)
    }
    points = seeded_points(run.studies[name], settings, main.norm, main.eps)
    return [replace(point, doubt=doubts.get(point.family, "")) for point in points]


def table_of(run: Run, points: list[SeededPoint]) -> pd.DataFrame:
    """One row per point: accuracies, and the area under the security curve against dense."""
    dense, margin, classes = points[0], run.params.statistics.margin, len(run.classes)
    against = jointly({one: guarded(one, dense, "area", margin, classes) for one in points[1:]})
    rows = []
    for one in points:
        row: Row = {"point": one.name, "family": one.family}
        row |= {"sparsity:set": one.sparsity, "sparsity:found": one.zeros}
        row |= rated("clean_accuracy", one.mean("clean"))
        row |= rated("robust_accuracy", one.mean("robust"))
        row |= {"seed_deviation": one.mean("robust").deviation}
        row |= rated("area_accuracy", one.mean("area"))
        row |= columns(against[one], "area_difference") if one in against else {}
        rows.append(row | {"setting": number(one.setting)})
    return pd.DataFrame(rows)


def pair_table(run: Run, points: list[SeededPoint]) -> pd.DataFrame:
    """One row per point and control, the robust differences of a family corrected together."""
    found: list[Row] = []
    margin, classes = run.params.statistics.margin, len(run.classes)
    for family in CONTROLS:
        learned, rows = [one for one in points if one.family == family], []
        pairs = [(one, other) for one in learned for other in controls_of(points, one)]
        for one, other in pairs:
            clean = replace(one.against(other, "clean", margin), tests=len(pairs))
            row: Row = {"point": one.name, "control": other.name, "sparsity": one.sparsity}
            row |= {"robust_accuracy": one.mean("robust").value}
            row |= {"robust_accuracy:control": other.mean("robust").value}
            row |= with_interval("clean_difference", clean.difference, *clean.interval)
            rows.append((row, guarded(one, other, "robust", margin, classes)))
        found += tested(rows)
    return pd.DataFrame(found)


def search(history: pd.DataFrame) -> pd.DataFrame:
    """Distances of tickets from the dense network over search steps, means over seeds."""
    known = history.dropna(subset="kernel_distance")
    return pd.DataFrame(
        {"ticket": point, "steps": step, "of": words} | {"distance": own[column].mean()}
        for column, words in DISTANCES.items()
        for (point, step), own in known.groupby(["point", "step"], sort=False)
    )
