"""How far an image must be changed to fool each model: distances, their tests, security curves."""

import numpy as np
import pandas as pd

from advprune.evaluate.robust import ROUNDING
from advprune.evaluate.statistics import rate
from advprune.report.formats import bounds
from advprune.report.results import results
from advprune.report.section import Chart, Model, Part, Parts, Run, section
from advprune.report.tables import AREA, ZERO, against_dense, explained, finite, rated

POINTS = 33  # budgets of a security curve, from 0 to twice the main attack's
COLUMNS = (
    *("model", "robust_difference", *bounds("robust_difference"), "robust_detectable"),
    *("p_against_dense", "distance_difference", *bounds("distance_difference")),
    *("detectable_distance", "p_distance", "area_accuracy", "verdict"),
)


@section("Distances", order=15)
def distances(run: Run) -> Parts:
    """Every model against its dense network, and accuracy over the budget."""
    norm = run.main_attack.norm
    measured = f"{norm}, in grey levels" if norm == "Linf" else f"{norm}, of pixels in [0, 1]"
    if run.compressed:
        yield Part(
            "Against the dense network",
            "Robust accuracy and distance minus those of the dense network, or of the control that "
            "the leaderboard names, on the same images (McNemar's test; Hodges–Lehmann estimate "
            f"and Wilcoxon's test; {measured}). Quantized, binary, clamped and randomized models "
            f"face attacks that their dense network does not. {ZERO} {AREA}. "
            f"{explained('all models of a dense network')} The band of the figures is the dense "
            "network's 95 % interval.",
            table_of(run),
        )
    for group, models in run.groups.items():
        data = pd.concat([curve(run, model) for model in models], ignore_index=True)
        axes = ("eps_axis", "accuracy", "model")
        chart = Chart(f"security-{group}", "line", data, *axes, interval=True)
        yield Part(f"Accuracy over the budget, {group}", chart=chart)


def table_of(run: Run) -> pd.DataFrame:
    """One row per model, those of compressed models with the tests against the dense network."""
    found = {m.name: finite(one.distance.detectable) for m, one in against_dense(run).items()}
    table = results(run)
    return table.assign(detectable_distance=table.model.map(found))[[*COLUMNS]]


def curve(run: Run, model: Model) -> pd.DataFrame:
    """The security curve of a model, from its distances."""
    found = run.distances(model)
    return pd.DataFrame(
        {"model": model.name, "eps_axis": float(eps)}
        | rated("accuracy", rate(found > eps + ROUNDING * (eps > 0)))
        for eps in np.linspace(0, 2 * run.main_attack.eps, POINTS)
    )
