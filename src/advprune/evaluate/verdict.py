"""The verdict: can a model's robust accuracy be believed? Checks on records, no torch.

A failed check makes the number `broken`, a doubtful one `suspect`; a number that passes all is
`reliable`. bench/verdict.py measures how often that is wrong. Sources: Athalye et al., Obfuscated
Gradients (2018), section 3.1; Carlini et al., On Evaluating Adversarial Robustness (2019), section
5; Croce and Hein, AutoAttack (2020); Pintor et al., Indicators of Attack Failure (2022). What
should be weaker than the white-box attacks is judged by what it adds to their union.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import pandas as pd

from advprune.core.profile import FROZEN, RESERVED
from advprune.evaluate.compare import ALPHA, Comparison, at_chance, compare, corrected
from advprune.evaluate.evidence import (
    CONTRADICTION,
    DOUBT,
    FAIL,
    PASS,
    Check,
    Evidence,
    accuracy,
    judged,
    more_than_tolerated,
)
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy, right

RELIABLE = "reliable"  # of any other level, robust accuracy and distances are upper bounds
LEVELS = {PASS: RELIABLE, DOUBT: "suspect", FAIL: "broken"}
MASKED = {DOUBT: 0.01, FAIL: 0.1}  # share of images without a gradient, or with a wrong one
AGREEMENT = 0.99  # of a quantized model with its twin
ALL_GREY = 0.5  # a change of every pixel that makes any image any other's equal: models guess
SLOPE_ERROR = 0.1  # relative, of the derivative over steps that are next to nothing
STEP_ERROR = 0.9  # over a larger step: the model's answers do not follow the derivative
BENT = {DOUBT: 0.25, FAIL: 0.5}  # share of images with such an error; honest networks bend, too


@dataclass(frozen=True)
class Verdict:
    """reliable, suspect or broken, and the checks that it follows from."""

    level: str
    checks: list[Check]

    @property
    def against(self) -> list[Check]:
        """The checks that were not passed, the worst first."""
        doubted = [check for check in self.checks if check.outcome != PASS]
        return sorted(doubted, key=lambda check: check.outcome != FAIL)


def verdict(evidence: Evidence) -> Verdict:
    """All checks that the evidence allows, and the level that follows from the worst of them."""
    asked = (not_guessing, without_gradients) if evidence.is_blackbox else CHECKS
    checks = [check for make in asked for check in make(evidence)]
    worst = max((check.outcome for check in checks), key=list(LEVELS).index, default=PASS)
    return Verdict(LEVELS[worst], checks)


def _either(holds: bool, name: str, figure: str, bad: str, worst: str = DOUBT) -> Check:
    """A check that is passed where something holds."""
    return Check(name, PASS, figure) if holds else Check(name, worst, figure, bad)


def _by_share(name: str, share: float, bad: str, limits: dict[str, float] = MASKED) -> Check:
    """A check that is in doubt or failed by the share of images that are masked."""
    worst = FAIL if share > limits[FAIL] else DOUBT
    return _either(share <= limits[DOUBT], name, f"{100 * share:.1f} % of images", bad, worst)


def _added(
    evidence: Evidence, other: pd.DataFrame, name: str, what: str, worst: str = FAIL
) -> Check:
    """A check that is passed where `other` adds next to nothing to the white-box attacks."""
    return judged(len(evidence.added(other)), len(evidence.white_box), name, what, worst)


def not_guessing(evidence: Evidence) -> Iterator[Check]:
    """A constant answer cannot be fooled."""
    records = evidence.records[evidence.records.attack == evidence.main]
    clean = f"{100 * (clean_accuracy(records).value or 0.0):.1f} % clean"
    bad = "at chance: a constant answer cannot be fooled"
    if records.label.nunique() == 1:
        bad = "all images are of one class: whether the answer is constant cannot be told"
    yield _either(not at_chance(records), "clean accuracy", clean, bad)


def without_gradients(evidence: Evidence) -> Iterator[Check]:
    """Queries alone bound robust accuracy from above, however many they are."""
    reason = "asked for answers alone: give a network with gradients that has the same answers"
    yield Check("white-box attacks", DOUBT, "none", reason)


def has_gradients(evidence: Evidence) -> Iterator[Check]:
    """The loss has a gradient at the images."""
    records = evidence.of("probe_gradient")
    if records is not None:
        lost = float((records.gradient == 0).mean())
        yield _by_share("zero gradients", lost, "gradient attacks fail without a gradient")


def dishonest(honesty: pd.DataFrame) -> bool:
    """Whether the records of the probe say that the gradient is wrong."""
    wrong, bent = _errors(honesty)
    return wrong > MASKED[DOUBT] or bent > BENT[DOUBT]


def _errors(honesty: pd.DataFrame) -> tuple[float, float]:
    """The shares of images on which the derivative is wrong, and not followed over a step."""
    wrong, bent = honesty.slope_error > SLOPE_ERROR, honesty.step_error > STEP_ERROR
    return float(wrong.mean()), float(bent.mean())


def honest_gradients(evidence: Evidence) -> Iterator[Check]:
    """The derivative that attacks follow agrees with the model's answers (honesty.py)."""
    records, name = evidence.of("probe_honesty"), "wrong gradients"
    if records is None:
        return
    found = [evidence.of(probe) for probe in ("probe_nes", "probe_student")]
    if tables := [table for table in found if table is not None]:
        what = "an attack by answers alone"
        yield _added(evidence, pd.concat(tables), "estimated gradients", what)
    if records.step_error.isna().all():
        bad = "its draws cannot be fixed: they are of no global random state"
        yield Check(name, DOUBT, "not compared", bad)
        return
    wrong, bent = _errors(records)
    unlike = "the answers do not follow the derivative"
    yield _by_share(f"{name}, over a step", bent, unlike, BENT)
    if not records.declared.iloc[0]:  # a straight-through rule is no derivative by nature
        yield _by_share(name, wrong, "it is not the derivative of the answers")


