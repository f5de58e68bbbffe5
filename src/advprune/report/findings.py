"""What was found, in sentences: each one computed from the study, with its numbers and its n.

A difference is called one only where McNemar's exact test on the same images gives p < 0.05.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from math import ceil, isclose
from statistics import median
from typing import Any

import pandas as pd

from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.statistics import Rate
from advprune.params import AttackSettings
from advprune.report.compare import Comparison, compare, holm
from advprune.report.study import Model, Point, Study, curve
from advprune.report.text import (
    ALPHA,
    budget,
    count,
    listed,
    p_value,
    percent,
    setting_text,
    with_interval,
)

ZERO = 0.01  # a remnant accuracy that counts as about zero


@dataclass(frozen=True)
class Finding:
    """A question with its answer, what it rests on in sentences, and the figures behind them."""

    title: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)


def findings(study: Study) -> list[Finding]:
    """All findings that this study allows, base by base, the answer first."""
    makers: list[Callable[[Study, str], Iterator[Finding]]] = [
        answer,
        schedules,
        where_it_acts,
        clamped_spread,
        quantized,
        sanity,
    ]
    return [
        _titled(finding, base, study)
        for base in study.params.bases
        for make in makers
        for finding in make(study, base)
    ]


def _titled(finding: Finding, base: str, study: Study) -> Finding:
    if len(study.params.bases) == 1:
        return finding
    return Finding(f"{base}: {finding.title}", finding.text, finding.figures)


def _paragraphs(*parts: Sequence[str]) -> str:
    return "\n\n".join(" ".join(part) for part in parts if part)


def _rate(rate: Rate) -> str:
    return with_interval(rate.value, *rate.interval).replace(" (", " % (")


def _attack_words(name: str, setting: AttackSettings) -> str:
    restarts = count(setting.restarts, "restart")
    size = f"eps {budget(setting.eps)}, {setting.steps} steps of {budget(setting.step)}"
    return f"{name} ({setting.norm}, {size}, {restarts})"


# --- does compression change robustness? ---------------------------------------------------------


def answer(study: Study, base: str) -> Iterator[Finding]:
    """Which families differ from the dense network under the main attack, on the same images."""
    dense, others = study.dense(base), study.of(base)[1:]
    tests = {m.family: compare(m.attack(study.main), dense.attack(study.main)) for m in others}
    clean = {
        m.family: compare(m.attack(study.main), dense.attack(study.main), "clean") for m in others
    }
    better = [name for name, test in tests.items() if test.better]
    worse = [name for name, test in tests.items() if test.differs and not test.better]
    same = [name for name, test in tests.items() if not test.differs]
    untouched = [m.family for m in others if m.card["sha256"] == dense.card["sha256"]]
    elsewhere = _over_budgets(dense, others)
    high = [m.family for m in others if m.family in elsewhere and _reads_high(study, m)]
    under_main = [
        _opening(study, dense),
        *_against_dense(tests, better, worse, same),
        *_corrected(tests, better + worse),
    ]
    beyond = [
        *_budget_words(dense, elsewhere, high),
        *_untouched_words(untouched),
        *_clean_words(clean),
    ]
    figures = {
        "better": better,
        "worse": worse,
        "same": same,
        "untouched": untouched,
        "p": {name: test.p for name, test in tests.items()},
        "over_budgets": {
            name: {eps: test.difference for eps, test in found} for name, found in elsewhere.items()
        },
    }
    trusted = [name for name in elsewhere if name not in high]
    title = _answer_title(study.main, better, worse, trusted)
    yield Finding(title, _paragraphs(under_main, beyond), figures)


def _answer_title(main: str, better: list[str], worse: list[str], elsewhere: list[str]) -> str:
    question = "Does compression change adversarial robustness?"
    rest = [name for name in elsewhere if name not in better + worse]
    parts = [f"{listed(better)} more robust under {main}"] if better else []
    parts += [f"{listed(worse)} less robust under {main}"] if worse else []
    if not parts:
        parts = [f"No difference from the dense network is shown under {main}"]
    differ = "differs" if len(rest) == 1 else "differ"
    parts += [f"{listed(rest)} {differ} at other budgets"] if rest else []
    return f"{question} {'; '.join(parts)}"


def _opening(study: Study, dense: Model) -> str:
    records = dense.attack(study.main)
    attack = _attack_words(study.main, study.params.active().attacks[study.main])
    return (
        f"Under {attack}, on n = {len(records)} images, the dense network falls from "
        f"{_rate(clean_accuracy(records))} clean accuracy to {_rate(remnant_accuracy(records))} "
        "remnant accuracy."
    )


def _against_dense(
    tests: dict[str, Comparison], better: list[str], worse: list[str], same: list[str]
) -> Iterator[str]:
    for names, word in ((better, "More"), (worse, "Less")):
        if names:
            each = [
                f"{name} {_rate(tests[name].first)}, {p_value(tests[name].p)}" for name in names
            ]
            yield f"{word} robust than it: {'; '.join(each)}."
    if same:
        values = sorted((tests[name].first.value or 0.0) for name in same)
        span = percent(values[0])
        if percent(values[-1]) != span:
            span = f"between {span} and {percent(values[-1])}"
        yield (
            f"No difference is shown for {listed(same)} ({span} %; paired McNemar test, "
            "p ≥ 0.05): a difference inside the interval is not called a difference."
        )


def _corrected(tests: dict[str, Comparison], differing: list[str]) -> Iterator[str]:
    if not differing:
        return
    corrected = dict(zip(tests, holm([test.p for test in tests.values()]), strict=True))
    left = [name for name in differing if corrected[name] < ALPHA]
    verb = "differs" if len(left) == 1 else "differ"
    rest = f"{listed(left)} still {verb}" if left else "no difference is left"
    yield f"After Holm's correction for {count(len(tests), 'test')}, {rest}."


Differences = dict[str, list[tuple[float, Comparison]]]


def _over_budgets(dense: Model, others: list[Model]) -> Differences:
    """Points of the security curve at which a family differs, corrected for all of them."""
    parent = dict(curve(dense, "curve_eps", "eps"))
    tests = [
        (model.family, eps, compare(records, parent[eps]))
        for model in others
        for eps, records in curve(model, "curve_eps", "eps")
        if eps > 0 and eps in parent
    ]
    found: Differences = {}
    for (name, eps, test), p in zip(tests, holm([test.p for *_, test in tests]), strict=True):
        if p < ALPHA:
            found.setdefault(name, []).append((eps, test))
    return found


def _budget_words(dense: Model, found: Differences, high: list[str]) -> Iterator[str]:
    points = [eps for eps, _ in curve(dense, "curve_eps", "eps") if eps > 0]
    if not points:
        return
    budgets = f"{count(len(points), 'budget')} from {budget(points[0])} to {budget(points[-1])}"
    if not found:
        yield f"No difference is shown for any of them over the {budgets} of the security curve."
        return
    each = []
    for name, tests in found.items():
        eps, widest = max(tests, key=lambda item: abs(item[1].difference))
        each.append(
            f"{name} differs at {len(tests)}, most at eps {budget(eps)} with "
            f"{percent(widest.first.value)} against {percent(widest.second.value)} %"
        )
    yield (
        f"Over the {budgets} of the security curve, after Holm's correction, "
        f"{'; '.join(each)}; no other family is shown to differ."
    )
    if high:
        verb = "reads" if len(high) == 1 else "read"
        yield f"But the curve of {listed(high)} {verb} too high (see the last finding)."


def _untouched_words(untouched: list[str]) -> Iterator[str]:
    if untouched:
        verb = "row is" if len(untouched) == 1 else "rows are"
        yield (
            f"{listed(untouched)} changed no weight at this setting: the {verb} the dense "
            "network again, byte for byte."
        )


def _clean_words(tests: dict[str, Comparison]) -> Iterator[str]:
    moved = {name: test for name, test in tests.items() if test.differs}
    if not moved:
        yield "No difference in clean accuracy is shown for any of them."
        return
    each = [
        f"{name} by {100 * test.difference:+.1f} points to {_rate(test.first)}, {p_value(test.p)}"
        for name, test in moved.items()
    ]
    yield f"Clean accuracy moves for {'; '.join(each)}."


# --- a short schedule against a long one ---------------------------------------------------------


def schedules(study: Study, base: str) -> Iterator[Finding]:
    """For each two attacks that differ only in steps: does the shorter one flatter the families?"""
    attacks = study.params.active().attacks
    for short, long in permutations(attacks, 2):
        if _only_more_steps(attacks[short], attacks[long]):
            yield _schedule(study, base, short, long)


def _only_more_steps(short: AttackSettings, long: AttackSettings) -> bool:
    ignored = {"steps", "note"}
    alike = short.model_dump(exclude=ignored) == long.model_dump(exclude=ignored)
    return alike and short.steps < long.steps


@dataclass(frozen=True)
class Row:
    """One row of the published table, under two schedules, against the dense network."""

    name: str
    short: Comparison
    long: Comparison


def _rows(study: Study, base: str, short: str, long: str) -> list[Row]:
    dense = study.dense(base)
    subjects: list[tuple[str, Model | Point]] = [
        (f"{family} = {setting_text(point.setting)}", point)
        for family in study.params.sweep
        for point in study.points(family, base)
    ]
    if not subjects:
        subjects = [(model.family, model) for model in study.of(base)[1:]]
    return [
        Row(
            name,
            compare(subject.attack(short), dense.attack(short)),
            compare(subject.attack(long), dense.attack(long)),
        )
        for name, subject in subjects
    ]


def _better(rows: list[Row], which: str) -> list[str]:
    """Rows above the dense network, after Holm's correction for all rows."""
    tests: list[Comparison] = [getattr(row, which) for row in rows]
    corrected = holm([test.p for test in tests])
    return [
        row.name
        for row, test, p in zip(rows, tests, corrected, strict=True)
        if p < ALPHA and test.difference > 0
    ]


