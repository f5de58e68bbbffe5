"""The verdict: can a model's robust accuracy be believed? Checks on records, no torch.

Each check asks what an honest evaluation would show (Athalye et al., Obfuscated Gradients Give a
False Sense of Security, 2018, section 3.1; Carlini et al., On Evaluating Adversarial Robustness,
2019, section 5; Croce and Hein, AutoAttack, 2020). A failed check makes the number `broken`, a
doubtful one `suspect`; a number that passes all is `reliable`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from advprune.core.profile import PROBES, RESERVED
from advprune.evaluate.compare import Comparison, at_chance, compare, corrected
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.robust import worst_case

PASS, DOUBT, FAIL = "pass", "doubt", "fail"
LEVELS = {PASS: "reliable", DOUBT: "suspect", FAIL: "broken"}
LOST_GRADIENT = {DOUBT: 0.01, FAIL: 0.1}  # share of images without a gradient
CONTRADICTION = 0.05  # a weaker attack that finds so much more, a fraction of the images
AGREEMENT = 0.99  # of a quantized model with its twin
ALL_GREY = 0.5  # a budget that makes any image any other's equal: no model beats guessing there


@dataclass(frozen=True)
class Check:
    """What was asked, the outcome (pass, doubt, fail), its figure, and the reason in words."""

    name: str
    outcome: str
    figure: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """reliable, suspect or broken, and the checks that it follows from."""

    level: str
    checks: list[Check]

    @property
    def against(self) -> list[Check]:
        """The checks that were not passed, the worst first."""
        rank = list(LEVELS)
        return sorted(
            (c for c in self.checks if c.outcome != PASS),
            key=lambda check: -rank.index(check.outcome),
        )


@dataclass(frozen=True)
class Evidence:
    """What a verdict is drawn from.

    records: all rows of one model: its suite, its curves, its probes. main: the name of the main
    attack. classes: how many there are. transferred: the model's rows on images that the main
    attack crafted on the dense network. parent: the dense network's rows under its worst case.
    twin_agreement: of a quantized model.
    """

    records: pd.DataFrame
    main: str
    classes: int
    transferred: pd.DataFrame | None = None
    parent: pd.DataFrame | None = None
    twin_agreement: float | None = None

    def of(self, attack: str) -> pd.DataFrame | None:
        """The rows of one attack by image; None where it was not run."""
        found = self.records[self.records.attack == attack]
        return None if found.empty else found.sort_values("index", ignore_index=True)

    def curve(self, name: str, column: str) -> list[tuple[float, pd.DataFrame]]:
        """The points of a curve in rising order."""
        found = self.records[self.records.attack == name]
        return [
            (float(value), part.sort_values("index", ignore_index=True))
            for value, part in found.groupby(column, sort=True)
            if isinstance(value, int | float)
        ]

    def white_box(self) -> pd.DataFrame:
        """Per image, the worst of the suite's attacks that use gradients."""
        return worst_case(self.records[self.records.gradients > 0], self.main)


def verdict(evidence: Evidence) -> Verdict:
    """All checks that the evidence allows, and the level that follows from the worst of them."""
    makers = (
        _not_guessing,
        _gradients,
        _steps,
        _budgets,
        _large_budget,
        _single_step,
        _noise,
        _transfer,
        _gradient_free,
        _stronger,
        _randomness,
        _twin,
    )
    checks = [check for make in makers for check in make(evidence)]
    worst = max((check.outcome for check in checks), key=list(LEVELS).index, default=PASS)
    return Verdict(LEVELS[worst], checks)


def _points(records: pd.DataFrame) -> str:
    return f"{100 * (remnant_accuracy(records).value or 0.0):.1f} %"


def _not_guessing(evidence: Evidence) -> Iterator[Check]:
    records = evidence.records[evidence.records.attack == evidence.main]
    clean = f"{100 * (clean_accuracy(records).value or 0.0):.1f} % clean"
    if at_chance(records):
        reason = "at chance: a constant answer cannot be fooled"
        yield Check("clean accuracy", DOUBT, clean, reason)
    else:
        yield Check("clean accuracy", PASS, clean, "above guessing")


def _gradients(evidence: Evidence) -> Iterator[Check]:
    records = evidence.of(PROBES[0])
    if records is None:
        return
    lost = float((records.gradient == 0).mean())
    figure = f"{100 * lost:.1f} % of images"
    if lost > LOST_GRADIENT[DOUBT]:
        outcome = FAIL if lost > LOST_GRADIENT[FAIL] else DOUBT
        yield Check("zero gradients", outcome, figure, "gradient attacks fail without a gradient")
    else:
        yield Check("zero gradients", PASS, figure, "the loss has a gradient at the images")


def _rises(curve: list[tuple[float, pd.DataFrame]]) -> list[tuple[float, Comparison]]:
    """The points of a curve that are shown to lie above the one before, corrected for several."""
    tests = corrected([compare(b, a) for (_, a), (_, b) in pairwise(curve)])
    return [(value, test) for (value, _), test in zip(curve[1:], tests, strict=True) if test.better]


