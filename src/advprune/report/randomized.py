"""SAP under its published protocol and under attacks that know it: tables and findings.

Dhillon et al. (ICLR 2018) report a gain over the dense network under a single gradient step, with
gradients and predictions averaged over draws. Athalye et al. (ICML 2018) broke a variant with the
layer on convolutions; an erratum (Dhillon and Carlini, arXiv 2010.00071) says that what they ran
does not break SAP as published, and that a straight-through backward does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose

import numpy as np
import pandas as pd

from advprune.core.attack_settings import AttackSettings
from advprune.core.params import Member
from advprune.evaluate.compare import Comparison, compare, corrected
from advprune.evaluate.measures import MOST_DRAWS, clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate, rate
from advprune.report.costs import passes
from advprune.report.finding import Finding, paragraphs, spell
from advprune.report.study import Model, Study
from advprune.report.text import (
    NOTHING,
    budget,
    count,
    listed,
    p_value,
    percent,
    setting_text,
    with_interval,
)
from advprune.report.trust import ZERO

SAP = "SAP"
FGSM, ITERATIVE = "fgsm", "iterative"
RULES = {
    "constant": "factors held constant",
    "scale": "through the scale",
    "identity": "straight through (BPDA)",
    None: "the model's own rule",
}


# --- members and their records -------------------------------------------------------------------


def members(study: Study) -> dict[str, tuple[str, Member]]:
    """The members that there are records of, in params order: name -> (recipe, settings)."""
    known = set(study.protocol.member) if len(study.protocol) else set()
    return {
        name: (recipe, member)
        for recipe, group in study.params.protocol.items()
        for name, member in group.items()
        if name in known
    }


def recorded(
    study: Study, member: str, attack: str, eps: float | None = None
) -> pd.DataFrame | None:
    """A member's rows under one attack (at one budget) by image; None where there are none."""
    table = study.protocol
    chosen = (table.member == member) & (table.attack == attack)
    if eps is not None:
        chosen &= np.isclose(table.eps, eps, rtol=1e-6, atol=1e-9)
    rows = table[chosen]
    return None if rows.empty else rows.sort_values("index", ignore_index=True)


def over_budgets(study: Study, member: str, attack: str) -> dict[float, pd.DataFrame]:
    """A member's rows under one attack, by budget in rising order."""
    budgets = sorted(study.params.active().protocol.eps)
    found = {eps: recorded(study, member, attack, eps) for eps in budgets}
    return {eps: rows for eps, rows in found.items() if rows is not None}


def adaptive(study: Study, member: str) -> dict[str, pd.DataFrame]:
    """A member's rows under each adaptive attack that it went through, by name."""
    names = study.params.active().protocol.adaptive
    found = {name: recorded(study, member, name) for name in names}
    return {name: rows for name, rows in found.items() if rows is not None}


