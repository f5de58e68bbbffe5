"""Accuracy over the steps of the main attack: whether it has converged."""

import pandas as pd

from advprune.evaluate.measures import remnant_accuracy
from advprune.report.run import grouped
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.tables import rated


@section("Convergence of the main attack", order=24)
def curves(run: Run) -> Parts:
    """One panel for each group of models."""
    marks = pd.DataFrame(
        {"group": group, "model": model.name, "steps": float(steps)}
        | rated("accuracy", remnant_accuracy(records))
        for group, models in run.groups.items()
        for model in models
        for steps, records in sorted(grouped(model.attack("curve_steps"), "steps").items())
    )
    axes = ("steps", "accuracy", "model", "group")
    yield Part(
        "Accuracy over attack steps",
        "If a curve still falls at its end, the main attack has not converged.",
        chart=Chart("steps", "line", marks, *axes, interval=True, ordered=True),
        folded=True,
    )
