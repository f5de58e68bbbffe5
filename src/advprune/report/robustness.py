"""Findings on robustness: does compression change it, and is a short schedule a defence?"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from advprune.core.attack_settings import AttackSettings
from advprune.evaluate.compare import Comparison, compare, corrected
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report.finding import Finding, paragraphs, spell
from advprune.report.published import NN_PRUNE
from advprune.report.study import Model, Point, Study, curve
from advprune.report.text import (
    budget,
    count,
    listed,
    p_value,
    percent,
    setting_text,
)
from advprune.report.trust import reads_high
from advprune.report.verdicts import doubted

# Rows of the nn-prune table whose remnant accuracy E's rows (0.2 %) do not share.
SINGLED_OUT = {f"{family} = {at}": (family, at) for family, at in (("R", "0.001"), ("S", "5"))}


@dataclass(frozen=True)
class Answer:
    """The families of a base against its dense network, in the worst case over the suite.

    alone: each by itself. tests: corrected for there being several. named: how each is called,
    with its verdict where that is not reliable.
    """

    dense: Model
    others: list[Model]
    alone: dict[str, Comparison]
    tests: dict[str, Comparison]
    named: dict[str, str]

    @property
    def better(self) -> list[str]:
        """Families that are shown to be more robust."""
        return [name for name, test in self.tests.items() if test.better]

    @property
    def worse(self) -> list[str]:
        """Families that are shown to be less robust."""
        return [name for name, test in self.tests.items() if test.differs and not test.better]

    @property
    def same(self) -> list[str]:
        """Families of which no difference is shown."""
        return [name for name, test in self.tests.items() if not (test.differs or test.void)]

    @property
    def void(self) -> list[str]:
        """Families that are at chance when clean."""
        return [name for name, test in self.tests.items() if test.void]

    @property
    def untouched(self) -> list[str]:
        """Families whose file is the dense network's."""
        sha256 = self.dense.card["sha256"]
        return [model.family for model in self.others if model.card["sha256"] == sha256]


def _answer(study: Study, base: str) -> Answer:
    dense, others = study.dense(base), study.of(base)[1:]
    alone = {m.family: compare(study.robust(m), study.robust(dense)) for m in others}
    tests = dict(zip(alone, corrected(list(alone.values())), strict=True))
    return Answer(dense, others, alone, tests, {m.family: doubted(study, m) for m in others})


def answer(study: Study, base: str) -> Iterator[Finding]:
    """Which families differ from the dense network under the suite, on the same images."""
    found = _answer(study, base)
    elsewhere = _over_budgets(found.dense, found.others)
    high = [m.family for m in found.others if m.family in elsewhere and reads_high(study, m)]
    under_suite = [
        _opening(study, found.dense),
        *_against_dense(found),
        *_uncorrected(found),
        *([f"At chance when clean, so not compared: {listed(found.void)}."] if found.void else []),
        *_doubt_words(found),
    ]
    beyond = [
        *_budget_words(study, found.dense, elsewhere, high),
        *_untouched_words(found.untouched),
        *_clean_words(_clean_tests(study, found)),
    ]
    figures = {
        **{key: getattr(found, key) for key in ("better", "worse", "same", "untouched")},
        "p": {name: test.p for name, test in found.tests.items()},
        "over_budgets": {
            name: {eps: test.difference for eps, test in tests} for name, tests in elsewhere.items()
        },
    }
    trusted = [name for name in elsewhere if name not in high]
    yield Finding(_answer_title(found, trusted), paragraphs(under_suite, beyond), figures)


def _clean_tests(study: Study, found: Answer) -> dict[str, Comparison]:
    dense = found.dense.attack(study.main)
    return {m.family: compare(m.attack(study.main), dense, "clean") for m in found.others}


def _answer_title(found: Answer, elsewhere: list[str]) -> str:
    question = "Does compression change adversarial robustness?"
    better, worse = found.better, found.worse
    rest = [name for name in elsewhere if name not in better + worse]
    more = listed([found.named[name] for name in better])
    parts = [f"{more} more robust under the suite"] if better else []
    parts += [f"{listed(worse)} less robust under the suite"] if worse else []
    if not parts:
        parts = ["No difference from the dense network is shown under the suite"]
    differ = "differs" if len(rest) == 1 else "differ"
    parts += [f"{listed(rest)} {differ} at other budgets"] if rest else []
    return f"{question} {'; '.join(parts)}"


def _opening(study: Study, dense: Model) -> str:
    records, setting = study.robust(dense), study.main_attack
    return (
        f"Under the suite (worst case per image over all attacks of a model's kind, "
        f"{setting.norm}, eps {budget(setting.eps)}), on n = {len(records)} images, the dense "
        f"network falls from {spell(clean_accuracy(dense.attack(study.main)))} clean accuracy to "
        f"{spell(remnant_accuracy(records))} robust accuracy; {study.main} alone leaves "
        f"{spell(remnant_accuracy(dense.attack(study.main)))}."
    )


