"""Accuracy over the steps of the main attack: whether it has converged."""

import pandas as pd

from advprune.evaluate.measures import remnant_accuracy
from advprune.report.chart import Chart
from advprune.report.results import rated
from advprune.report.run import Run
from advprune.report.section import Part, section

STEPS = (
    "Steps of {} at its budget; a curve that still falls at its end shows that the attack has not "
    "converged."
)


@section("Convergence", order=45)
def curves(run: Run) -> list[Part]:
    """Convergence over steps."""
    parts = []
    for group, models in run.groups.items():
        rows = pd.DataFrame(
            {"model": model.name, "family": model.family, "steps": value}
            | rated("accuracy", remnant_accuracy(records))
            for model in models
            for value, records in model.curve("curve_steps", "steps")
        )
        if len(rows):
            axes = ("steps", "accuracy", "model")
            chart = Chart(f"steps-{group}", "line", rows, *axes, interval=True, ordered=True)
            title = f"Accuracy over attack steps, {group}"
            parts.append(Part(title, STEPS.format(run.main), None, chart, folded=True))
    return parts