def worst_of(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Per image, the row of the attack that leaves the smallest margin."""
    rows = pd.concat(tables.values(), ignore_index=True)
    worst = rows.loc[rows.groupby("index").adv_margin.idxmin()]
    return worst.sort_values("index", ignore_index=True)


def single_draw(records: pd.DataFrame) -> Rate:
    """Accuracy under attack of one draw a sample."""
    return rate((records.adv_single_pred == records.label).to_numpy())


def most_draws(records: pd.DataFrame) -> Rate:
    """What is left where an image is broken only if at least 9 of 10 draws are wrong."""
    return rate((records.adv_wrong < MOST_DRAWS).to_numpy())


def fraction(member: Member) -> float:
    """SAP's draws as a fraction of a map."""
    setting = member.setting
    return float(setting["fraction"] if isinstance(setting, Mapping) else setting)


def on_convolutions(member: Member) -> bool:
    """Whether this is SAP on the outputs of convolutions, the variant that was attacked first."""
    setting = member.setting
    return isinstance(setting, Mapping) and setting.get("where") == "conv"


@dataclass(frozen=True)
class Pair:
    """A recipe's dense member and SAP as published on it, by name."""

    recipe: str
    dense: str
    sap: str


def pairs(study: Study) -> list[Pair]:
    """Recipes with a dense member and SAP as published, at the fraction nearest to 1 (SAP-100)."""
    found = []
    for recipe in study.params.protocol:
        own = {name: m for name, (r, m) in members(study).items() if r == recipe}
        dense = [name for name, m in own.items() if m.family is None]
        sap = [name for name, m in own.items() if m.family == SAP and not on_convolutions(m)]
        if dense and sap:
            nearest = min(sap, key=lambda name: abs(fraction(own[name]) - 1))
            found.append(Pair(recipe, dense[0], nearest))
    return found


# --- tables --------------------------------------------------------------------------------------


def _shown(found: Rate) -> str:
    return with_interval(found.value, *found.interval)


def member_table(study: Study) -> pd.DataFrame:
    """What the members are: recipe, family and setting."""
    return pd.DataFrame(
        {
            "member": name,
            "recipe": recipe,
            "family": member.family or NOTHING,
            "setting": setting_text(member.setting),
        }
        for name, (recipe, member) in members(study).items()
    )


def budget_table(study: Study, attack: str) -> pd.DataFrame:
    """Accuracy of every member over the budget, under `fgsm` or `iterative`."""
    rows = []
    for name in members(study):
        found = over_budgets(study, name, attack)
        cells = {f"eps {budget(e)} %": _shown(remnant_accuracy(t)) for e, t in found.items()}
        rows.append({"member": name} | cells)
    return pd.DataFrame(rows).fillna(NOTHING)


def by_budget(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, pd.DataFrame]]:
    """Attacks in groups of one budget each: a worst case over several would mean nothing."""
    groups: dict[str, dict[str, pd.DataFrame]] = {}
    for name, table in tables.items():
        groups.setdefault(budget(float(table.eps.iloc[0])), {})[name] = table
    return list(groups.values())


def adaptive_table(study: Study) -> pd.DataFrame:
    """Members under each adaptive attack: by mean logits, by one draw, and by 9 of 10 draws."""
    rows = []
    for name in members(study):
        tables = adaptive(study, name)
        rows += [_adaptive_row(name, attack, table) for attack, table in tables.items()]
        for group in by_budget(tables):
            if len(group) > 1:
                rows.append(_adaptive_row(name, "worst case", worst_of(group), group))
    return pd.DataFrame(rows)


def _adaptive_row(
    member: str, attack: str, table: pd.DataFrame, parts: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, str]:
    costs = parts.values() if parts else [table]
    spent = {key: sum(float(one[key].mean()) for one in costs) for key in ("gradients", "forwards")}
    return {
        "member": member,
        "attack": attack,
        "eps": budget(float(table.eps.iloc[0])),
        "clean %": percent(clean_accuracy(table).value),
        "mean logits %": _shown(remnant_accuracy(table)),
        "single draw %": _shown(single_draw(table)),
        "9 of 10 draws %": _shown(most_draws(table)),
    } | {f"{key} per image": passes(value) for key, value in spent.items()}


def schedule_table(study: Study) -> pd.DataFrame:
    """The settings of the iterative and the adaptive attacks of the protocol."""
    settings = study.params.active().protocol
    named = {ITERATIVE: settings.iterative} | settings.adaptive
    return pd.DataFrame(_schedule_row(name, setting) for name, setting in named.items())


def _schedule_row(name: str, setting: AttackSettings) -> dict[str, str]:
    return {
        "attack": name,
        "eps": "every budget" if name == ITERATIVE else budget(setting.eps),
        "step": f"{percent(setting.step / setting.eps)} % of eps" if setting.eps else NOTHING,
        "steps": str(setting.steps),
        "draws a step": str(setting.draws),
        "backward": RULES[setting.backward],
        "momentum": f"{setting.momentum:g}",
        "loss": setting.loss,
        "start": "random" if setting.random_start else "clean image",
    }


