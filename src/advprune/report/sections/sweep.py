"""nn-prune's table: every setting of every sweep under each attack, and its curves."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate import measures
from advprune.evaluate.compare import compare
from advprune.report.chart import Chart
from advprune.report.formats import budget, listed, number
from advprune.report.results import outcome, qualified, rated
from advprune.report.run import Run
from advprune.report.section import Part, section


@section("nn-prune's table", order=50)
def sweep(run: Run) -> list[Part]:
    """One table and one chart for each study of kind sweep."""
    return [part for name in run.studies_of("sweep") for part in _parts(run.swept, name)]


def _parts(run: Run, name: str) -> Iterator[Part]:
    study = run.params.studies[name]
    table = pd.DataFrame(_rows(run, name))
    attacks = [
        f"{key}: eps {budget(one.eps)}, {one.steps} steps" for key, one in run.attacks.items()
    ]
    yield Part(
        f"Settings on {study.of}",
        f"Remnant accuracy, as nn-prune calls it, of n = {run.n} images under {listed(attacks)}; "
        "int8 is scored on images crafted on the dense network.",
        table,
    )
    points = table[table.family.isin(study.settings["points"])]
    for family, own in points.groupby("family", sort=False):
        if len(own) > 1:
            yield Part(
                f"Remnant accuracy over settings of {family}",
                f"The dotted line is the dense network under {run.main}.",
                chart=Chart(
                    *(f"{name}-{family}", "line", _by_attack(run, own), "setting"),
                    y="remnant_accuracy",
                    series="attack",
                    ordered=True,
                    hover=("prune_ratio", "clean_accuracy"),
                    reference=float(table[f"accuracy:{run.main}"].iloc[0]),
                ),
                folded=True,
            )


def _by_attack(run: Run, rows: pd.DataFrame) -> pd.DataFrame:
    """Settings under each attack: one row per mark of the chart."""
    columns = ["setting", "prune_ratio", "clean_accuracy"]
    tables = [
        rows[columns].assign(attack=attack, remnant_accuracy=rows[f"accuracy:{attack}"])
        for attack in run.attacks
    ]
    return pd.concat(tables, ignore_index=True)


def _rows(run: Run, name: str) -> Iterator[dict[str, Any]]:
    """The dense network, each setting of each family, and the int8 model of the same network."""
    records, study = run.studies[name], run.params.studies[name]
    dense = run.model(study.of)
    yield _row(run, dense.name, "dense", None, {a: dense.attack(a) for a in run.attacks})
    points = study.settings["points"]
    for (family, order), part in records.groupby(["family", "order"], sort=False):
        by_attack = {a: part[part.attack == a].sort_values("index") for a in run.attacks}
        setting = points[family][int(str(order))]
        ratio = float(part.prune_ratio.iloc[0])
        yield _row(run, dense.name, str(family), setting, by_attack, ratio)
    for model in run.models:
        if model.family == "int8" and model.parent == dense.name:
            by_attack = {a: model.transferred(a) for a in run.attacks}
            yield _row(run, dense.name, model.family, "transfer", by_attack)


def _row(
    run: Run,
    dense: str,
    family: str,
    setting: Any,
    records: dict[str, pd.DataFrame],
    prune_ratio: float = 0.0,
) -> dict[str, Any]:
    shown = None if setting is None else number(setting)
    row: dict[str, Any] = {"family": family, "setting": shown, "prune_ratio": prune_ratio}
    row["clean_accuracy"] = measures.clean_accuracy(records[run.main]).value
    for attack, table in records.items():
        against = compare(table.reset_index(drop=True), run.model(dense).attack(attack))
        columns = rated("accuracy", measures.remnant_accuracy(table))
        if family != "dense":
            columns |= {"against_dense": outcome(against), "p": against.p}
        columns |= {"prediction_change_rate": measures.prediction_change_rate(table).value}
        columns |= {"attack_success_rate": measures.attack_success_rate(table).value}
        row |= qualified(columns, attack)
    return row
