"""Findings on whether the attack can be trusted: transfer to int8, convergence, large budgets."""

from collections.abc import Iterator
from math import isclose

from advprune.evaluate.compare import Comparison, compare
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.report.finding import Finding, spell
from advprune.report.study import Model, Study, curve
from advprune.report.text import (
    budget,
    count,
    listed,
    p_value,
    percent,
)


def quantized(study: Study, base: str) -> Iterator[Finding]:
    """Is the quantized model more robust, or only attacked with the wrong gradients?"""
    for model in study.of(base):
        if model.family == "int8":
            yield _quantized(study, model)


def _quantized(study: Study, model: Model) -> Finding:
    own, carried = model.attack(study.main), model.transferred(study.main)
    test = compare(own, carried)
    against = compare(own, study.dense(model.base).attack(study.main))
    agreement = model.card["twin_agreement"]
    twin = (
        ""
        if agreement is None
        else (
            f"The attack goes through a differentiable twin, which predicts the same class as the "
            f"{model.card['bits']}-bit model on {percent(agreement)} % of clean images. "
        )
    )
    text = (
        f"{twin}Under {study.main}, on n = {len(own)} images, the {model.card['bits']}-bit model "
        f"keeps {spell(test.first)} when attacked itself and {spell(test.second)} on images "
        f"crafted on the dense network ({p_value(test.p)}): {_carried_words(test)} "
        f"Against the dense network's {spell(against.second)}, {_against_words(against)}."
    )
    title = f"Does {model.card['bits']}-bit quantization protect? {_protects(against)}"
    figures = {
        "twin_agreement": agreement,
        "white_box": test.first.value,
        "transfer": test.second.value,
        "p": test.p,
        "against_dense": against.mark,
    }
    return Finding(title, text, figures)


def _carried_words(test: Comparison) -> str:
    if not test.differs:
        return "no difference is shown, so float images carry over as well as its own."
    if test.better:
        return "images carried over do more harm than its own, a sign of hidden gradients."
    return "its own attack does more harm, so transfer alone would flatter it."


def _against_words(test: Comparison) -> str:
    if not test.differs:
        return f"no difference is shown ({p_value(test.p)})"
    return f"it is {'more' if test.better else 'less'} robust ({p_value(test.p)})"


def _protects(test: Comparison) -> str:
    if not test.differs:
        return "No difference is shown"
    return "It is more robust" if test.better else "It is less robust"


ZERO = 0.01  # a remnant accuracy that counts as about zero


def sanity(study: Study, base: str) -> Iterator[Finding]:
    """Is the step curve flat at its end, and does a large budget leave nothing?"""
    models = study.of(base)
    falling = {m.family: t for m in models if (t := _last_steps(m)) is not None and not _flat(t)}
    ends = {m.family: end for m in models if (end := _largest_eps(m)) is not None}
    chance = 1 / max(len(study.classes), 1)
    left = [name for name, rate in ends.items() if (rate.value or 0.0) > ZERO]
    above = [name for name, rate in ends.items() if (rate.interval[0] or 0.0) > chance]
    gaps = {m.family: test for m in models if (test := reads_high(study, m)) is not None}
    text = [
        *_step_words(study, base, falling),
        *_eps_words(study, ends, left, above, chance),
        *_gap_words(study, gaps),
    ]
    figures = {
        "falling": list(falling),
        "left": left,
        "above_chance": above,
        "gaps": {name: test.difference for name, test in gaps.items()},
    }
    if text:
        yield Finding(
            _sanity_title(list(falling), left, above, list(gaps)), " ".join(text), figures
        )


def _sanity_title(falling: list[str], left: list[str], above: list[str], gaps: list[str]) -> str:
    question = "Was the attack strong enough?"
    if above:
        return f"{question} No: {listed(above)} above chance at the largest eps"
    if gaps:
        return f"{question} Not along the curve of {listed(gaps)}"
    if falling:
        return f"{question} Not to the end: more steps still find more"
    return f"{question} Yes" + (f", with a remnant in {listed(left)}" if left else "")


def _last_steps(model: Model) -> Comparison | None:
    points = curve(model, "curve_steps", "steps")
    return compare(points[-1][1], points[-2][1]) if len(points) > 1 else None


def _flat(last: Comparison) -> bool:
    return not (last.differs and last.difference < 0)


def _largest_eps(model: Model) -> Rate | None:
    points = curve(model, "curve_eps", "eps")
    return remnant_accuracy(points[-1][1]) if points else None


def _step_words(study: Study, base: str, falling: dict[str, Comparison]) -> Iterator[str]:
    points = curve(study.dense(base), "curve_steps", "steps")
    if len(points) < 2:
        return
    values = [f"{percent(remnant_accuracy(r).value)} % at {s:.0f}" for s, r in points[-3:]]
    yield f"Over the number of steps, the dense network keeps {listed(values)}."
    last = f"from {points[-2][0]:.0f} to {points[-1][0]:.0f} steps"
    if falling:
        drops = [f"{name} {100 * test.difference:+.1f} points" for name, test in falling.items()]
        yield f"The curve still falls {last} for {listed(drops)} (p < 0.05): it has not converged."
    else:
        yield f"No model is shown to fall further {last}."


def _eps_words(
    study: Study, ends: dict[str, Rate], left: list[str], above: list[str], chance: float
) -> Iterator[str]:
    if not ends:
        return
    eps = budget(max(study.params.active().curves.eps))
    zero = [name for name in ends if name not in left]
    yield (
        f"At the largest budget, eps {eps}, {len(zero)} of {count(len(ends), 'model')} are at "
        f"{100 * ZERO:.0f} % or below"
        + (f"; not so {listed([f'{name} {spell(ends[name])}' for name in left])}." if left else ".")
    )
    if above:
        yield (
            f"{listed(above)} {'is' if len(above) == 1 else 'are'} above chance "
            f"({percent(chance)} %) there, by the whole interval, a sign of hidden gradients: "
            "these numbers are not to be trusted."
        )


def _gap_words(study: Study, gaps: dict[str, Comparison]) -> Iterator[str]:
    if gaps:
        each = [
            f"{name} ({percent(test.first.value)} % on the curve, {percent(test.second.value)} %)"
            for name, test in gaps.items()
        ]
        yield (
            f"At the budget of {study.main} the curve lies above the attack itself for "
            f"{listed(each)}, p < 0.05: there the curve attacked less well, and the lower number "
            "is the one to go by."
        )


def reads_high(study: Study, model: Model) -> Comparison | None:
    """The security curve against the main attack at its own budget, where the curve is above."""
    eps = study.main_attack.eps
    for value, records in curve(model, "curve_eps", "eps"):
        if isclose(value, eps, rel_tol=1e-6):
            test = compare(records, model.attack(study.main))
            return test if test.better else None
    return None