# --- what became of the gain ---------------------------------------------------------------------


@dataclass(frozen=True)
class Fate:
    """SAP's gain over the dense network under the published attack, and what adaptive ones leave.

    clean: without an attack. gains, iterative: by budget under the single and the iterative
    attack, corrected for several. left: worst case over the adaptive attacks, None where there are
    none. budget: that of the adaptive attacks.
    """

    pair: Pair
    clean: Comparison
    gains: dict[float, Comparison]
    iterative: dict[float, Comparison]
    left: Comparison | None
    budget: float | None

    @property
    def shown(self) -> list[float]:
        """The budgets at which a gain is shown."""
        return [eps for eps, test in self.gains.items() if test.better]

    @property
    def top(self) -> float:
        """The budget of the largest gain, of those that are shown where any is."""
        return _top(self.gains)

    @property
    def at(self) -> float:
        """The adaptive attacks' budget where FGSM was run at it, else that of the top gain."""
        same = [eps for eps in self.gains if isclose(eps, self.budget or 0.0, rel_tol=1e-6)]
        return same[0] if same else self.top

    @property
    def before(self) -> Comparison:
        """FGSM at that budget."""
        return self.gains[self.at]

    @property
    def verdict(self) -> str:
        """no gain, untested, elsewhere (none at the adaptive budget), gone, partly or kept."""
        if not self.shown:
            return "no gain"
        if self.left is None:
            return "untested"
        if not self.left.better:
            return "gone" if self.before.better else "elsewhere"
        return "kept" if self.left.difference >= self.before.difference else "partly"


def fate(study: Study, pair: Pair) -> Fate | None:
    """What became of the gain of one recipe's SAP; None where the published attack is missing."""
    gains, iterative = (_gains(study, pair, attack) for attack in (FGSM, ITERATIVE))
    if not gains:
        return None
    attacked, others = (_at_gain(adaptive(study, name), gains) for name in (pair.sap, pair.dense))
    left = compare(worst_of(attacked), worst_of(others)) if attacked and others else None
    at = float(worst_of(attacked).eps.max()) if attacked else None
    own, parent = (over_budgets(study, name, FGSM) for name in (pair.sap, pair.dense))
    eps = next(iter(gains))
    clean = compare(own[eps], parent[eps], "clean")
    return Fate(pair, clean, gains, iterative, left, at)


def _at_gain(
    tables: dict[str, pd.DataFrame], gains: dict[float, Comparison]
) -> dict[str, pd.DataFrame]:
    """The adaptive attacks at the budget of the largest gain; where there are none, those of the
    largest budget. Attacks of different budgets are not put together."""
    budgets = {name: float(table.eps.iloc[0]) for name, table in tables.items()}
    wanted = _top(gains)
    if not any(isclose(eps, wanted, rel_tol=1e-6) for eps in budgets.values()):
        wanted = max(budgets.values(), default=0.0)
    chosen = [name for name, eps in budgets.items() if isclose(eps, wanted, rel_tol=1e-6)]
    return {name: tables[name] for name in chosen}


def _top(gains: dict[float, Comparison]) -> float:
    """The budget of the largest gain, of those that are shown where any is."""
    shown = [eps for eps, test in gains.items() if test.better]
    return max(shown or gains, key=lambda eps: gains[eps].difference)


def _gains(study: Study, pair: Pair, attack: str) -> dict[float, Comparison]:
    """SAP against the dense network under one attack, by budget, corrected for all budgets."""
    own, parent = (over_budgets(study, name, attack) for name in (pair.sap, pair.dense))
    budgets = [eps for eps in own if eps > 0 and eps in parent]
    tests = corrected([compare(own[eps], parent[eps]) for eps in budgets])
    return dict(zip(budgets, tests, strict=True))


