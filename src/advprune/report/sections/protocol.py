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

import numpy as np
import pandas as pd

from advprune.core.params import AttackSettings
from advprune.evaluate.compare import Comparison, compare, corrected
from advprune.evaluate.measures import MOST_DRAWS, clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import rate
from advprune.report.chart import Chart
from advprune.report.formats import budget, counted, number, p_text, points
from advprune.report.results import outcome, rated
from advprune.report.run import Run
from advprune.report.section import Part, section

SAP = "SAP"
FGSM, ITERATIVE = "fgsm", "iterative"
WORST = "worst case"
RULES = {
    "constant": "factors held constant",
    "scale": "through the scale",
    "identity": "straight through (BPDA)",
    None: "the model's own rule",
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
    def is_published(self) -> bool:
        """Whether it is a line of the published figure, and not a control or variant."""
        return self.family in (None, SAP, "dropout") and not self.on_convolutions

    @property
    def fraction(self) -> float:
        """SAP's draws as a fraction of a map."""
        of = self.setting["fraction"] if isinstance(self.setting, Mapping) else self.setting
        return float(of)

    def under(self, attack: str) -> pd.DataFrame:
        """Its records under an attack of one budget, by image; empty where it was not run."""
        return self.rows[self.rows.attack == attack].sort_values("index", ignore_index=True)

    def over_budgets(self, attack: str) -> dict[float, pd.DataFrame]:
        """Its records under an attack by budget, rising."""
        parts = self.rows[self.rows.attack == attack].groupby("eps", sort=True)
        found = {float(eps): rows.sort_values("index", ignore_index=True) for eps, rows in parts}
        return found

    def adaptive(self, run: Run) -> dict[str, pd.DataFrame]:
        """Its records under each adaptive attack that it went through."""
        found = {name: self.under(name) for name in run.profile.protocol.adaptive}
        return {name: rows for name, rows in found.items() if len(rows)}


@section("SAP's published protocol", order=60)
def protocol(run: Run) -> list[Part]:
    """The gain under FGSM, what adaptive attacks leave of it, all members over the budget."""
    found = members(run)
    if not found:
        return []
    settings, n = run.profile.protocol, found[0].rows["index"].nunique()
    text = (
        f"FGSM with gradients and predictions averaged over {settings.draws} draws; the iterative "
        f"attack ({counted(settings.iterative.steps, 'step')}, "
        f"{counted(settings.iterative.draws, 'draw')} a step) and the adaptive ones are scored by "
        f"mean logits over {run.params.attack.score_draws} draws; n = {n} test images."
    )
    parts = []
    if len(table := gains(run, found)):
        about = (
            f"SAP at the fraction nearest to 1 against its dense network. {text} p: McNemar on the "
            "same images, corrected for the budgets of an attack (Holm). Worst case: per image over "
            f"the adaptive attacks of one budget. {_answer(table)}"
        )
        parts.append(Part("Does SAP's published gain survive?", about, table))
    adaptive = adaptive_table(run, found)
    if len(adaptive):
        about = (
            "Scored by mean logits, by a single draw, and with an image counted as broken only if "
            "at least 9 of 10 draws are wrong. Passes are per image."
        )
        parts.append(Part("Adaptive attacks", about, adaptive))
    if len(table := rules(run, found)):
        about = (
            "Pairs of adaptive attacks that differ only in the backward rule; negative: straight "
            "through leaves less. p: McNemar on the same images, corrected for the pairs of a member "
            "(Holm)."
        )
        parts.append(Part("Backward rules", about, table))
    for title, name, chosen in (
        ("SAP and dropout over the budget", "protocol", [m for m in found if m.is_published]),
        ("Controls and variants over the budget", "controls", _controls(found)),
    ):
        if chosen:
            chart = Chart(
                name,
                "line",
                over_budgets(chosen),
                x="eps",
                y="accuracy",
                series="member",
                low="accuracy_low",
                high="accuracy_high",
                panel="attack",
                ordered=True,
                hover=("family", "setting"),
            )
            parts.append(Part(title, text, wide(chosen), chart, folded=name == "controls"))
    if settings.adaptive:
        parts.append(Part("Settings of these attacks", "", schedules(run), folded=True))
    return parts


def members(run: Run) -> list[Member]:
    """The members of all protocol studies that there are records of, in params order."""
    return [
        Member(name, study.of, own.get("family"), own.get("setting"), rows)
        for key, study in run.studies_of("protocol").items()
        for name, own in study.members.items()
        if len(rows := run.studies[key][run.studies[key].member == name])
    ]


def _controls(found: list[Member]) -> list[Member]:
    """What is not in the published figure, after the first dense network; empty where none is."""
    others = [member for member in found if not member.is_published]
    dense = [member for member in found if member.family is None]
    return dense[:1] + others if others else []


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
    worst = rows.loc[rows.groupby("index").adv_margin.idxmin()]
    return worst.sort_values("index", ignore_index=True)


def by_budget(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, pd.DataFrame]]:
    """Attacks in groups of one budget each: a worst case over several would mean nothing."""
    groups: list[dict[str, pd.DataFrame]] = []
    for name, table in tables.items():
        for group in groups:
            if _same_budget(table, next(iter(group.values()))):
                group[name] = table
                break
        else:
            groups.append({name: table})
    return groups


