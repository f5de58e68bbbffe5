"""The figure beside the answer: how far images must be changed, over clean accuracy."""

from advprune.report.results import results
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.tables import Row

AXES = ("clean_accuracy", "median_distance", "group")
HOVER = ("model", "verdict", "robust_accuracy")


@section("Distance over clean accuracy", order=5)
def tradeoff(run: Run) -> Parts:
    """One marker per model; nothing for a single network."""
    if len(run.models) < 2:
        return
    table = results(run)
    names: Row = {"size": "sparsity", "marker": "verdict", "label": "model"}
    yield Part(
        "Distance over clean accuracy",
        "One marker per model; larger is sparser"
        f"{', the shape shows the verdict' * (table.verdict.nunique() > 1)}.",
        chart=Chart("tradeoff", "points", table, *AXES, hover=HOVER, **names),
    )