def _schedule(study: Study, base: str, short: str, long: str) -> Finding:
    rows, dense = _rows(study, base, short, long), study.dense(base)
    fall = compare(dense.attack(short), dense.attack(long))
    above = {which: _better(rows, which) for which in ("short", "long")}
    verdict = _verdict(fall, above["long"])
    text = _paragraphs(
        [_travel(study, short, long), _fall_words(fall, long, short)],
        [*_row_words(rows, short, long), _verdict_words(verdict, fall, above, short, long)],
    )
    figures = {
        "verdict": verdict,
        "short": short,
        "long": long,
        "dense": (fall.first.value, fall.second.value),
        "above_short": above["short"],
        "above_long": above["long"],
        "rows": {row.name: (row.short.first.value, row.long.first.value) for row in rows},
    }
    return Finding(_schedule_title(verdict, short), text, figures)


def _verdict(fall: Comparison, above_long: list[str]) -> str:
    """weaker attack, robustness, both or neither."""
    if above_long:
        return "both" if fall.better else "robustness"
    return "weaker attack" if fall.better else "neither"


def _schedule_title(verdict: str, short: str) -> str:
    ends = {
        "weaker attack": "No: it is a weaker attack",
        "robustness": "Yes, in some rows",
        "both": "In part: it is a weaker attack, and some rows differ beyond it",
        "neither": "There is nothing to explain: more steps find no more",
    }
    return f"Is the remnant accuracy under {short} robustness? {ends[verdict]}"


