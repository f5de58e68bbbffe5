"""Published claims, tested on a run: each entry of claims.yaml gets an outcome and its reason.

A metric compares the claim's model with its control; all comparisons of a run are corrected
together (Holm). A claim is *reproduced* where what it says is shown, *refuted* where the interval
excludes it in its regime and with the method's own criteria met; else it is not reproduced here,
for a reason, or was not run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from typing import Any

import pandas as pd

from advprune.core.claims import Claim
from advprune.core.networks import is_library
from advprune.core.train_settings import FineTuneSettings
from advprune.evaluate.compare import ALPHA, AT_CHANCE, LOWER_CLEAN, Compared, Comparison, holm
from advprune.evaluate.flips import FlipComparison
from advprune.evaluate.means import MeanComparison
from advprune.evaluate.measures import clean_accuracy
from advprune.evaluate.seeds import SeededPoint
from advprune.report.claim_command import command
from advprune.report.claim_metrics import METRICS, NOT_HERE, Missing, arms, falls_behind
from advprune.report.formats import counted, kind_of, percent
from advprune.report.run import NOT_RUN
from advprune.report.section import Part, Parts, Run, section
from advprune.report.sections.seeds import points_of
from advprune.report.tables import Row, columns, explained, units_of

REPRODUCED, REFUTED = "reproduced", "refuted"
OUTCOMES = (REPRODUCED, REFUTED, NOT_HERE, NOT_RUN)
REACHED = "; reached"  # of a regime


@dataclass(frozen=True, eq=False)
class Judged:
    """A claim and what the run says of it. n, seeds: test images and trainings behind its test.
    regime: what it takes to refute the claim, and what the run has where that is less. command:
    what runs it. p: of what it asks for, corrected for all of the run."""

    claim: Claim
    regime: str
    command: str
    n: int | None = None
    seeds: int | None = None
    outcome: str = NOT_RUN
    reason: str = ""
    test: Compared | None = None
    p: float | None = None


@section("Published claims", order=11)
def claims(run: Run) -> Parts:
    """Every claim with its test, or how to run what is missing (sources: docs/published.md)."""
    found = judged(run)
    if not found:
        return
    tests = sum(one.test is not None for one in found)
    reached = sum(one.test is not None and one.regime.endswith(REACHED) for one in found)
    counts = [f"{sum(one.outcome == name for one in found)} {name}" for name in OUTCOMES]
    yield Part(
        "Published claims",
        f"{counted(len(found), 'claim')}: {', '.join(counts)}. Each compares a model with its "
        f"control. {explained(f'all {tests} tested claims')} Threshold: the least difference that "
        "supports the claim or, where none is claimed, the largest that still counts as none; p is "
        "then that of an equivalence test or, where it is smaller, of being lower. Refuted: the "
        "interval excludes the claim, in its regime (the least that a run needs; "
        f"{reached} of {tests} tests meet it) and with the method's own criteria met. A command "
        "replaces params.yaml and the report of its profile; git checkout params.yaml dvc.lock "
        "reports metrics brings them back.",
        outcomes(run).drop(columns="id"),
    )


def outcomes(run: Run) -> pd.DataFrame:
    """One row per claim with its test and outcome, raw numbers in columns by their unit."""
    rows = []
    for one in judged(run):
        claim, test = one.claim, one.test
        row: Row = {"id": claim.id, "paper": claim.paper, "claim": claim.claim}
        row |= {"outcome": one.outcome, "reason": one.reason}
        if test is not None:
            row |= columns(test) | {f"counts_{units_of(test)[1]}": claim.counts, "p": one.p}
        row |= {"n": one.n, "seeds": one.seeds, "outcome": one.outcome}
        rows.append(row | {"regime": one.regime, "command": one.command})
    found, last = pd.DataFrame(rows), ["regime", "command"]  # behind the numbers of all rows
    return found[[*found.columns.drop(last), *last]]


@cache
def judged(run: Run) -> list[Judged]:
    """All claims in order, each with its outcome."""
    found: dict[str, Judged] = {}
    tests: dict[str, Compared] = {}
    for claim in run.claims:
        size, outcome = {}, NOT_HERE
        try:
            test = METRICS[claim.metric](run, claim)
            size, reason = _size(run, test), _unmet(run, claim)
            if not reason:  # else nothing follows from it: it is not a test of the run
                tests[claim.id] = test
        except Missing as lack:
            outcome, reason = lack.args
        told = _regime(run, claim, size), command(run, claim, outcome != NOT_RUN)
        found[claim.id] = Judged(claim, *told, size.get("n"), size.get("seeds"), outcome, reason)
    chosen = [claim for claim in run.claims if claim.id in tests]
    asked = []  # p of the test that each claim asks for: of a difference, or of there being none
    for claim in chosen:
        test = tests[claim.id]
        lower = claim.expect == "no higher" and test.direction < 0  # being lower is no higher
        same = min(test.p_equivalent, test.p) if lower else test.p_equivalent
        asked.append(test.p if claim.is_difference else same)
    for claim, p in zip(chosen, holm(asked), strict=True):
        # All tests hold together; a claim that says what may be lost needs no guard against it,
        # but one whose control is of equal clean accuracy.
        test = tests[claim.id]
        whole = p if claim.is_difference else min(1.0, len(chosen) * test.p)
        excused = test.void == LOWER_CLEAN and claim.needs.clean_loss and not claim.matched
        test = replace(test, p=whole, tests=len(chosen), void="" if excused else test.void)
        found[claim.id] = _judge(run, found[claim.id], test, p)
    return [found[claim.id] for claim in run.claims]


def _size(run: Run, test: Compared) -> dict[str, int]:
    """n and seeds of a test: its images and trainings."""
    if isinstance(test, Comparison):
        return {"n": test.first.n, "seeds": 1}
    if isinstance(test, FlipComparison):  # of whole networks
        return {"n": run.n, "seeds": min(test.first.trainings, test.second.trainings)}
    if isinstance(test, MeanComparison):
        images, seeds = test.mean.images, test.mean.seeds
        return {"n": images if images > 1 else run.n, "seeds": seeds}
    return {"n": run.n, "seeds": 1}


def _judge(run: Run, one: Judged, test: Compared, p: float) -> Judged:
    """With the outcome of a test that holds for all of the run; p: of what the claim asks for."""
    claim = one.claim
    (low, high), sign = test.interval, -1 if claim.expect == "lower" else 1
    shown = p < ALPHA and (not claim.is_difference or sign * test.difference >= claim.counts)
    if claim.is_difference:  # it is excluded, unless its direction is shown
        is_shown = test.p < ALPHA and sign * test.difference > 0
        excluded = (high if sign > 0 else -low) < claim.counts and not is_shown
    else:
        excluded = low > claim.counts or (claim.expect == "equal" and high < -claim.counts)
    doubt, gains = "", test.p < ALPHA and test.direction > 0
    if test.void == AT_CHANCE or (test.void and gains and claim.expect == "higher"):
        doubt = test.void
    elif whose := _unbelieved(run, claim, test):
        doubt = whose
    elif falls_behind(run, claim):
        doubt = f"{claim.attack} does less harm than FGSM"
    outcome, text = NOT_HERE, kind_of(units_of(test)[1]).text
    if doubt:
        reason = doubt
    elif shown:
        outcome, reason = REPRODUCED, ""
    elif excluded and one.regime.endswith(REACHED):
        outcome, reason = REFUTED, "the interval excludes it"
    elif excluded:
        reason = "the interval excludes it, but in another regime"
    elif not isfinite(test.detectable):
        reason = "underpowered: no difference could be shown"
    elif test.detectable > claim.counts:
        least, counts = text(test.detectable), text(claim.counts)
        reason = f"underpowered: detects {least}, the claim needs {counts}"
    elif claim.is_difference:
        reason = "the difference is below the threshold"
    else:
        reason = "not shown within the margin"
    return replace(one, outcome=outcome, reason=reason, test=test, p=p)


def _unbelieved(run: Run, claim: Claim, test: Compared) -> str:
    """Why the outcome rests on an upper bound; empty if it does not. Of what is shown to differ
    that is the higher one; that two are equal rests on both, that one is no higher on its control.
    Over seeds, where fewer attacks are run, it is either."""
    if claim.metric not in ("robust", "distance"):
        return ""
    model, control = arms(run, claim)
    both = {"its": model, "its control's": control}
    if isinstance(model, SeededPoint):
        doubts = ((whose, point.doubt) for whose, point in both.items() if point.doubt)
        return next((f"{whose} robust accuracy is an upper bound: {x}" for whose, x in doubts), "")
    asked = {"lower": ["its"], "equal": [*both]}.get(claim.expect, ["its control's"])
    if test.p < ALPHA:
        higher = "its" if test.direction > 0 else "its control's"
        asked = [higher] if claim.is_difference else [*dict.fromkeys([*asked, higher])]
    for whose in asked:
        if run.in_doubt(both[whose]):
            level = run.verdict(both[whose]).level
            return f"{whose} robust accuracy is an upper bound: {level}"
    return ""


def _unmet(run: Run, claim: Claim) -> str:
    """Which of the method's own criteria is not met, or not recorded; empty if none."""
    needs, model = claim.needs, None if claim.study else run.by_name.get(claim.model)
    if (most := needs.kernel_distance) is not None:
        ends = []  # of the search for a ticket, by the model's card or by the mean over seeds
        if model:
            ends = [(model.card.get("ticket") or {}).get("kernel_distance")]
        for name in run.studies_of("seeds") if claim.study else ():
            table = run.studies.get(f"{name}.history", pd.DataFrame())
            if "kernel_distance" in table:
                rows = table[table.point == claim.model].dropna(subset="kernel_distance")
                ends.append(rows.groupby("seed").kernel_distance.last().mean())
        far = next((float(end) for end in ends if pd.notna(end)), None)
        if far is None or far > most:
            end = "is not recorded" if far is None else f"{far:.2f}, above {most:g}"
            return f"search did not converge: kernel distance {end}"
    if needs.changed is not None:
        share, least = model.card["prune_ratio"] if model else None, needs.changed
        if share is None:
            return "the share of the weights that it changes is not recorded"
        if share < least:
            return f"it changes {100 * share:.3g} % of the weights, and needs {100 * least:.3g} %"
    if needs.larger_than is not None:
        base = run.by_name.get(needs.larger_than)
        if model is None or base is None:
            return f"whether it is larger than {needs.larger_than} is not recorded"
        ours, theirs = (one.card["parameters"] for one in (model, base))
        if ours <= theirs:
            return f"not larger than {base.name}: {ours:,} parameters of {theirs:,}"
    if needs.clean_loss is not None:
        if model:
            both = [clean_accuracy(run.robust(m)).value or 0 for m in (run.dense_of(model), model)]
        else:
            points = [points_of(run, name) for name in run.studies_of("seeds")]
            found = [(some[0], one) for some in points for one in some if one.name == claim.model]
            if claim.study != "seeds" or not found:
                return "the clean accuracy of its parent is not recorded"
            both = [one.mean("clean").value for one in found[0]]
        dense, own = both
        if dense - own > needs.clean_loss:
            return f"clean accuracy {percent(own)} %, of its parent {percent(dense)} %"
    return ""


