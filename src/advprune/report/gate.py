"""The gate: whether robustness dropped between two revisions, model by model (docs/review.md).

Robust accuracy is tested by McNemar's exact test on the same images, by Fisher's on two counts
where they differ; distances by Wilcoxon's signed-rank test on the same images; Holm's correction
covers all. Numbers of a model in doubt are upper bounds: for one that can be trusted now it is no
fall to be lower than they were, and one that is in doubt now keeps no margin.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from scipy.stats import fisher_exact

from advprune.core.errors import UserError
from advprune.core.params import FILE, Params
from advprune.core.settings import yaml_of
from advprune.evaluate.compare import Compared, Comparison, compare_hits
from advprune.evaluate.distances import compare_distances
from advprune.evaluate.verdict import LEVELS, RELIABLE
from advprune.report import formats
from advprune.report.formats import listed, p_text, percent
from advprune.report.margin import Rules, least, loss, nearer
from advprune.report.results import ATTACK, OUTCOMES
from advprune.report.revision import (
    TRANSFER,
    ModelResult,
    Revision,
    Tree,
    differences,
    git,
    recomputed,
    settings_of,
)
from advprune.report.tables import jointly

RANK = list(LEVELS.values())  # from the best to the worst
UNPAIRED = "\\*"
SHOWN = 4  # columns that differ; the comment on a pull request has its limits
TESTS = "robust", "distance"
PLAIN = re.compile(r"(?!www)\w[\w-]*", re.ASCII)
IMAGES, SETTINGS = "images", "settings"  # what may be allowed to change, besides a model by name


@dataclass(frozen=True, eq=False)
class Row:
    """One model in both revisions; None where it is missing in one. tests: after against before, of
    `robust` accuracy and `distance`, corrected for all of the gate. pairs: on the same images,
    `clean` and `robust` accuracy."""

    name: str
    before: ModelResult | None
    after: ModelResult | None
    tests: dict[str, Compared] = field(default_factory=dict)
    pairs: dict[str, Comparison] = field(default_factory=dict)

    @property
    def is_unpaired(self) -> bool:
        """Whether it was tested on other images than before."""
        return bool(self.tests) and not self.pairs

    def changed(self, kind: str, sign: int, alpha: float, by_bound: bool = False) -> bool:
        """Whether a test shows a change in the direction of `sign`; by_bound: one that rests on an
        upper bound, and is none."""
        test = self.tests.get(kind)
        if test is None or test.rests_on_bound != by_bound:
            return False
        return test.p < alpha and sign * test.direction > 0

    @property
    def follows_a_bound(self) -> bool:
        """Whether it can be trusted, and before there were upper bounds only."""
        trusted = self.after is not None and self.after.verdict == RELIABLE
        return trusted and self.before is not None and self.before.verdict in RANK[1:]

    @property
    def is_distrusted(self) -> bool:
        """Whether its verdict got worse."""
        verdicts = [one.verdict for one in (self.before, self.after) if one]
        ranks = [RANK.index(verdict) for verdict in verdicts if verdict in RANK]
        return len(ranks) == 2 and ranks[1] > ranks[0]


@dataclass(frozen=True)
class Gate:
    """Both revisions, model by model; `passed` unless there are failures, a sentence each."""

    rows: list[Row]
    alpha: float
    failures: list[str]
    warnings: list[str]
    norm: str = "Linf"

    @property
    def passed(self) -> bool:
        """Whether the change may be merged."""
        return not self.failures


def as_code(text: Any) -> str:
    """Text from files as code in GitHub's Markdown, in which no markup, link or mention acts."""
    shown = "".join(sign if sign.isprintable() and sign not in "`|" else "?" for sign in str(text))
    return f"`{shown or '?'}`"


def quoted(text: Any) -> str:
    """A name as it is; any other text as code."""
    return text if isinstance(text, str) and PLAIN.fullmatch(text) else as_code(text)