def _steps(evidence: Evidence) -> Iterator[Check]:
    """The curve never rises, and its end finds no more than the suite already has."""
    points = evidence.curve("curve_steps", "steps")
    if len(points) < 2:
        return
    last, later = points[-1]
    white = evidence.white_box()
    figure = f"{_points(later)} at {last:.0f} steps against {_points(white)} white-box"
    fall = compare(white, later)
    if risen := _rises(points):
        reason = f"more steps do less harm from {risen[0][0]:.0f} steps on: it does not converge"
        yield Check("more steps", FAIL, figure, reason)
    elif fall.better:
        yield Check("more steps", DOUBT, figure, "more steps find more than the suite has")
    else:
        yield Check("more steps", PASS, figure, "more steps find no more, and never less")


def _budgets(evidence: Evidence) -> Iterator[Check]:
    points = evidence.curve("curve_eps", "eps")
    if len(points) < 2:
        return
    figure = f"{_points(points[0][1])} to {_points(points[-1][1])}"
    if risen := _rises(points):
        reason = f"a larger budget does less harm at eps {255 * risen[0][0]:.4g}/255"
        yield Check("larger budgets", FAIL, figure, reason)
    else:
        yield Check("larger budgets", PASS, figure, "a larger budget never does less harm")


def _large_budget(evidence: Evidence) -> Iterator[Check]:
    points = evidence.curve("curve_eps", "eps")
    if not points:
        return
    eps, records = points[-1]
    low, _ = remnant_accuracy(records).interval
    figure = f"{_points(records)} at eps {255 * eps:.4g}/255"
    if low is not None and low > 1 / evidence.classes:
        outcome = FAIL if eps >= ALL_GREY else DOUBT
        reason = "above guessing where nearly any image is allowed"
        yield Check("largest budget", outcome, figure, reason)
    else:
        yield Check("largest budget", PASS, figure, "no better than guessing, as it must be")


def _contradicts(name: str, other: pd.DataFrame | None, evidence: Evidence) -> Iterator[Check]:
    """Whether something that should be weaker than the white-box attacks does more harm."""
    if other is None:
        return
    white = evidence.white_box()
    white = white[white["index"].isin(other["index"])].reset_index(drop=True)
    test = compare(white, other)
    figure = f"{_points(other)} against {_points(white)} white-box"
    if test.p < 0.05 and test.difference > 0:
        outcome = FAIL if test.difference >= CONTRADICTION else DOUBT
        reason = f"it does more harm than the attacks by gradient (p = {test.p:.2g})"
        yield Check(name, outcome, figure, reason)
    else:
        yield Check(name, PASS, figure, "it does no more harm than the attacks by gradient")


def _single_step(evidence: Evidence) -> Iterator[Check]:
    yield from _contradicts("single step", evidence.of("probe_single"), evidence)


def _noise(evidence: Evidence) -> Iterator[Check]:
    yield from _contradicts("random noise", evidence.of("probe_noise"), evidence)


def _transfer(evidence: Evidence) -> Iterator[Check]:
    yield from _contradicts("transfer from dense", evidence.transferred, evidence)


def _stronger(evidence: Evidence) -> Iterator[Check]:
    name = "more steps and starts, margin loss, straight through"
    yield from _contradicts(name, evidence.of("probe_stronger"), evidence)


def _gradient_free(evidence: Evidence) -> Iterator[Check]:
    searches = evidence.records[evidence.records.method == "square"]
    if searches.empty:
        yield Check("gradient-free", DOUBT, "none", "no attack without gradients in the suite")
    for name in searches.attack.unique():
        yield from _contradicts("gradient-free", evidence.of(name), evidence)


def _randomness(evidence: Evidence) -> Iterator[Check]:
    """For randomized models: averaged gradients, and a fall once the draws are fixed."""
    frozen = evidence.of("probe_frozen")
    if frozen is None:
        return
    named = evidence.records[~evidence.records.attack.isin(RESERVED)]
    most = int(named[named.method == "pgd"].draws.max())
    outcome, reason = PASS, "attacks average over the randomness"
    if most < 2:
        outcome, reason = DOUBT, "no attack of the suite averages its gradients over draws"
    yield Check("averaged gradients", outcome, f"{most} draws", reason)
    if evidence.parent is not None:
        test = compare(frozen, evidence.parent)
        figure = f"{_points(frozen)} against {_points(evidence.parent)} dense"
        stands = test.better and test.difference >= CONTRADICTION
        reason = "with its draws fixed it falls as the dense network does"
        if stands:
            reason = "it resists with its draws fixed: not only randomness hides the gradient"
        yield Check("frozen randomness", DOUBT if stands else PASS, figure, reason)


def _twin(evidence: Evidence) -> Iterator[Check]:
    agreement = evidence.twin_agreement
    if agreement is None:
        return
    figure = f"{100 * agreement:.2f} %"
    if agreement < AGREEMENT:
        yield Check("twin", DOUBT, figure, "the differentiable twin is not the quantized model")
    else:
        yield Check("twin", PASS, figure, "the attack's gradients are the quantized model's")