def gain(study: Study) -> Iterator[Finding]:
    """Is there a gain under the published attack, and does it survive attacks that know SAP?"""
    found = [one for pair in pairs(study) if (one := fate(study, pair))]
    if not found:
        return
    found.sort(key=lambda one: one.left is None)  # a recipe that was attacked adaptively leads
    first, *others = found
    text = paragraphs(
        list(_published_words(study, first)),
        list(_left_words(study, first)),
        [*_row_words(study), *(_other_words(one) for one in others)],
    )
    figures = {
        "verdict": first.verdict,
        "gains": {eps: test.difference for eps, test in first.gains.items()},
        "shown": first.shown,
        "top": first.top,
        "left": first.left.first.value if first.left else None,
        "others": {one.pair.recipe: one.verdict for one in others},
    }
    yield Finding(_gain_title(first), text, figures)


def _points(test: Comparison) -> str:
    return f"{100 * test.difference:+.1f} points"


def _gain_title(found: Fate) -> str:
    sap, dense = found.pair.sap, found.pair.dense
    if found.verdict == "no gain":
        more = ", though one is under adaptive ones" if found.left and found.left.better else ""
        return f"Is SAP's published gain there? No gain over {dense} is shown under FGSM{more}"
    question = "Does SAP's published gain survive attacks that know it?"
    under_fgsm = f"{_points(found.gains[found.top])} for {sap} under FGSM"
    if found.left is None:
        return f"{question} Not tried: {under_fgsm}, without adaptive attacks"
    at = budget(found.budget or 0.0)
    ends = {
        "elsewhere": f"Not tried where it is: {under_fgsm} at eps {budget(found.top)}, none shown "
        f"at eps {at} under either",
        "gone": f"No: {under_fgsm}, no gain shown under adaptive attacks",
        "partly": f"In part: {under_fgsm}, {_points(found.left)} under adaptive attacks",
        "kept": f"Yes: {under_fgsm}, {_points(found.left)} under adaptive attacks",
    }
    return f"{question} {ends[found.verdict]}"


def _published_words(study: Study, found: Fate) -> Iterator[str]:
    test, settings = found.gains[found.top], study.params.active().protocol
    sap, dense = found.pair.sap, found.pair.dense
    shown = "" if found.clean.differs else ", no difference shown"
    yield (
        f"Without an attack, {sap} has {spell(found.clean.first)} accuracy and {dense} "
        f"{spell(found.clean.second)} ({p_value(found.clean.p)}{shown})."
    )
    yield (
        f"Under the published protocol (one step of FGSM, gradients and predictions averaged over "
        f"{settings.draws} draws, n = {test.first.n} images), {sap} differs most from {dense} at "
        f"eps {budget(found.top)}: {spell(test.first)} against {spell(test.second)}, "
        f"{_points(test)} ({p_value(test.p)} after Holm's correction for "
        f"{count(len(found.gains), 'budget')})."
    )
    if found.shown:
        yield f"A gain is shown at eps {listed([budget(eps) for eps in found.shown])}."
    else:
        yield "So no gain is shown at any budget."
    if lost := [e for e, t in found.gains.items() if t.differs and not t.better]:
        yield f"It is less accurate than {dense} at eps {listed([budget(eps) for eps in lost])}."
    yield from _iterative_words(study, found)


def _iterative_words(study: Study, found: Fate) -> Iterator[str]:
    """What the iterative attack makes of the gain, at all budgets and where it was largest."""
    setting, test = study.params.active().protocol.iterative, found.iterative.get(found.top)
    if test is None:
        return
    shown = [budget(eps) for eps, one in found.iterative.items() if one.better]
    where = f"at eps {listed(shown)}" if shown else "at no budget"
    yield (
        f"Under the iterative attack ({count(setting.steps, 'step')}, gradients averaged over "
        f"{count(setting.draws, 'draw')}) a gain is shown {where}; at eps {budget(found.top)} "
        f"{spell(test.first)} are left against {spell(test.second)} ({p_value(test.p)})."
    )


