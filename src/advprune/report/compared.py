"""Comparisons as the report shows them: with the margin of the settings, in the same columns."""

from dataclasses import dataclass, replace
from functools import cache, partial
from math import isfinite
from typing import Any

import pandas as pd

from advprune.evaluate.compare import Compared, Comparison, compare, corrected, with_control
from advprune.evaluate.distances import DistanceComparison, compare_distances
from advprune.evaluate.faults import FlipComparison
from advprune.report.formats import bounds
from advprune.report.run import Model, Run

LOOSE = "not compared: random"  # the search follows noisy gradients


def explained(tests: str) -> str:
    """What a table of comparisons says: of which tests its figures hold together."""
    return (
        f"Differences have 95 % intervals that hold for {tests} together, and p is corrected for "
        "them (Holm); detectable: the smallest difference that is shown in 80 % of all cases."
    )


def compared(run: Run, first: pd.DataFrame, second: pd.DataFrame, side: str = "adv") -> Comparison:
    """Two tables of records on the same images, by the margin of the run's settings."""
    return compare(first, second, side, run.params.statistics.margin)


@dataclass(frozen=True)
class Against:
    """A model against its dense network on the same images, corrected for all such models."""

    clean: Comparison
    robust: Comparison
    distance: DistanceComparison


@cache
def against_dense(run: Run) -> dict[Model, Against]:
    """Every compressed model against its dense network: one question a dense network (Holm).

    Where a model of significantly lower clean accuracy is more robust or farther away than the
    dense network, one of equal clean accuracy takes the dense network's place, if there is one of
    the same dense network that is not made of it, nor it of that. A model that draws at random is
    never called farther away.
    """
    found: dict[Model, Against] = {}
    for dense in run.roots:
        models, own, far = run.descendants(dense), run.robust(dense), run.distances(dense)
        clean = corrected([compared(run, run.robust(one), own, "clean") for one in models])
        robust, distance = [], []
        for one in models:
            first = run.robust(one)
            others = [m for m in models if m.name not in (one.name, one.parent)]
            controls = {m.name: run.robust(m) for m in others if m.parent != one.name}
            accurate, away = partial(_accuracy, run, one), partial(_distance, run, one)
            robust.append(with_control(compared(run, first, own), first, controls, accurate))
            test = compare_distances(run.distances(one), far)
            if one.kind == "randomized":
                distance.append(replace(test, void=LOOSE))
            else:
                distance.append(with_control(test, first, controls, away))
        tests = map(Against, clean, corrected(robust), corrected(distance))
        found |= dict(zip(models, tests, strict=True))
    return found


def _accuracy(run: Run, model: Model, control: str) -> Comparison:
    return compared(run, run.robust(model), run.robust(run.model(control)))


def _distance(run: Run, model: Model, control: str) -> DistanceComparison:
    return compare_distances(run.distances(model), run.distances(run.model(control)))


def columns(test: Compared, column: str = "difference") -> dict[str, Any]:
    """A comparison as columns: difference with interval, what could be shown, p, outcome.

    column: the name of the difference where it is one of accuracies.
    """
    low, high = test.interval
    column, detectable = units_of(test, column)
    return {
        **dict(zip((column, *bounds(column)), (finite(test.difference), low, high), strict=True)),
        detectable: finite(test.detectable),
        **{"p": test.p, "outcome": test.outcome},
    }


def units_of(test: Compared, column: str = "difference") -> tuple[str, str]:
    """The columns of a test's difference and of what could be shown, whose names say the unit."""
    if isinstance(test, FlipComparison):
        return "flips_difference", "detectable_flips"
    is_distance = isinstance(test, DistanceComparison)
    return ("distance_difference", "detectable_distance") if is_distance else (column, "detectable")


def finite(value: float) -> float | None:
    """The value, None where it is infinite."""
    return value if isfinite(value) else None