def _against_dense(found: Answer) -> Iterator[str]:
    tests = found.tests
    for names, word in ((found.better, "More"), (found.worse, "Less")):
        if names:
            each = [
                f"{name} {spell(tests[name].first)}, {p_value(tests[name].p)}" for name in names
            ]
            yield f"{word} robust than it: {'; '.join(each)}."
    if found.same:
        values = sorted((tests[name].first.value or 0.0) for name in found.same)
        span = percent(values[0])
        if percent(values[-1]) != span:
            span = f"between {span} and {percent(values[-1])}"
        yield (
            f"No difference is shown for {listed(found.same)} ({span} %; paired McNemar tests, "
            f"p ≥ 0.05 after Holm's correction for {count(len(tests), 'test')}): a difference "
            "inside the interval is not called a difference."
        )


def _uncorrected(found: Answer) -> Iterator[str]:
    """Families that would differ if theirs were the only test."""
    differing = found.better + found.worse
    near = [name for name, test in found.alone.items() if test.differs and name not in differing]
    if near:
        tests = found.alone
        each = [f"{name} {spell(tests[name].first)}, {p_value(tests[name].p)}" for name in near]
        yield f"Tested alone, without that correction, it would be for {'; '.join(each)}."


def _doubt_words(found: Answer) -> Iterator[str]:
    """Whether what is more robust can be believed to be so."""
    doubts = [found.named[name] for name in found.better if found.named[name] != name]
    if doubts:
        yield (
            f"But the verdict speaks against {listed(doubts)}: what is left there is an upper "
            "bound, and no robustness that has been shown."
        )


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
    for (name, eps, _), test in zip(tests, corrected([test for *_, test in tests]), strict=True):
        if test.differs:
            found.setdefault(name, []).append((eps, test))
    return found


def _budget_words(study: Study, dense: Model, found: Differences, high: list[str]) -> Iterator[str]:
    points = [eps for eps, _ in curve(dense, "curve_eps", "eps") if eps > 0]
    if not points:
        return
    budgets = f"{count(len(points), 'budget')} from {budget(points[0])} to {budget(points[-1])}"
    if not found:
        yield (
            f"No difference is shown for any of them over the {budgets} of {study.main}'s "
            "security curve."
        )
        return
    each = []
    for name, tests in found.items():
        eps, widest = max(tests, key=lambda item: abs(item[1].difference))
        each.append(
            f"{name} differs at {len(tests)}, most at eps {budget(eps)} with "
            f"{percent(widest.first.value)} against {percent(widest.second.value)} %"
        )
    yield (
        f"Over the {budgets} of {study.main}'s security curve, after Holm's correction, "
        f"{'; '.join(each)}; no other family is shown to differ."
    )
    if high:
        verb = "reads" if len(high) == 1 else "read"
        yield (
            f"But the curve of {listed(high)} {verb} too high (see the finding on the attack's "
            "strength)."
        )


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
        f"{name} by {100 * test.difference:+.1f} points to {spell(test.first)}, {p_value(test.p)}"
        for name, test in moved.items()
    ]
    yield f"Clean accuracy moves for {'; '.join(each)}."


# --- one base against another --------------------------------------------------------------------


def bases(study: Study) -> Iterator[Finding]:
    """How each base's robust accuracy compares with the first one's, at the same budget."""
    first, *others = study.params.bases
    for base in others:
        yield _base(study, first, base)


def _base(study: Study, first: str, base: str) -> Finding:
    test = compare(study.robust(study.dense(base)), study.robust(study.dense(first)))
    pairs = _family_pairs(study, first, base)
    tests = dict(zip(pairs, corrected(list(pairs.values())), strict=True))
    better = [name for name, one in tests.items() if one.better]
    answered = _base_answer(test)
    setting, recipe = study.main_attack, _recipe_words(study, base)
    opening = (
        f"In the worst case over the suite ({setting.norm}, eps {budget(setting.eps)}, "
        f"n = {test.first.n} images), the dense network of the base {recipe} keeps "
        f"{spell(test.first)} and that of {_recipe_words(study, first)} {spell(test.second)} "
        f"({p_value(test.p)}, McNemar on the same images)."
    )
    text = [opening, _cost_words(study, first, base), *_pair_words(tests, better, base, first)]
    title = f"Is the base {base} more robust than {first}? {answered}"
    figures = {"difference": test.difference, "p": test.p, "better": better, "void": test.void}
    return Finding(title, " ".join(text), figures)


def _base_answer(test: Comparison) -> str:
    values = f"{percent(test.first.value)} against {percent(test.second.value)} %"
    if test.void:
        return "It is at chance when clean"
    if not test.differs:
        return f"No difference is shown: {values}"
    return f"Yes: {values}" if test.better else f"No, less: {values}"


