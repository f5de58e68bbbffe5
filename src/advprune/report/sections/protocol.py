"""SAP under its published protocol and under attacks that know it.

Dhillon et al. (ICLR 2018): SAP gains over the dense network under one gradient step, gradients and
predictions averaged over draws. Athalye et al. (ICML 2018) broke a variant on convolutions; the
erratum (Dhillon and Carlini, arXiv 2010.00071) says that this attack does not break SAP as
published, and that a straight-through backward does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

import pandas as pd

from advprune.evaluate.compare import Comparison, corrected
from advprune.evaluate.measures import MOST_DRAWS, clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import rate
from advprune.report.chart import Chart
from advprune.report.compared import columns, compared, explained
from advprune.report.formats import budget, counted, number
from advprune.report.results import rated
from advprune.report.run import Run, by, in_order
from advprune.report.section import Part, section

SAP = "SAP"
FGSM, ITERATIVE = "fgsm", "iterative"
WORST = "worst case"
RULES = {
    "constant": "factors held constant",
    "scale": "through the scale",
    "identity": "straight through (BPDA)",
    None: "the model's own",
}


@dataclass(frozen=True, eq=False)
class Member:
    """A model of the protocol. family: None for the dense network itself. rows: its records."""

    name: str
    parent: str
    family: str | None
    setting: Any
    rows: pd.DataFrame

    @property
    def on_convolutions(self) -> bool:
        """Whether it is SAP on the outputs of convolutions, the variant that was attacked first."""
        return isinstance(self.setting, Mapping) and self.setting.get("where") == "conv"

    @property
    def fraction(self) -> float:
        """SAP's draws as a fraction of a map."""
        of = self.setting
        return float(of["fraction"] if isinstance(of, Mapping) else of)

    def over_budgets(self, attack: str) -> dict[float, pd.DataFrame]:
        """Its records under an attack by budget, rising."""
        found = by(self.rows[self.rows.attack == attack], "eps")
        return {float(eps): found[eps] for eps in sorted(found)}

    def adaptive(self, run: Run) -> dict[str, pd.DataFrame]:
        """Its records under each adaptive attack that it went through."""
        tables = {name: self.over_budgets(name) for name in run.profile.protocol.adaptive}
        return {name: next(iter(found.values())) for name, found in tables.items() if found}


@section("SAP's published protocol", order=60)
def protocol(run: Run) -> list[Part]:
    """The gain under FGSM and under adaptive attacks, and all members over the budget."""
    found = members(run)
    if not found:
        return []
    settings, n = run.profile.protocol, found[0].rows["index"].nunique()
    text = (
        f"FGSM with gradients and predictions averaged over {settings.draws} draws; the iterative "
        f"attack ({counted(settings.iterative.steps, 'step')}, "
        f"{counted(settings.iterative.draws, 'draw')} each) and the adaptive ones are scored by "
        f"mean logits over {run.params.attack.score_draws} draws; n = {n} test images."
    )
    parts = []
    if len(table := gains(run, found)):
        about = (
            f"SAP at the fraction nearest to 1 against its dense network. {text} p: McNemar on the "
            f"same images. {explained('the budgets of an attack')} Worst case: per image, over the "
            "adaptive attacks of one budget."
        )
        parts.append(Part("Does SAP's published gain survive adaptive attacks?", about, table))
    if len(table := adaptive_table(run, found)):
        about = (
            "Scored by mean logits, by a single draw, and with an image counted as broken only if "
            "at least 9 of 10 draws are wrong. Passes are per image."
        )
        parts.append(Part("Adaptive attacks", about, table))
    published = [m for m in found if m.family in (None, SAP, "dropout") and not m.on_convolutions]
    others = [member for member in found if member not in published]
    dense = [member for member in found if member.family is None][:1] if others else []
    for title, name, chosen in (
        ("SAP and dropout over the budget", "protocol", published),
        ("Controls and variants over the budget", "controls", [*dense, *others]),
    ):
        if chosen:
            axes, marks = ("eps", "accuracy", "member"), over_budgets(chosen)
            look: dict[str, Any] = {"interval": True, "hover": ("family", "setting")}
            chart = Chart(name, "line", marks, *axes, panel="attack", ordered=True, **look)
            parts.append(Part(title, text, wide(chosen), chart, folded=name == "controls"))
    return parts


def members(run: Run) -> list[Member]:
    """The members of all protocol studies with records, in params order."""
    return [
        Member(name, study.of, own.get("family"), own.get("setting"), rows)
        for key, study in run.studies_of("protocol").items()
        for name, own in study.members.items()
        if len(rows := run.studies[key][run.studies[key].member == name])
    ]


def pairs(found: list[Member]) -> list[tuple[Member, Member]]:
    """SAP as published at the fraction nearest to 1 (SAP-100), with its dense network."""
    chosen = []
    for parent in dict.fromkeys(member.parent for member in found):
        own = [member for member in found if member.parent == parent]
        dense = [member for member in own if member.family is None]
        sap = [member for member in own if member.family == SAP and not member.on_convolutions]
        if dense and sap:
            chosen.append((min(sap, key=lambda one: abs(one.fraction - 1)), dense[0]))
    return chosen