def judge_trees(
    params: Params, there: Tree, rules: Rules, recompute: bool, only: bool
) -> list[tuple[str, Gate]]:
    """The working tree against another revision, profile by profile (only: the active one), each
    with a title. recompute: the active profile's records are judged, and results.csv by them."""
    here, active, order = Tree(), params.profile, params.leaderboard()
    made = recomputed(params) if recompute else here.revision(active)
    if made is None:
        raise UserError(f"there are no results in reports/{active}; run `dvc repro`")
    found, base = [], f"{as_code(there.where[:-1])} ({str(there.commit)[:7]})"
    for name in [active] if only else dict.fromkeys([active, *there.profiles, *here.profiles]):
        after = made if name == active else here.revision(name)
        judged = judge(there.revision(name) or Revision({}), after or Revision({}), rules, order)
        failures = [
            f"{why} (--allow {quoted(by)})."
            for by, why in _unmeasured(params, name, here, there, recompute)
            if by not in rules.allow
        ]
        judged = replace(judged, failures=judged.failures + failures)
        found.append((f"Robustness of {as_code(name)} against {base}", judged))
    committed = here.revision(active)
    models = {row.name for _, one in found for row in one.rows}
    models |= {*(committed.results if committed else ())}  # their records may be gone
    if unknown := sorted(set(rules.floors) - {""} - models):
        raise UserError(f"--floor: there is no model {unknown[0]!r}; check its name")
    profiles = {*params.profiles, *there.profiles, *here.profiles}
    if unknown := sorted({*rules.allow} - {IMAGES, SETTINGS} - profiles - models):
        what = "model, profile or change"
        raise UserError(f"--allow: there is no {what} {unknown[0]!r}; check its name")
    if recompute and committed:
        judged = judge(committed, made, Rules(rules.alpha, allow=rules.allow), order)
        differ = differences(committed, made)
        # Where every image came out alike, nothing else may differ; else the processor is another.
        alike = not any({*OUTCOMES} & {*names} for names in differ.values())
        failures, warnings = [*judged.failures], [*judged.warnings]
        for model, names in differ.items():
            more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
            shown = listed([*map(as_code, names[:SHOWN]), *more])
            wrong = failures if alike and model not in rules.allow else warnings
            wrong.append(f"{quoted(model)}: the records give another {shown}.")
        judged = replace(judged, failures=failures, warnings=warnings)
        found.append((f"Records of {as_code(active)} against its results.csv", judged))
    return found


def _unmeasured(
    params: Params, name: str, here: Tree, there: Tree, recompute: bool
) -> Iterator[tuple[str, str]]:
    """Why the results of a profile are not those of its settings and records: the name to allow
    it by, and a sentence."""
    if name == params.profile:
        reported = here.read(place := f"reports/{name}/{FILE}")
        if reported is not None and yaml_of(reported, place) != yaml_of(settings_of(params), FILE):
            yield SETTINGS, f"{FILE} holds other settings than {place}; run `dvc repro`"
        if recompute and there.paths:
            try:
                text = git("show", f"{there.commit}:./{FILE}")
            except UserError as error:
                base = f"--base {there.where[:-1]}"
                raise UserError(f"{base} has results, but no {FILE} beside them") from error
            known = yaml_of(text, there.where + FILE)
            if isinstance(known, dict) and known.get("profile", name) != name:
                yield name, "It was not the active profile, which is then not measured"
    elif recompute and here.results(name) != there.results(name):
        yield name, "The results changed, and no records here show them"


def judge(
    before: Revision, after: Revision, rules: Rules | None = None, order: Iterable[str] = ()
) -> Gate:
    """Compare two revisions. order: models as on the leaderboard; others follow, by name."""
    rules = rules or Rules()
    named = sorted({*before.results, *after.results})
    names = dict.fromkeys([*(name for name in order if name in named), *named])
    rows = [_row(name, before.results.get(name), after.results.get(name)) for name in names]
    joint = jointly({(row.name, kind): test for row in rows for kind, test in row.tests.items()})
    rows = [replace(row, tests={kind: joint[row.name, kind] for kind in row.tests}) for row in rows]
    norm = (after if after.results else before).norm
    with formats.budgets_in(norm):
        judged = (row for row in rows if row.name not in rules.allow)
        failures = [why for row in judged for why in _failures(row, rules)]
    words = [row.name for row in rows if row.name in (IMAGES, SETTINGS)]
    failures += [f"{name} is what --allow takes for a change of all models." for name in words]
    changes = _changes(rows, before, after)
    failures += [f"{what} (--allow {kind})." for kind, what in changes if kind not in rules.allow]
    fallen = [
        quoted(row.name)
        for row in rows
        if any(row.changed(kind, -1, rules.alpha, by_bound=True) for kind in TESTS)
    ]
    warnings = [f"Lower than an upper bound, no fall: {listed(fallen)}."] * bool(fallen)
    if any(row.is_unpaired for row in rows):
        warnings += [f"{UNPAIRED} Tested as two counts, which detects large differences only."]
    return Gate(rows, rules.alpha, failures, warnings, norm)