def _travel(study: Study, short: str, long: str) -> str:
    attacks = study.params.active().attacks
    eps, reach = attacks[short].eps, attacks[short].steps * attacks[short].step
    far = attacks[long].steps * attacks[long].step
    share = f"{100 * reach / eps:.0f} % of eps" if eps else "eps being 0"
    return (
        f"{attacks[short].steps} steps of {budget(attacks[short].step)} travel at most "
        f"{budget(reach)} from the random start, {share} {budget(eps)}; {long} has "
        f"{attacks[long].steps} steps and {budget(far)} to travel."
    )


def _fall_words(fall: Comparison, long: str, short: str) -> str:
    if fall.better:
        verb = "falls to"
    else:
        verb = "rises to" if fall.differs else "is not shown to differ from its"
    return (
        f"On n = {fall.first.n} images the dense network itself keeps {_rate(fall.first)} under "
        f"{short} and {verb} {_rate(fall.second)} under {long} ({p_value(fall.p)})."
    )


def _row_words(rows: list[Row], short: str, long: str) -> Iterator[str]:
    for which, attack in (("short", short), ("long", long)):
        tests: list[Comparison] = [getattr(row, which) for row in rows]
        values = [test.first.value or 0.0 for test in tests]
        same = sum(not test.differs for test in tests)
        yield (
            f"Under {attack} the {count(len(rows), 'row')} of the families lie between "
            f"{percent(min(values))} and {percent(max(values))} %; {same} show no difference from "
            f"the dense network on the same images{_exceptions(rows, which)}."
        )


def _exceptions(rows: list[Row], which: str) -> str:
    """The rows that differ, in brackets."""
    parts = []
    for row in rows:
        test: Comparison = getattr(row, which)
        if test.differs:
            side = "better" if test.better else "worse"
            parts.append(f"{row.name} is {side} at {percent(test.first.value)} %")
    return f" ({'; '.join(parts)})" if parts else ""


