"""Comparisons as the report shows them: with the margin of the settings, in the same columns."""

from functools import cache
from math import isfinite
from typing import Any

import pandas as pd

from advprune.evaluate.compare import Compared, Comparison, compare, corrected, with_control
from advprune.evaluate.crossed import MeanComparison
from advprune.report.run import Model, Run

# What a table of comparisons says below its own explanation.
EXPLAINED = (
    "Differences have simultaneous 95 % intervals; p is corrected for all tests of {} (Holm). "
    "Detectable: the smallest difference that so many images and tests show in 80 % of all cases."
)


def compared(
    run: Run, first: pd.DataFrame, second: pd.DataFrame, side: str = "adv"
) -> Comparison:
    """Two tables of records on the same images, by the margin of the run's settings."""
    return compare(first, second, side, run.params.statistics.margin)


@cache
def against_dense(run: Run, side: str = "adv") -> dict[Model, Comparison]:
    """Each compressed model against its dense network, all of a dense network corrected together.

    side: adv for robust accuracy, clean. Where a model of significantly lower clean accuracy is
    more robust than the dense network, another model of the same dense network and of equal clean
    accuracy takes its place, if there is one that is neither made of it nor its parent.
    """
    found: dict[Model, Comparison] = {}
    for dense in run.roots:
        tests = {}
        for model in (models := run.descendants(dense)):
            own = run.robust(model)
            tests[model] = compared(run, own, run.robust(dense), side)
            others = [m for m in models if m.parent != model.name and m.name != model.parent]
            controls = {m.name: run.robust(m) for m in others if m is not model}
            tests[model] = with_control(tests[model], own, controls)
        found |= dict(zip(tests, corrected(list(tests.values())), strict=True))
    return found


def columns(test: Comparison | MeanComparison, qualifier: str = "") -> dict[str, Any]:
    """The columns of a comparison: effect with interval, what could be shown, p and outcome."""
    low, high = test.interval
    row: dict[str, Any] = {"difference": test.difference}
    row |= {"difference_low": low, "difference_high": high}
    row |= {"detectable": finite(test.detectable), "p": test.p, "outcome": test.outcome}
    return {f"{name}:{qualifier}" if qualifier else name: one for name, one in row.items()}


def finite(value: float) -> float | None:
    """The value, None where it is infinite."""
    return value if isfinite(value) else None
