"""How far an image must be changed to fool each model: distances, their tests, security curves."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from advprune.evaluate.robust import ROUNDING
from advprune.evaluate.statistics import rate
from advprune.report.chart import Chart
from advprune.report.compared import against_dense, columns, explained
from advprune.report.formats import bounds
from advprune.report.results import rated, results
from advprune.report.run import Model, Run
from advprune.report.section import Part, section

POINTS = 33  # budgets of a security curve, from 0 to twice the main attack's
OWN = ("model", "median_distance", *bounds("median_distance"), "area_accuracy")
AGAINST = (
    *("median_distance:of dense", "distance_difference", *bounds("distance_difference")),
    *("p", "outcome", "detectable_distance"),
)


@section("Distances", order=15)
def distances(run: Run) -> Iterator[Part]:
    """Every model against its dense network, and accuracy over the budget."""
    if not run.models:
        return
    norm = run.main_attack.norm
    measured = f"{norm}, in grey levels" if norm == "Linf" else f"{norm}, of pixels in [0, 1]"
    yield Part(
        "Distances",
        f"The smallest change of an image found that fools the model ({measured}): median with "
        "95 % bootstrap interval, and the difference from the dense network, image by image "
        "(Hodges–Lehmann, Wilcoxon's signed-rank test). "
        f"{explained('all models of a dense network')}",
        table_of(run),
    )
    for group, models in run.groups.items():
        data = pd.concat([curve(run, model) for model in models], ignore_index=True)
        axes = ("eps_axis", "accuracy", "model")
        chart = Chart(f"security-{group}", "line", data, *axes, interval=True)
        yield Part(f"Accuracy over the budget, {group}", chart=chart)


def table_of(run: Run) -> pd.DataFrame:
    """One row per model, those of compressed models with the test against the dense network."""
    rows = [
        {"model": model.name, "median_distance:of dense": against.distance.second[0]}
        | columns(against.distance)
        for model, against in against_dense(run).items()
    ]
    tests = pd.DataFrame(rows, columns=["model", *AGAINST]).replace([-np.inf, np.inf], np.nan)
    tests = tests.rename(columns={"outcome": "against dense"})
    return results(run)[[*OWN]].merge(tests, how="left", on="model")


def curve(run: Run, model: Model) -> pd.DataFrame:
    """The security curve of a model, from its distances."""
    found = run.distances(model)
    return pd.DataFrame(
        {"model": model.name, "family": model.family, "eps_axis": float(eps)}
        | rated("accuracy", rate(found > eps + ROUNDING * (eps > 0)))
        for eps in np.linspace(0, 2 * run.main_attack.eps, POINTS)
    )
