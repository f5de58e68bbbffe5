"""Transfer: every model on the images of every other model and of an attacker's networks."""

from math import inf

import numpy as np
import pandas as pd

from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.protocol import worst_of
from advprune.evaluate.transfer import transfer_success
from advprune.report.formats import listed
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.tables import Row, accuracies, rated


@section("Transfer", order=40)
def transfer(run: Run) -> Parts:
    """The matrix of sources and targets, and the published scenarios."""
    if not any(model.transfers for model in run.models):
        return
    yield Part(
        "Transfer between models",
        f"Accuracy of each target (column) on images crafted on each source (row) by "
        f"{run.main_words}; the diagonal is white-box.",
        chart=Chart("transfer", "heatmap", matrix(run), "target", "source", value="accuracy"),
    )
    yield Part(
        "Transfer scenarios",
        f"Accuracy on n = {run.n} images crafted on compressed networks by {run.main}, on the "
        f"dense one and an attacker's own by {listed(run.transfer_attacks)} (of an attacker's the "
        "more harmful counts). All sources: each image may come from any of these.",
        scenarios(run),
    )


def matrix(run: Run) -> pd.DataFrame:
    """One row per source and target under the main attack; own images are white-box."""
    used = {source for model in run.models for source, _ in model.transfers}
    sources = [model.name for model in run.models if model.name in used]
    sources += [name for name, attack in run.attackers if attack == run.main]
    return pd.DataFrame(
        {"source": source, "target": model.name, "accuracy": remnant_accuracy(records).value}
        for source in sources
        for model in run.models
        if len(records := model.transferred(run.main, source))
    )


def scenarios(run: Run) -> pd.DataFrame:
    """One row per compressed model: from and to its dense network, from models and attackers."""
    rows, main = [], run.main
    for model in (model for model in run.compressed if model.transfers):
        dense, there = run.dense_of(model), model.transferred(main)
        # int8 is left out of the mean: it is nearly the dense network itself.
        others = [m for m in run.descendants(dense) if m.family != "int8" and m is not model]
        between = [remnant_accuracy(model.transferred(main, other.name)).value for other in others]
        known = [value for value in between if value is not None]
        row: Row = {"model": model.name}
        row |= accuracies({"white-box": model.attack(main), "from dense": there})
        row |= {"success_rate:from dense": transfer_success(there, dense.attack(main)).value}
        more = {f"from dense, {name}": model.transferred(name) for name in run.transfer_attacks[1:]}
        row |= accuracies(more | {"to dense": dense.transferred(main, model.name)})
        row["accuracy:from compressed, mean"] = float(np.mean(known)) if known else None
        for name in run.params.attackers():
            tried = [model.transferred(attack, name) for attack in run.transfer_attacks]
            # Chosen by other draws of a randomized model than those that score it.
            worst = min(tried, key=lambda t: (t.chosen_margin > 0).mean() if len(t) else inf)
            row[f"accuracy:from {name}"] = remnant_accuracy(worst).value
        every, attacks = model.transfers.items(), run.transfer_attacks
        union = worst_of({key: table for key, table in every if key[1] in attacks})
        rows.append(row | rated("accuracy:all sources", remnant_accuracy(union)))
    return pd.DataFrame(rows)