def _rises(curve: list[tuple[float, pd.DataFrame]]) -> list[float]:
    """The points of a curve that are shown to lie above the one before, corrected for several."""
    tests = corrected([compare(b, a) for (_, a), (_, b) in pairwise(curve)])
    return [value for (value, _), test in zip(curve[1:], tests, strict=True) if test.better]


def more_steps(evidence: Evidence) -> Iterator[Check]:
    """The curve never rises, and its end finds no more than the suite already has."""
    points, name = evidence.curve("curve_steps", "steps"), "more steps"
    if len(points) < 2:
        return
    last, later = points[-1]
    if risen := _rises(points):
        reason = f"more steps do less harm from {risen[0]:.0f} steps on: it does not converge"
        yield Check(name, FAIL, f"{accuracy(later)} at {last:.0f} steps", reason)
    else:
        yield _added(evidence, later, name, f"an attack of {last:.0f} steps", DOUBT)


def larger_budgets(evidence: Evidence) -> Iterator[Check]:
    """A larger budget never does less harm; one that leaves nothing of an image, only guesses."""
    points = evidence.curve("curve_eps", "eps")
    linf = any((table.norm == "Linf").any() for _, table in points)

    def told(eps: float) -> str:
        return f"{255 * eps:.4g}/255" if linf else f"{eps:.4g}"

    if len(points) > 1:
        figure = f"{accuracy(points[0][1])} to {accuracy(points[-1][1])}"
        risen = [told(eps) for eps in _rises(points)]
        bad = f"a larger budget does less harm at eps {risen[0]}" if risen else ""
        yield _either(not risen, "larger budgets", figure, bad, FAIL)
    for eps, records in points[-1:]:
        low, _ = remnant_accuracy(records).interval
        guesses = low is None or low <= 1 / evidence.classes
        recognizable = eps < ALL_GREY * (1 if linf else sqrt(evidence.pixels))
        figure = f"{accuracy(records)} at eps {told(eps)}"
        bad = "above guessing where nearly any image is allowed"
        yield _either(guesses or recognizable, "largest budget", figure, bad, FAIL)


def beside_one_step(records: pd.DataFrame) -> dict[tuple[str, float], Comparison]:
    """Each iterative attack on one model beside FGSM of the same norm and budget on the same
    images, by attack and budget, corrected together: `better` where it is shown to do less harm.
    Attacks that cannot cross the budget are left out; the most harmful single step counts."""
    table = records.assign(budget=records.eps.round(6), norm=records.norm.fillna("Linf"))
    once = table[(table.steps == 1) & ~(table.step < table.eps) & (table.budget > 0)]
    reach = (table.steps * table.step >= table.eps) | (table.method == "apgd")
    many = table[(table.steps > 1) & table.method.isin(["pgd", "apgd"]) & reach]
    found = {}
    for (norm, budget), singles in once.groupby(["norm", "budget"]):
        each = [single for _, single in singles.groupby("attack", sort=False)]
        single = min(each, key=lambda one: int(right(one).sum()))
        own = many[(many.norm == norm) & (many.budget == budget)]
        for attack, part in own.groupby("attack", sort=False):
            test = compare(part.sort_values("index"), single.sort_values("index"))
            found[str(attack), float(single.eps.iloc[0])] = test
    return dict(zip(found, corrected(list(found.values())), strict=True))


