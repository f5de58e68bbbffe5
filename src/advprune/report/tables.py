"""What was found as raw columns of a table: rates, and models against their dense network or a
control, with intervals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from math import isfinite
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from advprune.evaluate.compare import Compared, Comparison, Some, compare, corrected, with_control
from advprune.evaluate.distances import DistanceComparison, compare_distances
from advprune.evaluate.flips import FlipComparison
from advprune.evaluate.means import Mean
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.formats import with_interval
from advprune.report.run import Model, Run

Key = TypeVar("Key")
Row = dict[str, Any]  # of a table: values by column
AREA = "Area: mean accuracy over all budgets up to twice the main attack's"
ZERO = "A misclassified image has distance 0, so a gain in clean accuracy is also one in distance."


def explained(tests: str) -> str:
    """The sentence below a table of comparisons: which tests were corrected together."""
    return (
        "Intervals (95 %), p and the smallest detectable difference (80 % power) are corrected for "
        f"{tests} together (Holm)."
    )


def rated(column: str, found: Rate | Mean) -> Row:
    """A rate, or a mean of rates, as a column with its interval, not rounded; that of a mean is cut
    to [0, 1], or Wilson's over images where all seeds agree: none of n is not never."""
    ends: Any = found.interval
    if isinstance(found, Mean) and found.agree:
        ends = Rate(round(found.value * found.images), found.images).interval
    elif isinstance(found, Mean):
        ends = np.clip(ends, 0, 1).tolist()
    return with_interval(column, found.value, *ends)


def accuracies(tables: Mapping[str, pd.DataFrame]) -> Row:
    """The accuracy of several records as columns `accuracy:<name>` with their intervals."""
    row: Row = {}
    for name, records in tables.items():
        row |= rated(f"accuracy:{name}", remnant_accuracy(records))
    return row


def qualified(columns: Row, qualifier: str) -> Row:
    """The same columns under the name `quantity:qualifier`."""
    return {f"{name}:{qualifier}": value for name, value in columns.items()}


def compared(run: Run, first: pd.DataFrame, second: pd.DataFrame, side: str = "adv") -> Comparison:
    """Two tables of records on the same images, by the margin of the run's settings."""
    return compare(first, second, side, run.params.statistics.margin)


def jointly(tests: dict[Key, Some]) -> dict[Key, Some]:
    """The comparisons of one question, corrected together."""
    return dict(zip(tests, corrected(list(tests.values())), strict=True))


def columns(test: Compared, column: str = "difference") -> Row:
    """A comparison as columns: difference with interval, what could be shown, p, outcome; column:
    the name of a difference of accuracies."""
    column, detectable = units_of(test, column)
    found = with_interval(column, finite(test.difference), *test.interval)
    return found | {detectable: finite(test.detectable), "p": test.p, "outcome": test.outcome}


def tested(rows: Iterable[tuple[Row, Compared | None]]) -> list[Row]:
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


def finite(value: float) -> float | None:
    """The value, None where it is infinite."""
    return value if isfinite(value) else None


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
    control instead: of equal clean accuracy and the same dense network, neither its parent nor made
    from it. Numbers of models in doubt are upper bounds, on which no outcome rests, and so are the
    distances of randomized models, on which the search is less certain.
    """

    def distances(own: pd.DataFrame, other: pd.DataFrame) -> DistanceComparison:
        return compare_distances(own.distance.to_numpy(), other.distance.to_numpy())

    def bounded(test: Some, one: Model, dense: Model) -> Some:
        pair, far = (
            (one, run.by_name.get(test.control, dense)),
            isinstance(test, DistanceComparison),
        )
        first, second = (run.in_doubt(m) or (far and m.kind == "randomized") for m in pair)
        return replace(test, bounds=(first, second))

    found: dict[Model, Against] = {}
    for dense in run.roots:
        models, base = run.descendants(dense), run.robust(dense)
        clean: list[Comparison] = []
        robust: list[Comparison] = []
        distance: list[DistanceComparison] = []
        for one in models:
            own, unlike = run.robust(one), (one.name, one.parent)
            others = [m for m in models if m.name not in unlike and m.parent != one.name]
            controls = {m.name: run.robust(m) for m in others}
            rates, far = partial(compared, run, own), partial(distances, own)
            clean.append(rates(base, "clean"))
            robust.append(bounded(with_control(rates(base), own, controls, rates), one, dense))
            distance.append(bounded(with_control(far(base), own, controls, far), one, dense))
        tests = zip(corrected(clean), corrected(robust), corrected(distance), strict=True)
        found |= {one: Against(*three) for one, three in zip(models, tests, strict=True)}
    return found
