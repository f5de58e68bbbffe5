"""Accuracy over the steps of the main attack: whether it has converged."""

from collections.abc import Iterator

import pandas as pd

from advprune.evaluate.measures import remnant_accuracy
from advprune.report.results import rated
from advprune.report.run import Run, by
from advprune.report.section import Chart, Part, section


@section("Convergence of the main attack", order=24)
def curves(run: Run) -> Iterator[Part]:
    """One figure for each group of models."""
    tables = {
        group: pd.DataFrame(
            {"model": model.name, "family": model.family, "steps": float(steps)}
            | rated("accuracy", remnant_accuracy(records))
            for model in models
            for steps, records in sorted(by(model.attack("curve_steps"), "steps").items())
        )
        for group, models in run.groups.items()
    }
    if any(map(len, tables.values())):
        said = "If a curve still falls at its end, the main attack has not converged."
        yield Part("Convergence of the main attack", said)
    axes = ("steps", "accuracy", "model")
    for group, rows in tables.items():
        chart = Chart(f"steps-{group}", "line", rows, *axes, interval=True, ordered=True)
        yield Part(f"Accuracy over attack steps, {group}", chart=chart, folded=True)
