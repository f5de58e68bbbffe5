"""Calibration: whether confidence matches accuracy, clean and under the main attack."""

from collections.abc import Iterator

import pandas as pd

from advprune.evaluate.calibration import BINS, reliability_bins
from advprune.report.chart import Chart
from advprune.report.results import results
from advprune.report.run import Model, Run
from advprune.report.section import Part, section

FEW = 5  # a bin of fewer images is not drawn
SIDES = {"clean": "clean", "adv": "attacked"}
SCORES = ("ece", "nll", "brier", "ece_attacked", "nll_attacked", "brier_attacked")


@section("Calibration", order=95)
def calibration(run: Run) -> Iterator[Part]:
    """ECE, negative log likelihood and Brier score of each model, and reliability diagrams."""
    if not run.models:
        return
    table = results(run)[["model", *SCORES]]
    for side, word in SIDES.items():
        means = [model.attack(run.main)[f"{side}_confidence"].mean() for model in run.models]
        table = table.assign(**{f"confidence:{word}": means})
    yield Part(
        "Calibration",
        f"ECE ({BINS} equal-width bins), negative log likelihood, Brier score and mean confidence, "
        f"on clean images and on those of {run.main}.",
        table,
        folded=True,
    )
    for group, models in run.groups.items():
        axes = ("confidence", "accuracy", "model", "side")
        if not len(bins := reliability(run, models)):
            continue
        yield Part(
            f"Reliability, {group}",
            f"Accuracy over mean confidence in each bin of at least {FEW} images.",
            chart=Chart(f"reliability-{group}", "line", bins, *axes, hover=("n",)),
            folded=True,
        )


def reliability(run: Run, models: list[Model]) -> pd.DataFrame:
    """The bins of some models on both sides, of those with enough images."""
    tables = [
        reliability_bins(model.attack(run.main), side).assign(model=model.name, side=word)
        for model in models
        for side, word in SIDES.items()
    ]
    found = pd.concat(tables, ignore_index=True)
    return found[found.n >= FEW].reset_index(drop=True)