def _recipe_words(study: Study, base: str) -> str:
    """A base with how it was trained: `robust (pgd, 7 steps)`."""
    recipe = study.params.recipes[base]
    if recipe.method == "standard":
        return base if base == recipe.method else f"{base} ({recipe.method})"
    iterates = recipe.method in ("pgd", "trades")
    return f"{base} ({recipe.method}{f', {recipe.steps} steps' if iterates else ''})"


def _cost_words(study: Study, first: str, base: str) -> str:
    """What robustness costs in clean accuracy."""
    own, other = (study.dense(one).attack(study.main) for one in (base, first))
    test = compare(own, other, "clean")
    shown = "" if test.differs else ": no difference is shown"
    return (
        f"Its clean accuracy is {spell(test.first)} against {spell(test.second)} "
        f"({p_value(test.p)}){shown}."
    )


def _family_pairs(study: Study, first: str, base: str) -> dict[str, Comparison]:
    """Each family on one base against the same family on the other."""
    parents = {model.family: model for model in study.of(first)[1:]}
    return {
        model.family: compare(study.robust(model), study.robust(parents[model.family]))
        for model in study.of(base)[1:]
        if model.family in parents
    }


def _pair_words(
    tests: dict[str, Comparison], better: list[str], base: str, first: str
) -> Iterator[str]:
    if tests:
        values = sorted(test.first.value or 0.0 for test in tests.values())
        yield (
            f"Family by family, {base} is more robust than {first} for {len(better)} of "
            f"{count(len(tests), 'family', 'families')} after Holm's correction; they keep between "
            f"{percent(values[0])} and {percent(values[-1])} % on {base}."
        )


# --- a short schedule against a long one ---------------------------------------------------------


def schedules(study: Study, base: str) -> Iterator[Finding]:
    """For each two attacks that differ only in steps: does the shorter one flatter the families?"""
    study = study.swept if study.params.sweep else study
    attacks = study.attacks
    for short, long in permutations(attacks, 2):
        rows = _rows(study, base, short, long)
        if rows and _only_more_steps(attacks[short], attacks[long]):
            yield _schedule(study, base, rows, short, long)


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
    """The settings of the sweeps; without sweeps the models, but not those that such an attack,
    which averages over nothing, says nothing about."""
    dense = study.dense(base)
    subjects: list[tuple[str, Model | Point]] = [
        (f"{family} = {setting_text(point.setting)}", point)
        for family in study.params.sweep
        for point in study.points(family, base)
    ]
    if not subjects:
        models = [model for model in study.of(base)[1:] if model.kind != "randomized"]
        subjects = [(model.family, model) for model in models]
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
    tests = corrected([getattr(row, which) for row in rows])
    return [row.name for row, test in zip(rows, tests, strict=True) if test.better]


def _schedule(study: Study, base: str, rows: list[Row], short: str, long: str) -> Finding:
    dense = study.dense(base)
    fall = compare(dense.attack(short), dense.attack(long))
    above = {which: _better(rows, which) for which in ("short", "long")}
    verdict = _verdict(fall, above["long"])
    text = paragraphs(
        [_travel(study, short, long), _fall_words(fall, long, short)],
        [*_row_words(rows, short, long), _verdict_words(verdict, fall, above, short, long)],
        list(_published_words(study, rows, short)),
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
    attacks = study.attacks
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
        f"On n = {fall.first.n} images the dense network itself keeps {spell(fall.first)} under "
        f"{short} and {verb} {spell(fall.second)} under {long} ({p_value(fall.p)})."
    )


def _row_words(rows: list[Row], short: str, long: str) -> Iterator[str]:
    for which, attack in (("short", short), ("long", long)):
        tests: list[Comparison] = [getattr(row, which) for row in rows]
        values = [test.first.value or 0.0 for test in tests]
        same = sum(not (test.differs or test.void) for test in tests)
        yield (
            f"Under {attack} the {count(len(rows), 'row')} of the families lie between "
            f"{percent(min(values))} and {percent(max(values))} %; {same} show no difference from "
            f"the dense network on the same images{_exceptions(rows, which)}."
        )
    if void := [row.name for row in rows if row.short.void]:
        yield (
            f"{listed(void)} {'is' if len(void) == 1 else 'are'} at chance when clean and so left "
            "out: a network that gives one answer cannot be fooled."
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


def _published_words(study: Study, rows: list[Row], short: str) -> Iterator[str]:
    """What the rows that the published table singles out keep here, where the budget is its own.

    That is so on CIFAR-10; the table itself is of ImageNet: its data file and its chance level of
    0.10 % say so.
    """
    if study.params.active().data.source != "cifar10":
        return
    for row in rows:
        if row.name in SINGLED_OUT:
            published = NN_PRUNE.rows[SINGLED_OUT[row.name]].remnant / 100
            _, reached = row.short.first.interval
            found = reached is not None and reached >= published
            yield (
                f"For {row.name} the published table ({NN_PRUNE.data}) gives {percent(published)} "
                f"%; here {short} leaves {spell(row.short.first)}, dense "
                f"{spell(row.short.second)}: the figure is {'' if found else 'not '}reached."
            )


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