def _row(name: str, old: ModelResult | None, new: ModelResult | None) -> Row:
    if old is None or new is None:
        return Row(name, old, new)
    bounds = new.is_in_doubt, Row(name, old, new).follows_a_bound
    if old.images == new.images and len(old.robust) == len(new.robust):
        pairs = {
            "clean": compare_hits(new.distances > 0, old.distances > 0),
            "robust": compare_hits(new.robust, old.robust),
        }
        tests = {
            "robust": replace(pairs["robust"], bounds=bounds),
            "distance": replace(compare_distances(new.distances, old.distances), bounds=bounds),
        }
        return Row(name, old, new, tests, pairs)
    first, second = new.rate, old.rate
    p = float(fisher_exact([[one.hits, one.n - one.hits] for one in (second, first)]).pvalue)
    risen = (first.value or 0.0) - (second.value or 0.0)
    test = Compared(
        p=p, direction=risen, difference=risen, ends_at=lambda _: (-1.0, 1.0), bounds=bounds
    )
    return Row(name, old, new, {"robust": test})


def _failures(row: Row, rules: Rules) -> Iterator[str]:
    """Why a model fails, one sentence per reason: what the tests show, then each loss that a floor
    or a margin forbids and that the bounds leave possible."""
    name, before, after, margin = quoted(row.name), row.before, row.after, rules.margin
    if after is None:
        yield f"{name} is no longer there (--allow {name})."
        return
    if after.verdict not in RANK:
        yield f"{name} has no known verdict: {quoted(after.verdict)}."
    if before is not None and row.changed("robust", -1, rules.alpha):
        p = p_text(row.tests["robust"].p) + UNPAIRED * row.is_unpaired
        old, new = (percent(one.rate.value) for one in (before, after))
        yield f"{name} fell from {old} to {new} % robust ({p})."
    if before is not None and row.changed("distance", -1, rules.alpha):
        unit, p = formats.kind_of("median_distance").unit, p_text(row.tests["distance"].p)
        yield (
            f"{name}: the median distance went from {before.distance}{unit} to "
            f"{after.distance}{unit}, and images are significantly nearer ({p})."
        )
    if before is not None and row.is_distrusted:
        yield f"{name} was {before.verdict} and is {after.verdict}."
    floor = rules.floors.get(row.name, rules.floors.get("", 0.0))
    if floor and after.is_in_doubt:
        yield f"{name} is {quoted(after.verdict)}: an upper bound shows no floor."
    elif (low := least(after.rate, rules.alpha)) < floor:
        found = f"{percent(after.rate.value)} % robust, at least {percent(low)} % for certain"
        yield f"{name}: {found}; the floor is {percent(floor)} %."
    if margin is None or before is None:
        return
    if row.is_unpaired:
        yield f"{name}: a loss cannot be bounded where the images differ."
        return
    if after.is_in_doubt:
        yield f"{name} is {quoted(after.verdict)}: an upper bound rules out no loss."
        return
    for kind, pair in row.pairs.items():
        if kind == "robust" and row.follows_a_bound:
            continue
        if why := loss(pair.lost, pair.gained, pair.first.n, margin, rules.alpha):
            yield f"{name}: {kind} accuracy, {why}."
    p_near = nearer(before.distances, after.distances, margin)
    if p_near >= rules.alpha and not row.follows_a_bound:
        smaller = f"distances smaller by {100 * margin:g} %"
        yield f"{name}: {smaller} are not ruled out ({p_text(p_near)})."


def _changes(rows: list[Row], before: Revision, after: Revision) -> Iterator[tuple[str, str]]:
    """Changes of the measurement itself: the name to allow each by, and a sentence."""
    both = [(row, row.before, row.after) for row in rows if row.before and row.after]
    apart = {row.name: len(b.robust) < len(a.robust) for row, a, b in both if row.is_unpaired}
    for what, fewer in (("Fewer", True), ("Other", False)):
        if names := [quoted(name) for name, has_fewer in apart.items() if has_fewer is fewer]:
            yield IMAGES, f"{what} images: {listed(names)}"
    if before.settings is not None and before.settings != after.settings:
        yield SETTINGS, "The settings of data, seed or attacks differ"
    if names := [quoted(row.name) for row, a, b in both if a.budget != b.budget]:
        yield SETTINGS, f"Attacked otherwise: {listed(names)}"
    for row, a, b in both:
        lost = (one.removeprefix(ATTACK) for one in sorted(a.attacks - b.attacks))
        if gone := [quoted("transfer" if one == TRANSFER else one) for one in lost]:
            yield SETTINGS, f"{quoted(row.name)} went without {listed(gone)}"