def _verdict_words(
    verdict: str, fall: Comparison, above: dict[str, list[str]], short: str, long: str
) -> str:
    vanished = [name for name in above["short"] if name not in above["long"]]
    gone = f" What {listed(vanished)} had over it under {short} is gone." if vanished else ""
    points = 100 * fall.difference
    if verdict == "weaker attack":
        return (
            f"So it is the attack: the schedule alone is worth {points:.1f} points on the dense "
            f"network, and no row is more robust than it under {long}.{gone}"
        )
    if verdict == "neither":
        return f"So the schedule hides nothing here, and no row is more robust than dense.{gone}"
    stay = "stays" if len(above["long"]) == 1 else "stay"
    lead = f"So {listed(above['long'])} {stay} above the dense network under {long} as well"
    if verdict == "both":
        return (
            f"{lead}, which the schedule does not explain; the rest of what {short} leaves is the "
            f"weaker attack, worth {points:.1f} points on the dense network.{gone}"
        )
    return f"{lead}, while more steps take nothing from it: this is not the schedule.{gone}"


# --- where the attack acts -----------------------------------------------------------------------

MEASURES = {
    "relative_difference": "relative difference |adv - clean| / |clean|",
    "distance": "distance between the distributions",
}


@dataclass(frozen=True)
class Standing:
    """How the input layer and the one before the classifier rank among all layers."""

    input: str
    last: str
    layers: int
    ranks: dict[str, tuple[int, int]]  # measure -> ranks of input and last, 1 is largest
    top: dict[str, list[str]]

    @property
    def cut(self) -> int:
        """A layer stands out by rank up to this: the top tenth."""
        return ceil(self.layers / 10)

    @property
    def verdict(self) -> str:
        """yes: both stand out by both measures; partly: one by one of them; no: none."""
        out = [rank <= self.cut for pair in self.ranks.values() for rank in pair]
        return "yes" if all(out) else "partly" if any(out) else "no"


def standing(layers: pd.DataFrame, top: int = 5) -> Standing:
    """Rank the layers of one model by how far the attack moves them.

    The input layer is the first one behind the normalization; the last layer before the
    classifier is what the classifier reads.
    """
    table = layers.sort_values("depth", ignore_index=True)
    first = table[table.kind != "Normalize"].layer.iloc[0]
    last = table.layer.iloc[-2]
    ranks, tops = {}, {}
    for measure in MEASURES:
        rank = table[measure].rank(method="min", ascending=False).astype(int)
        place = dict(zip(table.layer, rank, strict=True))
        ranks[measure] = (int(place[first]), int(place[last]))
        tops[measure] = table.layer.loc[rank.sort_values(kind="stable").index[:top]].tolist()
    return Standing(first, last, len(table), ranks, tops)


def where_it_acts(study: Study, base: str) -> Iterator[Finding]:
    """Does the attack act on the input layer and on the one before the classifier?"""
    found = {model.family: standing(model.layers) for model in study.of(base)}
    dense = found["dense"]
    alike = [name for name, one in found.items() if one.verdict == dense.verdict]
    text = [
        "The claim is that PGD acts on the input layer and on the layer before the classifier.",
        *(_measure_words(dense, measure) for measure in MEASURES),
        *_stage_words(dense),
        f"With the top {dense.cut} of {dense.layers} layers counted as standing out, the answer "
        f"is: {dense.verdict}. It is the same for {len(alike)} of {count(len(found), 'model')}.",
        f"(n = {len(study.dense(base).attack(study.main))} images, attack {study.main}.)",
    ]
    yield Finding(
        "Does PGD act on the input layer and the one before the classifier? "
        + dense.verdict.capitalize(),
        " ".join(text),
        {"verdict": dense.verdict, "ranks": dense.ranks, "layers": dense.layers, "top": dense.top},
    )


def _measure_words(found: Standing, measure: str) -> str:
    first, last = found.ranks[measure]
    return (
        f"By {MEASURES[measure]}, {found.input} ranks {first} and {found.last} ranks {last} of "
        f"{found.layers}; the largest are {listed(found.top[measure])}."
    )


def _stage_words(found: Standing) -> Iterator[str]:
    """Where the largest differences lie, by stage of the network."""
    top = [name.partition(".")[0] for names in found.top.values() for name in names]
    stage = max(dict.fromkeys(top), key=top.count)
    if any(name.startswith(f"{stage}.") for names in found.top.values() for name in names):
        yield f"Of these {len(top)} places, {top.count(stage)} are in {stage}."


# --- the clamped model ---------------------------------------------------------------------------