def _same_budget(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return isclose(one.eps.iloc[0], other.eps.iloc[0], rel_tol=1e-6)


def gains(run: Run, found: list[Member]) -> pd.DataFrame:
    """SAP against its dense network: clean, under both attacks by budget, and the worst case."""
    rows: list[dict[str, Any]] = []
    for sap, dense in pairs(found):
        one, other = sap.over_budgets(FGSM), dense.over_budgets(FGSM)
        if not one or not other:
            continue
        least = min(one)
        rows.append(_gain(sap, dense, "none", 0.0, compare(one[least], other[least], "clean")))
        for attack in (FGSM, ITERATIVE):
            own, others = sap.over_budgets(attack), dense.over_budgets(attack)
            budgets = [eps for eps in own if eps > 0 and eps in others]
            tests = corrected([compare(own[eps], others[eps]) for eps in budgets])
            rows += [
                _gain(sap, dense, attack, eps, test)
                for eps, test in zip(budgets, tests, strict=True)
            ]
        own, others = sap.adaptive(run), dense.adaptive(run)
        for group in by_budget({name: table for name, table in own.items() if name in others}):
            test = compare(worst_of(group), worst_of({name: others[name] for name in group}))
            eps = float(next(iter(group.values())).eps.iloc[0])
            rows.append(_gain(sap, dense, f"adaptive, {WORST}", eps, test))
    return pd.DataFrame(rows)


def _gain(sap: Member, dense: Member, attack: str, eps: float, test: Comparison) -> dict[str, Any]:
    row: dict[str, Any] = {"member": sap.name, "parent": sap.parent, "attack": attack, "eps": eps}
    row |= rated("accuracy:SAP", test.first)
    row |= rated("accuracy:dense", test.second)
    return row | {"difference": test.difference, "p": test.p, "outcome": outcome(test)}


def _answer(table: pd.DataFrame) -> str:
    """The gain under FGSM of the first pair in a sentence, beside the worst case at its budget."""
    own = table[table.member == table.member.iloc[0]]
    fgsm = own[own.attack == FGSM]
    shown = fgsm[fgsm.outcome == "higher"]
    if shown.empty:
        return "Under FGSM no gain is significant."
    top = shown.loc[shown.difference.idxmax()]
    said = (
        f"Under FGSM at eps {budget(top.eps)} the gain is {points(top.difference)} points "
        f"({p_text(top.p)})"
    )
    worst = own[own.attack == f"adaptive, {WORST}"]
    at = worst[np.isclose(worst.eps, top.eps, rtol=1e-6)]
    if at.empty:
        return f"{said}; no adaptive attack was run at this budget."
    left = at.iloc[0]
    result = {"higher": "it is", "lower": "there is a loss of"}.get(
        left.outcome, "not significant,"
    )
    return f"{said}; under the adaptive attacks {result} {points(left.difference)} points " + (
        f"({p_text(left.p)})."
    )


def over_budgets(chosen: list[Member]) -> pd.DataFrame:
    """Accuracy of each member over the budget under both attacks: one row per mark of the chart."""
    rows = [
        {
            "member": member.name,
            "family": member.family or "dense",
            "setting": number(member.setting),
        }
        | {"attack": attack, "eps": eps}
        | rated("accuracy", remnant_accuracy(records))
        for attack in (FGSM, ITERATIVE)
        for member in chosen
        for eps, records in member.over_budgets(attack).items()
    ]
    columns = ["member", "family", "setting", "attack", "eps", "accuracy"]
    return pd.DataFrame(rows, columns=[*columns, "accuracy_low", "accuracy_high"])


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
    """Members under each adaptive attack and in the worst case of each budget."""
    rows = []
    for member in found:
        tables = member.adaptive(run)
        rows += [_adaptive(member, name, {name: table}) for name, table in tables.items()]
        groups = [group for group in by_budget(tables) if len(group) > 1]
        rows += [_adaptive(member, WORST, group) for group in groups]
    return pd.DataFrame(rows)


def _adaptive(member: Member, attack: str, parts: dict[str, pd.DataFrame]) -> dict[str, Any]:
    table = worst_of(parts)
    single = rate((table.adv_single_pred == table.label).to_numpy())
    most = rate((table.adv_wrong < MOST_DRAWS).to_numpy())
    row: dict[str, Any] = {"member": member.name, "attack": attack, "eps": float(table.eps.iloc[0])}
    row["clean_accuracy"] = clean_accuracy(table).value
    row |= rated("accuracy:mean logits", remnant_accuracy(table))
    row |= rated("accuracy:single draw", single)
    row |= rated("accuracy:9 of 10 draws", most)
    costs = ("gradients", "forwards")
    return row | {key: sum(float(one[key].mean()) for one in parts.values()) for key in costs}


def rules(run: Run, found: list[Member]) -> pd.DataFrame:
    """Each pair of attacks that differ only in the rule, straight through against another."""
    settings, rows = run.profile.protocol.adaptive, []
    for member in found:
        tables = member.adaptive(run)
        straight = [name for name in tables if settings[name].backward == "identity"]
        duels = [(a, b) for a in straight for b in tables if _only_rule(settings[a], settings[b])]
        tests = corrected([compare(tables[a], tables[b]) for a, b in duels])
        if member.family == SAP:
            rows += [
                {"member": member.name, "straight_through": a, "other": b}
                | {"rule": RULES[settings[b].backward]}
                | {"difference": test.difference, "p": test.p, "outcome": outcome(test)}
                for (a, b), test in zip(duels, tests, strict=True)
            ]
    return pd.DataFrame(rows)


def _only_rule(one: AttackSettings, other: AttackSettings) -> bool:
    ignored = {"backward", "note"}
    alike = one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)
    return alike and one.backward != other.backward


def schedules(run: Run) -> pd.DataFrame:
    """The settings of the iterative and the adaptive attacks; the iterative one at every budget."""
    settings = run.profile.protocol
    named = {ITERATIVE: settings.iterative} | settings.adaptive
    return pd.DataFrame(
        {"attack": name, "eps": "every budget" if name == ITERATIVE else budget(one.eps)}
        | {"step_share": one.step / one.eps if one.eps else None, "steps": one.steps}
        | {"draws": one.draws, "backward": RULES[one.backward], "momentum": one.momentum}
        | {"loss": one.loss, "start": "random" if one.random_start else "clean image"}
        for name, one in named.items()
    )