def _left_words(study: Study, found: Fate) -> Iterator[str]:
    left, sap = found.left, found.pair.sap
    if left is None or found.budget is None:
        return
    tables = _at_gain(adaptive(study, sap), found.gains)
    worst = min(tables, key=lambda name: remnant_accuracy(tables[name]).hits)
    yield (
        f"In the worst case per image over {count(len(tables), 'attack')} that know it "
        f"({listed(list(tables))}; eps {budget(found.budget)}), {sap} keeps "
        f"{spell(left.first)} and {found.pair.dense} {spell(left.second)} ({p_value(left.p)}); "
        f"{worst} alone leaves {spell(remnant_accuracy(tables[worst]))}."
    )
    yield _left_verdict(found, left)
    yield (
        "Were an image to count as broken only where at least 9 of 10 draws are wrong, "
        f"{spell(most_draws(worst_of(tables)))} would be left."
    )


def _left_verdict(found: Fate, left: Comparison) -> str:
    before = f"{_points(found.before)} under FGSM at eps {budget(found.at)}"
    if left.void:
        return f"{found.pair.sap} is at chance when clean, so nothing is concluded."
    if found.verdict == "elsewhere":
        return (
            f"But at this budget no gain is shown under FGSM either ({_points(found.before)}), so "
            "nothing is said about the budgets at which there is one."
        )
    if found.verdict == "gone":
        worse = f"; it is even less robust, {_points(left)}" if left.differs else ""
        return f"So the gain does not survive: none is shown{worse}, where it was {before}."
    if found.verdict in ("partly", "kept"):
        word = "survives" if found.verdict == "kept" else "survives in part"
        return f"So the gain {word}: {_points(left)} are left, where it was {before}."
    side = "a gain" if left.better else "a loss" if left.differs else "no difference"
    return f"Under these attacks {side} is shown."


def _row_words(study: Study) -> Iterator[str]:
    """The rows of the leaderboard that are SAP, under their own suite."""
    rows = [model for model in study.models if model.family == SAP]
    if rows:
        each = [_row(study, model) for model in rows]
        n = len(study.robust(rows[0]))
        yield f"On the leaderboard, under the worst case of its suite (n = {n}): {'; '.join(each)}."


def _row(study: Study, model: Model) -> str:
    dense = study.dense(model.base)
    test = compare(study.robust(model), study.robust(dense))
    sides = {True: "more robust", False: "less robust"}
    word = sides[test.better] if test.differs else "no difference shown"
    return (
        f"{model.name} keeps {spell(test.first)} against {spell(test.second)} of {dense.name} "
        f"({word}, {p_value(test.p)}; verdict {study.verdict(model).level})"
    )


def _other_words(found: Fate) -> str:
    """The gain on another recipe, in one sentence."""
    test, sap, dense = found.gains[found.top], found.pair.sap, found.pair.dense
    what = "a gain is shown" if found.shown else "no gain is shown"
    return (
        f"On the recipe {found.pair.recipe}, {what} for {sap} over {dense} under FGSM: at most "
        f"{_points(test)}, at eps {budget(found.top)} ({p_value(test.p)} after correction)."
    )


# --- the variant on convolutions -----------------------------------------------------------------


def variant(study: Study) -> Iterator[Finding]:
    """Does the variant on convolutions fall to many small steps, and what does SAP itself keep?"""
    for name, (recipe, member) in members(study).items():
        tables = adaptive(study, name)
        small = _small_steps(study, list(tables))
        if member.family == SAP and on_convolutions(member) and small is not None:
            yield _variant(study, name, recipe, small)


def _small_steps(study: Study, names: list[str]) -> str | None:
    """The attack with most steps among those that take one draw a step."""
    settings = study.params.active().protocol.adaptive
    single = [name for name in names if settings[name].draws == 1]
    return max(single, key=lambda name: settings[name].steps) if single else None


