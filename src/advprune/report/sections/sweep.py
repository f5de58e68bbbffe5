"""nn-prune's table: every setting of every sweep under each attack."""

from functools import partial
from itertools import product

import pandas as pd

from advprune.evaluate import measures
from advprune.evaluate.compare import Comparison, with_control
from advprune.report.formats import budget, listed, number
from advprune.report.run import in_order
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.sections.verdict import iterative
from advprune.report.tables import Row, compared, jointly, qualified, rated


@section("nn-prune's table", order=50)
def sweep(run: Run) -> Parts:
    """One table for each study of kind sweep."""
    run = run.swept
    schedules = [
        f"{name} (eps {budget(one.eps)}, {one.steps} steps of {budget(one.step)})"
        for name, one in run.attacks.items()
    ]
    for name, study in run.studies_of("sweep").items():
        yield Part(
            f"Settings on {study.of}",
            "Remnant accuracy (nn-prune's name for accuracy under attack) on "
            f"n = {run.n} images under {listed(schedules)}; int8 is scored on images crafted on "
            "the dense network. Each setting is compared with the dense network on the same "
            "images (McNemar), p corrected for all settings and attacks (Holm).",
            table_of(run, name),
        )
        yield from iterative(run.studies[name], "family", "value")
        dense, *others = settings(run, name)
        for family in dict.fromkeys(row["family"] for row, _ in others):
            if len(own := [one for one in others if one[0]["family"] == family]) > 1:
                marks, axes = curves(run, [dense, *own]), ("setting", "accuracy", "images")
                look: Row = {"x_label": family, "interval": True}
                chart = Chart(f"{name}-{family}", "line", marks, *axes, **look)
                yield Part(f"Remnant accuracy over {family}, {study.of}", chart=chart)


def settings(run: Run, name: str) -> list[tuple[Row, dict[str, pd.DataFrame]]]:
    """The dense network, each setting of each family, and the int8 model of the same network: its
    columns, and its records by attack."""
    records, study = run.studies[name], run.params.studies[name]
    dense, points = run.model(study.of), study.settings["points"]
    first: Row = {"family": "dense", "setting": None, "prune_ratio": 0.0}
    found = [(first, {a: dense.attack(a) for a in run.attacks})]
    for (family, order), part in records.groupby(["family", "order"], sort=False):
        row: Row = {"family": str(family), "setting": number(points[family][int(str(order))])}
        row |= {"prune_ratio": float(part.prune_ratio.iloc[0])}
        found.append((row, {a: in_order(part[part.attack == a]) for a in run.attacks}))
    for model in run.models:
        if model.family == "int8" and model.parent == dense.name:
            by_attack = {a: model.transferred(a) for a in run.attacks}
            if all(map(len, by_attack.values())):
                found.append((first | {"family": "int8", "setting": "transfer"}, by_attack))
    return found


def curves(run: Run, found: list[tuple[Row, dict[str, pd.DataFrame]]]) -> pd.DataFrame:
    """Accuracy under each attack and clean, from the dense network on: one row per mark."""
    measured = {name: (name, measures.remnant_accuracy) for name in run.attacks}
    measured["clean"] = run.main, measures.clean_accuracy
    return pd.DataFrame(
        {"images": name, "setting": row["setting"] or row["family"]}
        | rated("accuracy", measure(records[attack]))
        for name, (attack, measure) in measured.items()
        for row, records in found
    )


def table_of(run: Run, name: str) -> pd.DataFrame:
    """All settings, each against the dense network under each attack, corrected together."""
    (first, dense), *others = settings(run, name)
    tests: dict[tuple[int, str], Comparison] = {}
    for (place, (row, own)), attack in product(enumerate(others), run.attacks):
        controls = {
            f"{other['family']} {other['setting']}": records[attack]
            for other, records in others
            if other is not row
        }
        versus = partial(compared, run, own[attack])
        test = with_control(versus(dense[attack]), own[attack], controls, versus)
        tests[place, attack] = test
    against, rows = jointly(tests), []
    for place, (row, records) in enumerate([(first, dense), *others], -1):
        clean = measures.clean_accuracy(records[run.main]).value
        rows.append(whole := row | {"clean_accuracy": clean})
        for attack, table in records.items():
            found = rated("accuracy", measures.remnant_accuracy(table))
            own_test = against.get((place, attack))  # none of the dense network itself
            found |= {"against_dense": own_test and own_test.outcome}
            found |= {"p": own_test and own_test.p}
            found |= {"prediction_change_rate": measures.prediction_change_rate(table).value}
            found |= {"attack_success_rate": measures.attack_success_rate(table).value}
            whole.update(qualified(found, attack))
    return pd.DataFrame(rows)