def clamped_spread(study: Study, base: str) -> Iterator[Finding]:
    """Does the spread of the clamped model's last stage grow under attack?"""
    clamped = [model for model in study.of(base) if model.family == "clamp"]
    if not clamped:
        return
    stage, ratios = _spread(clamped[0].layers)
    _, before = _spread(study.dense(base).layers)
    if not ratios or not before:
        return
    grown, dense_grown = sum(r > 1 for r in ratios), sum(r > 1 for r in before)
    verdict = "yes" if grown == len(ratios) else "no" if grown == 0 else "partly"
    text = (
        f"Under {study.main}, sigma of the feature maps is larger than on clean images in {grown} "
        f"of {count(len(ratios), 'layer')} of {stage} for the clamped model "
        f"(median ratio {median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}) and in "
        f"{dense_grown} of {len(before)} for the dense one (median {median(before):.2f}). "
        f"So sigma of the last stage {_spread_verb(median(ratios))} under attack when maps are "
        f"clamped, and {_spread_verb(median(before))} when they are not "
        f"(n = {len(clamped[0].attack(study.main))} images)."
    )
    title = f"Does the clamped model's sigma grow in its last stage? {verdict.capitalize()}"
    figures = {"verdict": verdict, "clamp": median(ratios), "dense": median(before), "stage": stage}
    yield Finding(title, text, figures)


def _spread(layers: pd.DataFrame) -> tuple[str, list[float]]:
    """The last residual stage, and sigma under attack over clean sigma of each of its layers."""
    inside = layers[layers.layer.str.match(r"layer\d+\.")]
    if inside.empty:
        return "", []
    stage = inside.sort_values("depth").layer.iloc[-1].partition(".")[0]
    chosen = inside[inside.layer.str.startswith(f"{stage}.")]
    return stage, [float(r) for r in chosen.adv_sigma / chosen.clean_sigma.clip(lower=1e-12)]


def _spread_verb(ratio: float) -> str:
    return "grows" if ratio > 1.02 else "shrinks" if ratio < 0.98 else "stays as it is"


# --- int8 ----------------------------------------------------------------------------------------


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
        f"keeps {_rate(test.first)} when attacked itself and {_rate(test.second)} on images "
        f"crafted on the dense network ({p_value(test.p)}): {_carried_words(test)} "
        f"Against the dense network's {_rate(against.second)}, {_against_words(against)}."
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


# --- was the attack run to its end? --------------------------------------------------------------


def sanity(study: Study, base: str) -> Iterator[Finding]:
    """Is the step curve flat at its end, and does a large budget leave nothing?"""
    models = study.of(base)
    falling = {m.family: t for m in models if (t := _last_steps(m)) is not None and not _flat(t)}
    ends = {m.family: end for m in models if (end := _largest_eps(m)) is not None}
    chance = 1 / max(len(study.classes), 1)
    left = [name for name, rate in ends.items() if (rate.value or 0.0) > ZERO]
    above = [name for name, rate in ends.items() if (rate.interval[1] or 0.0) >= chance]
    gaps = {m.family: test for m in models if (test := _reads_high(study, m)) is not None}
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
        yield Finding(_sanity_title(falling, left, above), " ".join(text), figures)


def _sanity_title(falling: dict[str, Comparison], left: list[str], above: list[str]) -> str:
    question = "Was the attack strong enough?"
    if above:
        return f"{question} No: {listed(above)} above chance at the largest eps"
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


def _reads_high(study: Study, model: Model) -> Comparison | None:
    """The security curve against the main attack at its own budget, where the curve is above."""
    eps = study.params.active().attacks[study.main].eps
    for value, records in curve(model, "curve_eps", "eps"):
        if isclose(value, eps, rel_tol=1e-6):
            test = compare(records, model.attack(study.main))
            return test if test.better else None
    return None


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
        + (f"; not so {listed([f'{name} {_rate(ends[name])}' for name in left])}." if left else ".")
    )
    if above:
        yield (
            f"{listed(above)} cannot be shown to be below chance ({percent(chance)} %) there, a "
            "sign of hidden gradients: these numbers are not to be trusted."
        )


def _gap_words(study: Study, gaps: dict[str, Comparison]) -> Iterator[str]:
    if gaps:
        each = [
            f"{name} ({percent(test.first.value)} % on the curve, {percent(test.second.value)} %)"
            for name, test in gaps.items()
        ]
        yield (
            f"At the budget of {study.main} the curve lies above the attack itself for "
            f"{listed(each)}: curves stop working on an image once it is misclassified, and such "
            "an image can be right again when rounded to 8 bits."
        )