def _regime(run: Run, claim: Claim, size: Mapping[str, int]) -> str:
    """What it takes to refute a claim, and what the run has less; size: of the test, if any."""
    regime, profile = claim.regime, run.profile
    source = "small games" if claim.metric == "agents" else str(profile.data.source)
    network = profile.model.network
    less = [] if source in regime.data else [source]
    less += [network] if regime.networks and network not in regime.networks else []
    own = {"width": profile.model.width if is_library(network) else regime.width}
    if size and regime.epochs:  # of training after the dense network's, else of that
        setting, name, models, trained = None, claim.model, run.params.models, 0
        if claim.study is None:
            cards = {one.name: one.card for one in run.models}

            def made(name: str) -> Any:  # by its card, or as the settings say
                return cards[name]["setting"] if name in cards else run.params.setting(name)

            while not _epochs(setting := made(name)) and name in models:
                name = models[name].of
            history = cards.get(name, {}).get("history")
            trained = int(history[-1]["epoch"]) if history else 0  # 0 of weights that were given
        for study in run.studies_of("seeds").values() if claim.study == "seeds" else ():
            if point := study.settings["points"].get(claim.model):
                setting = point["setting"]
        own["epochs"] = _epochs(setting) or trained or profile.train.epochs
    own |= size
    less += [f"{key} {own[key]:,}" for key in own if own[key] < getattr(regime, key)]
    return regime.asked + (f"; here {', '.join(less)}" if less else REACHED if size else "")


def _epochs(setting: Any) -> int:
    """All `epochs` of a setting and of the trainings inside it, but those of growth."""
    known = setting.model_dump() if hasattr(setting, "model_dump") else setting
    if not isinstance(known, Mapping):
        return 0
    inner = {k: v for k, v in known.items() if k != "growth"}
    tuned = FineTuneSettings().epochs if inner.get("finetune") is True else 0
    return int(inner.get("epochs") or 0) + tuned + sum(map(_epochs, inner.values()))
