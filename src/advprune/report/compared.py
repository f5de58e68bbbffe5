"""Comparisons of models with the margin of the settings, as columns of a table."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from math import isfinite
from typing import Any, TypeVar

import pandas as pd

from advprune.evaluate.compare import Compared, Comparison, Some, compare, corrected, with_control
from advprune.evaluate.distances import DistanceComparison, compare_distances
from advprune.evaluate.flips import FlipComparison
from advprune.evaluate.means import MeanComparison
from advprune.report.formats import with_interval
from advprune.report.run import Model, Run

Key = TypeVar("Key")
ZERO = "A misclassified image has distance 0, so a gain in clean accuracy is also one in distance."


def explained(tests: str) -> str:
    """The sentence below a table of comparisons: which tests were corrected together."""
    return (
        f"Intervals (95 %) and p-values are corrected for {tests} (Holm); detectable is the "
        "smallest difference that would be found with 80 % power."
    )


def compared(run: Run, first: pd.DataFrame, second: pd.DataFrame, side: str = "adv") -> Comparison:
    """Two tables of records on the same images, by the margin of the run's settings."""
    return compare(first, second, side, run.params.statistics.margin)


def compared_distances(first: pd.DataFrame, second: pd.DataFrame) -> DistanceComparison:
    """The distances of two tables of the union (`Run.robust`) on the same images."""
    return compare_distances(first.distance.to_numpy(), second.distance.to_numpy())


def jointly(tests: dict[Key, Some]) -> dict[Key, Some]:
    """The comparisons of one question, corrected together."""
    return dict(zip(tests, corrected(list(tests.values())), strict=True))


@dataclass(frozen=True)
class Against:
    """A model against its dense network on the same images, corrected for all such models."""

    clean: Comparison
    robust: Comparison
    distance: DistanceComparison


@cache
def against_dense(run: Run) -> dict[Model, Against]:
    """Every compressed model against its dense network: one question per dense network (Holm).

    A model of significantly lower clean accuracy that beats the dense network is compared with a
    control instead: a model of equal clean accuracy and of the same dense network. A model's parent
    and the models that are made from it are no controls.
    """
    found: dict[Model, Against] = {}
    for dense in run.roots:
        models = run.descendants(dense)
        clean: dict[Model, Comparison] = {}
        robust: dict[Model, Comparison] = {}
        distance: dict[Model, DistanceComparison] = {}
        for one in models:
            own, unlike = run.robust(one), (one.name, one.parent)
            others = [m for m in models if m.name not in unlike and m.parent != one.name]
            controls = {m.name: run.robust(m) for m in others}
            accurate, away = partial(compared, run, own), partial(compared_distances, own)
            far = away(run.robust(dense))
            clean[one] = compared(run, own, run.robust(dense), "clean")
            robust[one] = with_control(accurate(run.robust(dense)), own, controls, accurate)
            distance[one] = with_control(far, own, controls, away)
        clean, robust, distance = jointly(clean), jointly(robust), jointly(distance)
        found |= {one: Against(clean[one], robust[one], distance[one]) for one in models}
    return found


def columns(test: Compared, column: str = "difference") -> dict[str, Any]:
    """A comparison as columns: difference with interval, what could be shown, p, outcome.

    column: the name of the difference where it is one of accuracies.
    """
    column, detectable = units_of(test, column)
    found = with_interval(column, finite(test.difference), *test.interval)
    return found | {detectable: finite(test.detectable), "p": test.p, "outcome": test.outcome}


def tested(rows: Iterable[tuple[dict[str, Any], Compared | None]]) -> list[dict[str, Any]]:
    """Rows with the columns of their comparisons, corrected together; None: a row without one."""
    known = list(rows)
    joint = iter(corrected([test for _, test in known if test is not None]))
    return [row if test is None else row | columns(next(joint)) for row, test in known]


def units_of(test: Compared, column: str = "difference") -> tuple[str, str]:
    """The columns of a test's difference and of what could be shown, whose names say the unit."""
    if isinstance(test, FlipComparison):
        return "flips_difference", "detectable_flips"
    is_distance = isinstance(test, DistanceComparison)
    return ("distance_difference", "detectable_distance") if is_distance else (column, "detectable")


def size_of(run: Run, test: Compared) -> dict[str, int]:
    """n and seeds of a test: its images and trainings."""
    if isinstance(test, Comparison):
        return {"n": test.first.n, "seeds": 1}
    if isinstance(test, FlipComparison):  # of whole networks
        return {"n": run.n, "seeds": min(test.first.trainings, test.second.trainings)}
    if isinstance(test, MeanComparison):
        return {"n": test.mean.images if test.mean.images > 1 else run.n, "seeds": test.mean.seeds}
    return {"n": run.n, "seeds": 1}


def finite(value: float) -> float | None:
    """The value, None where it is infinite."""
    return value if isfinite(value) else None
