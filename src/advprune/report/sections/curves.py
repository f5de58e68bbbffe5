"""Accuracy over the budget and over the steps of the main attack."""

from typing import Any

import pandas as pd

from advprune.evaluate.compare import compare, corrected
from advprune.evaluate.measures import remnant_accuracy
from advprune.report.chart import Chart
from advprune.report.results import rated
from advprune.report.run import Run
from advprune.report.section import Part, section

BUDGET = "The schedule of {}, with a step proportional to eps."
STEPS = (
    "Steps of {} at its budget; a curve that still falls at its end shows that the attack has not "
    "converged."
)
CURVES = (  # name of the charts, name and column of the records, title and text
    ("security", "curve_eps", "eps", "over the budget", BUDGET),
    ("steps", "curve_steps", "steps", "over attack steps", STEPS),
)


@section("Curves", order=45)
def curves(run: Run) -> list[Part]:
    """Security curves, convergence over steps, and where models differ at other budgets."""
    parts = []
    if len(table := beyond_budget(run)):
        text = (
            f"Budgets of {run.main}'s security curve at which a model differs from its dense "
            "network: McNemar on the same images, p corrected over all models and budgets of a "
            "dense network (Holm). Models without a row: not significant at any budget."
        )
        parts.append(Part("Differences at other budgets", text, table))
    for name, curve, column, words, text in CURVES:
        for group, models in run.groups.items():
            rows = pd.DataFrame(
                {"model": model.name, "family": model.family, column: value}
                | rated("accuracy", remnant_accuracy(records))
                for model in models
                for value, records in model.curve(curve, column)
            )
            if len(rows):
                axes = (column, "accuracy", "model")
                chart = Chart(f"{name}-{group}", "line", rows, *axes, interval=True, ordered=True)
                folded = name == "steps"
                title = f"Accuracy {words}, {group}"
                parts.append(Part(title, text.format(run.main), None, chart, folded))
    return parts


def beyond_budget(run: Run) -> pd.DataFrame:
    """One row per model and budget of the security curve with a significant difference."""
    rows = []
    for dense in run.roots:
        parent = dict(dense.curve("curve_eps", "eps"))
        found = [
            (model, eps, compare(records, parent[eps]))
            for model in run.descendants(dense)
            for eps, records in model.curve("curve_eps", "eps")
            if eps > 0 and eps in parent
        ]
        tests = corrected([test for *_, test in found])
        for (model, eps, _), test in zip(found, tests, strict=True):
            if test.differs:
                row: dict[str, Any] = {"model": model.name, "eps": eps}
                row |= rated("accuracy", test.first)
                row |= rated("accuracy:of dense", test.second)
                rows.append(row | {"difference": test.difference, "p": test.p})
    return pd.DataFrame(rows)