def _variant(study: Study, name: str, recipe: str, small: str) -> Finding:
    tables = adaptive(study, name)
    kept, clean = remnant_accuracy(tables[small]), clean_accuracy(tables[small])
    setting = study.params.active().protocol.adaptive[small]
    pair = next((pair for pair in pairs(study) if pair.recipe == recipe), None)
    dense = adaptive(study, pair.dense).get(small) if pair else None
    test = None if dense is None else compare(tables[small], dense)
    verdict = _fallen(kept, test)
    opening = (
        f"{name} ({setting_text(members(study)[name][1].setting)}) has {spell(clean)} clean "
        f"accuracy and keeps {spell(kept)} under {small} ({setting.steps} steps of one draw each, "
        f"{RULES[setting.backward]}, eps {budget(setting.eps)}, n = {kept.n} images); "
        f"{spell(most_draws(tables[small]))} where 9 of 10 draws must be wrong."
    )
    beside = [] if test is None else [_beside_dense(test)]
    worst, others = _within(tables, small)
    ending = ""
    if (worst.value or 0.0) < (kept.value or 0.0):
        ending = f", {spell(worst)} in the worst case"
        beside.append(f"In the worst case per image over {others}, {spell(worst)} are left.")
    text = paragraphs([opening, *beside], list(_official_words(study, pair.sap)) if pair else [])
    question = "Is the variant on convolutions broken as published?"
    figures = {"verdict": verdict, "kept": kept.value, "attack": small, "worst": worst.value}
    return Finding(f"{question} {verdict}: {spell(kept)} left{ending}", text, figures)


def _within(tables: Mapping[str, pd.DataFrame], name: str) -> tuple[Rate, str]:
    """What an attack and those of no larger budget leave together, and which they are."""
    most = float(tables[name].eps.iloc[0]) + 1e-6
    chosen = {other: table for other, table in tables.items() if table.eps.iloc[0] <= most}
    return remnant_accuracy(worst_of(chosen)), listed(list(chosen))


def _beside_dense(test: Comparison) -> str:
    """The dense network under the same attack."""
    word = "a difference" if test.differs else "no difference"
    return (
        f"The dense network keeps {spell(test.second)} under the same attack ({p_value(test.p)}, "
        f"{word} shown)."
    )


def _fallen(kept: Rate, beside_dense: Comparison | None) -> str:
    """Whether the variant falls: to about zero, or at least as far as the dense network does."""
    if (kept.value or 0.0) <= ZERO:
        return "Yes"
    down = beside_dense is not None and not beside_dense.better
    return "Yes, down to the dense network" if down else "No"


def _official_words(study: Study, sap: str) -> Iterator[str]:
    """What SAP as published keeps under each backward rule."""
    tables, settings = adaptive(study, sap), study.params.active().protocol.adaptive
    if not tables:
        return
    parts = []
    for rule, words in RULES.items():
        own = [name for name in tables if settings[name].backward == rule]
        each = [
            f"{name} {spell(remnant_accuracy(tables[name]))} at eps {budget(settings[name].eps)}"
            for name in own
        ]
        parts += [f"{words}: {listed(each)}"] if own else []
    yield f"As published ({sap}), SAP keeps, by backward rule, {'; '.join(parts)}."
    yield from _rule_words(tables, settings)


def _rule_words(
    tables: Mapping[str, pd.DataFrame], settings: Mapping[str, AttackSettings]
) -> Iterator[str]:
    """Each pair of attacks that differ only in the rule, straight through against another."""
    straight = [name for name in tables if settings[name].backward == "identity"]
    duels = [(a, b) for a in straight for b in tables if _only_rule(settings[a], settings[b])]
    tests = corrected([compare(tables[a], tables[b]) for a, b in duels])
    for (a, b), test in zip(duels, tests, strict=True):
        if test.void:
            continue
        harm = "less" if test.difference > 0 else "more"
        what = f"does {harm} harm than" if test.differs else "is not shown to differ from"
        yield f"{a} {what} {b} ({p_value(test.p)})."


def _only_rule(one: AttackSettings, other: AttackSettings) -> bool:
    ignored = {"backward", "note"}
    alike = one.model_dump(exclude=ignored) == other.model_dump(exclude=ignored)
    return alike and one.backward != other.backward
