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
    shape = ", the shape shows the verdict" * (table.verdict.nunique() > 1)
    names: Row = {"size": "sparsity", "marker": "verdict", "label": "model", "hover": HOVER}
    yield Part(
        "Distance over clean accuracy",
        f"One marker per model; larger is sparser{shape}.",
        chart=Chart("tradeoff", "points", table, *AXES, **names),
    )
