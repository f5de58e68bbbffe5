"""nn-prune's table: every setting of every sweep under each attack."""

from collections.abc import Iterator
from dataclasses import dataclass
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
        for family in dict.fromkeys(one.family for one in others):
            if len(own := [one for one in others if one.family == family]) > 1:
                marks, axes = curves(run, [dense, *own]), ("setting", "accuracy", "images")
                look: Row = {"x_label": family, "interval": True}
                chart = Chart(f"{name}-{family}", "line", marks, *axes, **look)
                yield Part(f"Remnant accuracy over {family}, {study.of}", chart=chart)


@dataclass(frozen=True, eq=False)
class Setting:
    """A row of the table: a family at a setting, and its records by attack."""

    family: str
    setting: str | None
    prune_ratio: float
    records: dict[str, pd.DataFrame]


def settings(run: Run, name: str) -> Iterator[Setting]:
    """The dense network, each setting of each family, and the int8 model of the same network."""
    records, study = run.studies[name], run.params.studies[name]
    dense, points = run.model(study.of), study.settings["points"]
    yield Setting("dense", None, 0.0, {a: dense.attack(a) for a in run.attacks})
    for (family, order), part in records.groupby(["family", "order"], sort=False):
        shown = number(points[family][int(str(order))])
        by_attack = {a: in_order(part[part.attack == a]) for a in run.attacks}
        yield Setting(str(family), shown, float(part.prune_ratio.iloc[0]), by_attack)
    for model in run.models:
        if model.family == "int8" and model.parent == dense.name:
            by_attack = {a: model.transferred(a) for a in run.attacks}
            if all(map(len, by_attack.values())):
                yield Setting(model.family, "transfer", 0.0, by_attack)


def curves(run: Run, found: list[Setting]) -> pd.DataFrame:
    """Accuracy under each attack and clean, from the dense network on: one row per mark."""
    measured = {name: (name, measures.remnant_accuracy) for name in run.attacks}
    measured["clean"] = run.main, measures.clean_accuracy
    return pd.DataFrame(
        {"images": name, "setting": one.setting or one.family}
        | rated("accuracy", measure(one.records[attack]))
        for name, (attack, measure) in measured.items()
        for one in found
    )


def table_of(run: Run, name: str) -> pd.DataFrame:
    """All settings, each against the dense network under each attack, corrected together."""
    dense, *others = settings(run, name)
    tests: dict[tuple[Setting, str], Comparison] = {}
    for one, attack in product(others, run.attacks):
        table, rest = one.records[attack], [other for other in others if other is not one]
        controls = {f"{other.family} {other.setting}": other.records[attack] for other in rest}
        test = compared(run, table, dense.records[attack])
        tests[one, attack] = with_control(test, table, controls, partial(compared, run, table))
    against, rows = jointly(tests), []
    for one in (dense, *others):
        row: Row = {"family": one.family, "setting": one.setting, "prune_ratio": one.prune_ratio}
        row["clean_accuracy"] = measures.clean_accuracy(one.records[run.main]).value
        for attack, table in one.records.items():
            found = rated("accuracy", measures.remnant_accuracy(table))
            own = against.get((one, attack))  # none of the dense network itself
            found |= {"against_dense": own and own.outcome, "p": own and own.p}
            found |= {"prediction_change_rate": measures.prediction_change_rate(table).value}
            found |= {"attack_success_rate": measures.attack_success_rate(table).value}
            row |= qualified(found, attack)
        rows.append(row)
    return pd.DataFrame(rows)