def iterations_help(evidence: Evidence) -> Iterator[Check]:
    """FGSM breaks nothing that iterative attacks do not, and none of them does less harm alone."""
    single = evidence.of("probe_single")
    if single is None:
        return
    yield _added(evidence, single, "single step", "a single step")
    named = evidence.records[~evidence.records.attack.isin(RESERVED) & (evidence.records.steps > 1)]
    if evidence.of(FROZEN) is not None:  # random: others may average less, or pass over no layer
        named = named[named.attack == evidence.main]
    tests = beside_one_step(pd.concat([single, named]))
    behind = {attack: test for (attack, _), test in tests.items() if test.better}
    for attack, test in behind.items():
        left = 100 * (test.first.value or 0)
        figure = f"{accuracy(single)} after one step, {left:.1f} % after all"
        reason = f"{attack} does less harm than a single step (p = {test.p:.2g})"
        yield Check("iterative attacks", FAIL, figure, reason)
    if tests and not behind:
        figure = f"none of {len(tests)} attack{'s' * (len(tests) > 1)} less harmful than one step"
        yield Check("iterative attacks", PASS, figure)


def noise(evidence: Evidence) -> Iterator[Check]:
    """Random points of the ball break nothing that the attacks do not."""
    if (found := evidence.of("probe_noise")) is not None:
        yield _added(evidence, found, "random noise", "random noise")


def transfer(evidence: Evidence) -> Iterator[Check]:
    """Images from other networks, all sources together, break nothing that the attacks do not."""
    if not evidence.transfers:
        return
    added = {key: evidence.added(table) for key, table in evidence.transfers.items()}
    count = len(set().union(*added.values()))
    source, attack = max(added, key=lambda key: len(added[key]))
    what = f"transfer from {len(added)} sets of images (most from {source}, {attack})"
    yield judged(count, len(evidence.white_box), "transfer", what)


def gradient_free(evidence: Evidence) -> Iterator[Check]:
    """Searches without gradients break nothing that the attacks do not; one at least is needed."""
    from advprune.attacks.registry import fooled_by_search  # needs torch

    name = "gradient-free"
    if not evidence.searches:
        yield Check(name, DOUBT, "none", "no attack without gradients in the suite")
    for attack, records in evidence.searches.items():
        count = len(evidence.added(records))
        most = fooled_by_search(records.method.iloc[0], records.breakdown.iloc[0])
        yield judged(count if most is None else min(count, most), len(records), name, attack)


def stronger(evidence: Evidence) -> Iterator[Check]:
    """More steps, starts and draws than any attack of the suite, on what that left."""
    if (found := evidence.of("probe_stronger")) is not None:
        yield _added(evidence, found, "more steps, starts and draws", "a stronger attack")


def together(evidence: Evidence) -> Iterator[Check]:
    """What is tolerated of each attack that adds a little is tolerated of all of them as well."""
    own = evidence.records[evidence.records.attack != FROZEN].groupby("attack")
    tables, n = [*dict(iter(own)).values(), *evidence.transfers.values()], len(evidence.white_box)
    added = [evidence.added(table) for table in tables]
    little = [images for images in added if more_than_tolerated(len(images), n) >= ALPHA]
    yield judged(len(set().union(*little)), n, "all together", "all that adds a little", DOUBT)


def randomness(evidence: Evidence) -> Iterator[Check]:
    """Of randomized models: averaged gradients; with fixed draws they fall as dense ones do."""
    frozen = evidence.of(FROZEN)
    if frozen is None:
        return
    named = evidence.records[~evidence.records.attack.isin(RESERVED)]
    most = int(named[named.method.isin(["pgd", "apgd"])].draws.max())
    bad = "no attack of the suite averages its gradients over draws"
    figure = f"averaged over {most} draws" if most > 1 else "1 draw"
    yield _either(most > 1, "averaged gradients", figure, bad)
    if evidence.parent is not None:
        test = compare(frozen, evidence.parent)
        figure = f"{accuracy(frozen)} against {accuracy(evidence.parent)} dense"
        # By p alone: lower clean accuracy is no excuse for resisting.
        falls = test.p >= ALPHA or test.difference < CONTRADICTION
        bad = "it resists with its draws fixed: not only randomness hides the gradient"
        yield _either(falls, "frozen randomness", figure, bad)


def twin(evidence: Evidence) -> Iterator[Check]:
    """The differentiable twin of a quantized model or of a target gives its answers."""
    agreement = evidence.twin_agreement
    if agreement is not None:
        bad = "attacks follow the gradients of a network with other answers"
        yield _either(agreement >= AGREEMENT, "twin", f"{100 * agreement:.2f} %", bad)


CHECKS: tuple[Callable[[Evidence], Iterator[Check]], ...] = (
    *(not_guessing, has_gradients, honest_gradients, more_steps, larger_budgets, iterations_help),
    *(noise, transfer, gradient_free, stronger, together, randomness, twin),
)
