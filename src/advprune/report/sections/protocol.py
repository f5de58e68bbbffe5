"""SAP under its published protocol and under attacks that know it.

Dhillon et al. (ICLR 2018): SAP gains over the dense network under one gradient step, gradients and
predictions averaged over draws. Athalye et al. (ICML 2018) broke a variant on convolutions; the
erratum (Dhillon and Carlini, arXiv 2010.00071) says that this attack does not break SAP as
published, and that a straight-through backward does.
"""

import pandas as pd

from advprune.evaluate import measures
from advprune.evaluate.compare import Comparison
from advprune.evaluate.protocol import ProtocolModel, by_budget, pairs, worst_of
from advprune.evaluate.statistics import rate
from advprune.report.formats import counted, number
from advprune.report.section import Chart, Part, Parts, Run, section
from advprune.report.sections.verdict import iterative
from advprune.report.tables import Row, columns, compared, explained, jointly, rated

FGSM, ITERATIVE = "fgsm", "iterative"
WORST = "worst case"


@section("SAP's published protocol", order=60)
def protocol(run: Run) -> Parts:
    """The gain under FGSM and under adaptive attacks, and all models over the budget."""
    found = models_of(run)
    if not found:
        return
    settings, n = run.profile.protocol, found[0].rows["index"].nunique()
    yield Part(
        "Does SAP's published gain survive adaptive attacks?",
        f"SAP against its dense network on the same {n} images (McNemar): under FGSM averaged over "
        f"{settings.draws} draws, the iterative attack "
        f"({counted(settings.iterative.steps, 'step')} of "
        f"{counted(settings.iterative.draws, 'draw')}), and per image the worst of the adaptive "
        "attacks of a budget. Predictions are mean probabilities of these draws under FGSM and "
        "without attack, as published, otherwise mean logits of "
        f"{run.params.attack.score_draws} draws. {explained('the budgets of an attack')}",
        gains(run, found),
    )
    yield Part(
        "Adaptive attacks",
        "Scored by mean logits, by a single draw, and with an image counted as broken only if at "
        "least 9 of 10 draws are wrong. Passes are per image. The worst case is chosen by "
        "other draws than those that score it, so it can lie above a single attack.",
        adaptive_table(run, found),
    )
    yield from iterative(pd.concat([one.rows for one in found]), "of", "member")
    marks, axes = over_budgets(found), ("eps", "accuracy", "model", "attack")
    look: Row = {"interval": True, "ordered": True, "hover": ("family", "setting")}
    chart = Chart("protocol", "line", marks, *axes, **look)
    yield Part("SAP, its controls and variants over the budget", chart=chart)


def models_of(run: Run) -> list[ProtocolModel]:
    """The models of all protocol studies with records, in params order."""
    return [
        ProtocolModel(name, study.of, own.get("family"), own.get("setting"), rows)
        for key, study in run.studies_of("protocol").items()
        for name, own in study.members.items()
        if len(rows := run.studies[key][run.studies[key].member == name])
    ]


def gains(run: Run, found: list[ProtocolModel]) -> pd.DataFrame:
    """SAP against its dense network: clean, under both attacks by budget, and the worst case."""
    rows = []
    for sap, dense in pairs(found):
        tests: list[tuple[str, dict[float, Comparison]]] = []
        for attack in (FGSM, ITERATIVE):
            own, others = sap.over_budgets(attack), dense.over_budgets(attack)
            budgets = [eps for eps in own if eps > 0 and eps in others]
            if attack == FGSM and budgets:
                eps = budgets[0]  # clean records are the same at every budget
                tests.append(("none", {0.0: compared(run, own[eps], others[eps], "clean")}))
            both = {eps: compared(run, own[eps], others[eps]) for eps in budgets}
            tests.append((attack, jointly(both)))
        ours, theirs = (one.under(run.profile.protocol.adaptive) for one in (sap, dense))
        for group in by_budget({name: ours[name] for name in ours if name in theirs}):
            worst, (first, *more) = worst_of(group), group
            test = compared(run, worst, worst_of({name: theirs[name] for name in group}))
            title = f"adaptive, {WORST}" if more else first
            tests.append((title, {float(worst.eps.iloc[0]): test}))
        for attack, eps, test in ((a, eps, t) for a, by_eps in tests for eps, t in by_eps.items()):
            row: Row = {"model": sap.name, "parent": sap.parent, "attack": attack, "eps": eps}
            row |= rated("accuracy:SAP", test.first) | rated("accuracy:dense", test.second)
            row |= columns(test)
            for side, one in (("SAP", sap), ("dense", dense)) if attack == FGSM else ():
                table = one.over_budgets(attack)[eps]
                sure, right = table.adv_confidence.to_numpy(), measures.right(table)
                row[f"ece:{side}"] = measures.calibration_error(sure, right)
            rows.append(row)
    return pd.DataFrame(rows)


def over_budgets(chosen: list[ProtocolModel]) -> pd.DataFrame:
    """Accuracy of each model over the budget under both attacks: one row per mark of the chart."""
    return pd.DataFrame(
        {"model": one.name, "family": one.family or "dense", "setting": number(one.setting)}
        | {"attack": words, "eps": eps}
        | rated("accuracy", measures.remnant_accuracy(records))
        for attack, words in ((FGSM, "one step (FGSM)"), (ITERATIVE, "iterative"))
        for one in chosen
        for eps, records in one.over_budgets(attack).items()
    )


def adaptive_table(run: Run, found: list[ProtocolModel]) -> pd.DataFrame:
    """Models under each adaptive attack, and in the worst case per budget."""
    rows = []
    for one in found:
        tables = one.under(run.profile.protocol.adaptive)
        groups = [(name, {name: table}) for name, table in tables.items()]
        groups += [(WORST, group) for group in by_budget(tables) if len(group) > 1]
        for attack, parts in groups:
            table = worst_of(parts)
            clean, mean = measures.clean_accuracy(table), measures.remnant_accuracy(table)
            single = rate((table.adv_single_pred == table.label).to_numpy())
            most = rate((table.adv_wrong < measures.MOST_DRAWS).to_numpy())
            row: Row = {"model": one.name, "attack": attack, "eps": float(table.eps.iloc[0])}
            row |= {"clean_accuracy": clean.value} | rated("accuracy:mean logits", mean)
            row |= rated("accuracy:single draw", single) | rated("accuracy:9 of 10 draws", most)
            for cost in ("gradients", "forwards"):
                row[cost] = sum(float(part[cost].mean()) for part in parts.values())
            rows.append(row)
    return pd.DataFrame(rows)
