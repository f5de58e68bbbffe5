"""What attacks cost, in passes of one image, and what AutoAttack's parts leave."""

import json

import pandas as pd

from advprune.core.attack_settings import KINDS
from advprune.evaluate.measures import remnant_accuracy
from advprune.report.study import Model, Study
from advprune.report.text import NOTHING

COSTS = ("gradients", "forwards")


def attack_names(study: Study) -> list[str]:
    """The attacks of all suites in order, the table's first, then the extra ones: those run."""
    suite, extras = study.params.active().suite, study.params.attack.extra
    names = [name for kind in KINDS for name in suite.of(kind)] + [extra.key for extra in extras]
    run = {name for model in study.models for name in model.records.attack.unique()}
    return [name for name in dict.fromkeys(names) if name in run]


def cost_table(study: Study) -> pd.DataFrame:
    """A row an attack, and one for the suite: passes per image, by kind of model.

    Where models of a kind differ (an attack may leave images that are fooled), from least to most.
    """
    kinds = [kind for kind in KINDS if any(m.kind == kind for m in study.models)]
    rows = [_cost_row(study, name, kinds) for name in attack_names(study)]
    whole = {"attack": "whole suite"} | {
        f"{kind}: {cost}": _span([study.metrics(m)[cost] for m in study.models if m.kind == kind])
        for kind in kinds
        for cost in COSTS
    }
    return pd.DataFrame([*rows, whole])


def _cost_row(study: Study, attack: str, kinds: list[str]) -> dict[str, str]:
    row = {"attack": attack}
    for kind in kinds:
        tables = [m.attack(attack) for m in study.models if m.kind == kind]
        for cost in COSTS:
            values = [float(table[cost].mean()) for table in tables if len(table)]
            row[f"{kind}: {cost}"] = _span(values)
    return row


def passes(value: float) -> str:
    """A number of passes: whole where it is large, to a tenth where it is small."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}".removesuffix(".0")


def _span(values: list[float]) -> str:
    if not values:
        return NOTHING
    low, high = passes(min(values)), passes(max(values))
    return low if low == high else f"{low}–{high}"


def breakdown_table(study: Study) -> pd.DataFrame:
    """Of attacks with parts (AutoAttack): how many images are still right after each part."""
    rows = [
        _breakdown_row(model, attack, parts)
        for model in study.models
        for attack, parts in _breakdowns(study, model).items()
    ]
    return pd.DataFrame(rows).fillna(NOTHING)


def _breakdowns(study: Study, model: Model) -> dict[str, dict[str, int]]:
    """Attack -> part -> images still right, from the first row of each attack's records."""
    found = {name: model.attack(name) for name in attack_names(study)}
    texts = {name: str(table.breakdown.iloc[0]) for name, table in found.items() if len(table)}
    return {name: json.loads(text) for name, text in texts.items() if text}


def _breakdown_row(model: Model, attack: str, parts: dict[str, int]) -> dict[str, str]:
    records = model.attack(attack)
    return (
        {"family": model.family, "base": model.base, "attack": attack, "n": str(len(records))}
        | {f"after {part}" if part != "clean" else part: str(n) for part, n in parts.items()}
        | {"scored again": str(remnant_accuracy(records).hits)}
    )