def worst_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per image, the row of the attack that leaves the smallest margin."""
    rows = pd.concat(tables.values(), ignore_index=True)
    return in_order(rows.loc[rows.groupby("index").adv_margin.idxmin()])


def by_budget(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, pd.DataFrame]]:
    """Attacks in groups of one budget each: a worst case over several budgets is meaningless."""
    groups: list[tuple[float, dict[str, pd.DataFrame]]] = []
    for name, table in tables.items():
        eps = float(table.eps.iloc[0])
        same = next((group for at, group in groups if isclose(at, eps, rel_tol=1e-6)), {})
        if not same:
            groups.append((eps, same))
        same[name] = table
    return [group for _, group in groups]


def gains(run: Run, found: list[Member]) -> pd.DataFrame:
    """SAP against its dense network: clean, under both attacks by budget, and the worst case."""
    rows: list[dict[str, Any]] = []

    def add(attack: str, tests: Mapping[float, Comparison]) -> None:
        for eps, test in tests.items():
            row: dict[str, Any] = {"member": sap.name, "parent": sap.parent, "attack": attack}
            row |= {"eps": eps} | rated("accuracy:SAP", test.first)
            row |= rated("accuracy:dense", test.second)
            rows.append(row | columns(test))

    for sap, dense in pairs(found):
        for attack in (FGSM, ITERATIVE):
            own, others = sap.over_budgets(attack), dense.over_budgets(attack)
            budgets = [eps for eps in own if eps > 0 and eps in others]
            if attack == FGSM and budgets:
                first = budgets[0]
                add("none", {0.0: compared(run, own[first], others[first], "clean")})
            tests = corrected([compared(run, own[eps], others[eps]) for eps in budgets])
            add(attack, dict(zip(budgets, tests, strict=True)))
        tables, others_of = sap.adaptive(run), dense.adaptive(run)
        for group in by_budget({name: t for name, t in tables.items() if name in others_of}):
            worst = worst_of({name: others_of[name] for name in group})
            test = compared(run, worst_of(group), worst)
            eps = float(next(iter(group.values())).eps.iloc[0])
            add(f"adaptive, {WORST}" if len(group) > 1 else next(iter(group)), {eps: test})
    return pd.DataFrame(rows)


def over_budgets(chosen: list[Member]) -> pd.DataFrame:
    """Accuracy of each member over the budget under both attacks: one row per mark of the chart."""
    rows = [
        {"member": one.name, "family": one.family or "dense", "setting": number(one.setting)}
        | {"attack": words, "eps": eps}
        | rated("accuracy", remnant_accuracy(records))
        for attack, words in ((FGSM, "one step (FGSM)"), (ITERATIVE, "iterative"))
        for one in chosen
        for eps, records in one.over_budgets(attack).items()
    ]
    return pd.DataFrame(rows)


def wide(chosen: list[Member]) -> pd.DataFrame:
    """One row per member and attack, one column per budget."""
    rows = []
    for member in chosen:
        for attack in (FGSM, ITERATIVE):
            row: dict[str, Any] = {"member": member.name, "parent": member.parent}
            row |= {"setting": number(member.setting), "attack": attack}
            for eps, records in member.over_budgets(attack).items():
                name = f"eps {budget(eps)}" if eps else "clean"
                row |= rated(f"accuracy:{name}", remnant_accuracy(records))
            rows.append(row)
    return pd.DataFrame(rows)


def adaptive_table(run: Run, found: list[Member]) -> pd.DataFrame:
    """Members under each adaptive attack with its schedule, and in the worst case per budget."""
    rows = []
    for member in found:
        tables = member.adaptive(run)
        for name, table in tables.items():
            one = run.profile.protocol.adaptive[name]
            rule = RULES.get(one.backward, str(one.backward))
            how = {"backward": rule, "loss": one.loss, "steps": one.steps, "draws": one.draws}
            rows.append(_scores(member, name, {name: table}) | how)
        groups = [group for group in by_budget(tables) if len(group) > 1]
        rows += [_scores(member, WORST, group) for group in groups]
    return pd.DataFrame(rows)


def _scores(member: Member, attack: str, parts: dict[str, pd.DataFrame]) -> dict[str, Any]:
    table = worst_of(parts)
    single = rate((table.adv_single_pred == table.label).to_numpy())
    most = rate((table.adv_wrong < MOST_DRAWS).to_numpy())
    row: dict[str, Any] = {"member": member.name, "attack": attack, "eps": float(table.eps.iloc[0])}
    row["clean_accuracy"] = clean_accuracy(table).value
    row |= rated("accuracy:mean logits", remnant_accuracy(table))
    row |= rated("accuracy:single draw", single) | rated("accuracy:9 of 10 draws", most)
    costs = ("gradients", "forwards")
    return row | {key: sum(float(one[key].mean()) for one in parts.values()) for key in costs}
