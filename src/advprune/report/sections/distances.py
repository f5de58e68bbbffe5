"""How far an image must be changed to fool each model: distances, their tests, security curves."""

import numpy as np
import pandas as pd

from advprune.evaluate.robust import ROUNDING
from advprune.evaluate.statistics import rate
from advprune.report.chart import Chart
from advprune.report.compared import against_dense, finite
from advprune.report.results import rated, results
from advprune.report.run import Model, Run
from advprune.report.section import Part, section

POINTS = 33  # budgets of a security curve, from 0 to twice the main attack's
COLUMNS = ("model", "median_distance", "median_distance_low", "median_distance_high")


@section("Distances", order=15)
def distances(run: Run) -> list[Part]:
    """Every model against its dense network, and accuracy over the budget."""
    if not run.models:
        return []
    rows = []
    for model, tests in against_dense(run).items():
        test = tests.distance
        ends = dict(zip(("low", "high"), test.interval, strict=True))
        row = {"model": model.name, "median_distance:of dense": test.second[0]}
        row |= {"distance_difference": finite(test.difference)}
        row |= {f"distance_difference_{end}": finite(value) for end, value in ends.items()}
        row |= {"p": test.p, "against dense": test.outcome}
        row |= {"detectable_distance": finite(test.detectable)}
        rows.append(row)
    table = results(run)[[*COLUMNS, "area_accuracy"]]
    if rows:
        table = table.merge(pd.DataFrame(rows), how="left", on="model")
    text = (
        f"Smallest change of an image found that fools the model ({run.main_attack.norm}, in grey "
        "levels): median over the test images with 95 % bootstrap interval. Difference: how much "
        "farther than for the dense network, image by image (Hodges–Lehmann), with an interval "
        "that holds for all models of a dense network together; p: Wilcoxon's signed-rank test on "
        "the same images, Holm's correction. Detectable: the smallest difference that this number "
        "of images shows with 80 % power."
    )
    parts = [Part("Distances", text, table)]
    for group, models in run.groups.items():
        data = pd.concat([curve(run, model) for model in models], ignore_index=True)
        axes = ("eps", "accuracy", "model")
        chart = Chart(f"security-{group}", "line", data, *axes, interval=True)
        parts.append(Part(f"Accuracy over the budget, {group}", chart=chart))
    return parts


def curve(run: Run, model: Model) -> pd.DataFrame:
    """The security curve of a model, from its distances."""
    found = run.distances(model)
    rows = [
        {"model": model.name, "family": model.family, "eps": float(eps)}
        | rated("accuracy", rate(found > eps + ROUNDING * (eps > 0)))
        for eps in np.linspace(0, 2 * run.main_attack.eps, POINTS)
    ]
    return pd.DataFrame(rows)
