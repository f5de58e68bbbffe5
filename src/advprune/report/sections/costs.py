"""What the attacks cost in passes per image, and accuracy after each part of AutoAttack."""

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate.measures import remnant_accuracy
from advprune.report.formats import with_interval
from advprune.report.run import Run
from advprune.report.section import Part, section

SUITE = "suite and checks"


@section("Costs", order=110)
def costs(run: Run) -> Iterator[Part]:
    """Passes per attack and kind of model; AutoAttack part by part."""
    yield Part(
        "Passes per image",
        "Passes through the network per image: median, minimum and maximum over the models of a "
        "kind; every draw counts.",
        passes(run),
        folded=True,
    )
    yield Part(
        "AutoAttack, part by part",
        "Images still classified correctly after each part, and when scored again.",
        breakdown(run),
        folded=True,
    )


def passes(run: Run) -> pd.DataFrame:
    """One row per attack and kind of model, and one per kind for all, with probes and curves."""
    rows = []
    for kind in dict.fromkeys(model.kind for model in run.models):
        models = [model for model in run.models if model.kind == kind]
        names = dict.fromkeys(name for model in models for name in run.attack_names(model))
        tables = {name: [model.attack(name) for model in models] for name in names}
        tables[SUITE] = [run.robust(model) for model in models]
        for name, own in tables.items():
            if known := [table for table in own if len(table)]:
                row: dict[str, Any] = {"kind": kind, "attack": name, "models": len(known)}
                for cost in ("gradients", "forwards"):
                    means = pd.Series([float(table[cost].mean()) for table in known])
                    row |= with_interval(cost, means.median(), means.min(), means.max())
                rows.append(row)
    return pd.DataFrame(rows)


def breakdown(run: Run) -> pd.DataFrame:
    """Of attacks with parts: how many images are still classified correctly after each part."""
    rows = []
    for model in run.models:
        for table in map(model.attack, run.attack_names(model)):
            if text := str(table.breakdown.iloc[0]):  # part -> images still right
                row: dict[str, Any] = {"model": model.name, "attack": table.attack.iloc[0]}
                row["n"], left = len(table), json.loads(text).items()
                row |= {"clean" if part == "clean" else f"after {part}": n for part, n in left}
                rows.append(row | {"scored again": remnant_accuracy(table).hits})
    return pd.DataFrame(rows)
