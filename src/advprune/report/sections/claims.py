"""Published claims and what this run says of them: with the tests behind them."""

import pandas as pd

from advprune.report.claim_metrics import NOT_HERE
from advprune.report.claims import REACHED, REFUTED, REPRODUCED, judged
from advprune.report.formats import counted
from advprune.report.run import NOT_RUN
from advprune.report.section import Part, Parts, Run, section
from advprune.report.tables import Row, columns, explained, units_of

OUTCOMES = (REPRODUCED, REFUTED, NOT_HERE, NOT_RUN)


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
        f"control. {explained(f'all {tests} tested claims')} Where no difference is claimed, p is "
        "that of an equivalence test. Threshold: the smallest difference that supports the "
        "claim, or the largest that is still equivalent. Refuted: the interval excludes the claim, "
        "in its regime and with the method's own criteria met. Regime: what that takes at least, "
        f"and what is less here; tests that reach it: {reached}. A command writes its report over "
        "this one, corrected for the claims that it tests; git restores what was "
        "committed. Sources: docs/published.md.",
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
