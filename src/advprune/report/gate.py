"""The gate: whether robustness fell between two revisions, model by model.

A model falls where its robust accuracy is significantly lower than before: by McNemar's exact test
on the same images, or by Fisher's exact test on the two counts where the images differ; or where
its distances are significantly smaller on the same images (Wilcoxon's signed-rank test). p-values
are corrected for all these tests together (Holm). A verdict may not get worse or be unknown, a
model may not vanish, and images and settings of the measurement may not change, unless that is
allowed by name.
With a margin, a model passes only where a larger loss is ruled out (`report.margin`).
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import fisher_exact
from tabulate import tabulate

from advprune.core.errors import UserError
from advprune.evaluate.compare import holm
from advprune.evaluate.distances import DistanceComparison, compare_distances
from advprune.evaluate.statistics import Rate, mcnemar, rate
from advprune.evaluate.verdict import LEVELS
from advprune.report.formats import (
    NOTHING,
    budgets_in,
    counted,
    heading,
    interval,
    kind_of,
    listed,
    p_text,
    p_value,
    percent,
)
from advprune.report.margin import Rules, not_ruled_out
from advprune.report.results import DISTANCE
from advprune.report.run import NOT_RUN

RANK = list(LEVELS.values())  # from the best to the worst
COLUMNS = (
    *("model", "clean % before", "after", "lost", "robust % before", "after", "lost", "p"),
    *("{} before", "after", "p", "verdict before", "after", ""),
)
UNPAIRED = "\\*"
ATTACK = "accuracy:"  # and the name of an attack: a column of the results
PLAIN = re.compile(r"(?!www)\w[\w-]*", re.ASCII)
IMAGES, SETTINGS = "images", "settings"  # what may be allowed to change, besides a model by name


@dataclass(frozen=True, eq=False)
class Result:
    """What one revision says of a model, image by image.

    robust: bool `[n]`, whether each withstands all attacks; distances: `[n]`, 0 where it is
    misclassified without an attack. images: the fingerprint of the test images. attacks: those of
    the suite that it went through. budget: the main attack, its norm and eps.
    """

    robust: np.ndarray
    distances: np.ndarray
    clean: float
    verdict: str | None
    images: str
    attacks: frozenset[str] = frozenset()
    budget: tuple[Any, ...] = ()

    @property
    def rate(self) -> Rate:
        """Robust accuracy."""
        return rate(self.robust)

    def right(self) -> dict[str, np.ndarray]:
        """Which images are classified correctly, without an attack and under all of them."""
        return {"clean": self.distances > 0, "robust": self.robust}


@dataclass(frozen=True)
class Side:
    """One revision: results by model, the settings of data and attacks (None: not known), and the
    norm of budget and distances."""

    results: dict[str, Result]
    settings: Any = None
    norm: str = "Linf"


def side_of(table: pd.DataFrame, settings: Any = None) -> Side:
    """A revision from its results (`results.results`, `results.read_results`); what was not run is
    not there."""
    found, tried = {}, table.columns[table.columns.str.startswith(ATTACK)]
    for row in table[table.verdict != NOT_RUN].to_dict("records"):
        robust = np.array(list(row["robust_images"])) == "1"
        distances = np.frombuffer(bytes.fromhex(row["image_distances"]), DISTANCE)
        if not (distances >= 0).all():
            raise UserError(f"{row['model']}: a distance is negative or no number; run `dvc repro`")
        attacks = frozenset(name for name in tried if pd.notna(row[name]))
        facts = row["clean_accuracy"], row["verdict"], row["images"]
        budget = tuple(row.get(key) for key in ("attack", "norm", "eps"))
        found[row["model"]] = Result(robust, distances, *facts, attacks, budget)
    return Side(found, settings, *table.get("norm", pd.Series()).dropna().unique()[:1])


@dataclass(frozen=True, eq=False)
class Row:
    """One model in both revisions; None where it is missing in one.

    p: that robust accuracy differs, corrected for the number of tests; None where one is missing.
    distance: the test of distances, likewise; None where the images differ.
    """

    name: str
    before: Result | None
    after: Result | None
    p: float | None = None
    distance: DistanceComparison | None = None

    @property
    def change(self) -> float:
        """Robust accuracy after minus before, a fraction."""
        if self.before is None or self.after is None:
            return 0.0
        return (self.after.rate.value or 0.0) - (self.before.rate.value or 0.0)

    def lost_and_gained(self) -> dict[str, tuple[int, int]]:
        """On the same images: how many are wrong that were right, and the reverse."""
        if self.distance is None or self.before is None or self.after is None:
            return {}
        pairs = zip(self.before.right().items(), self.after.right().values(), strict=True)
        return {kind: (int((a & ~b).sum()), int((b & ~a).sum())) for (kind, a), b in pairs}


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


def code(text: Any) -> str:
    """Text from files as code in GitHub's Markdown, in which no markup, link or mention acts."""
    shown = "".join(sign if sign.isprintable() and sign not in "`|" else "?" for sign in str(text))
    return f"`{shown or '?'}`"


def quoted(text: Any) -> str:
    """A name as it is; any other text as code."""
    return text if isinstance(text, str) and PLAIN.fullmatch(text) else code(text)


def judge(before: Side, after: Side, rules: Rules | None = None, order: Iterable[str] = ()) -> Gate:
    """Compare two revisions. order: models as on the leaderboard; others follow, by name."""
    rules = rules or Rules()
    named = sorted({*before.results, *after.results})
    names = dict.fromkeys([*(name for name in order if name in named), *named])
    rows = [_row(name, before.results.get(name), after.results.get(name)) for name in names]
    both = [row.p for row in rows if row.p is not None]
    joint = iter(holm(both + [row.distance.p for row in rows if row.distance]))
    rows = [row if row.p is None else replace(row, p=next(joint)) for row in rows]
    far = [row.distance and replace(row.distance, p=next(joint)) for row in rows]
    rows = [replace(row, distance=one) for row, one in zip(rows, far, strict=True)]
    failures, warnings = [], []
    norm = (after if after.results else before).norm
    with budgets_in(norm):
        for row in (row for row in rows if row.name not in rules.allow):
            bounds = (f"{quoted(row.name)}: {why}." for why in not_ruled_out(row, rules))
            failures += [*_failures(row, rules.alpha), *bounds]
    words = [row.name for row in rows if row.name in (IMAGES, SETTINGS)]
    failures += [f"{name} is what --allow takes for a change of all models." for name in words]
    changes = _changes(rows, before, after)
    failures += [f"{what} (--allow {kind})." for kind, what in changes if kind not in rules.allow]
    if vanished := [quoted(row.name) for row in rows if row.after is None]:
        warnings.append(f"No longer there: {listed(vanished)}.")
    if added := [quoted(row.name) for row in rows if row.before is None]:
        warnings.append(f"New: {listed(added)}.")
    if any(row.p is not None and row.distance is None for row in rows):
        warnings.append(f"{UNPAIRED} Tested as two counts, which detects large differences only.")
    return Gate(rows, rules.alpha, failures, warnings, norm)


def _row(name: str, old: Result | None, new: Result | None) -> Row:
    if old is None or new is None:
        return Row(name, old, new)
    if old.images == new.images and len(old.robust) == len(new.robust):
        distance = compare_distances(new.distances, old.distances)
        return Row(name, old, new, mcnemar(old.robust, new.robust), distance)
    counts = [[one.rate.hits, one.rate.n - one.rate.hits] for one in (old, new)]
    return Row(name, old, new, float(fisher_exact(counts).pvalue))


def _marks(row: Row, alpha: float) -> dict[str, bool]:
    """What speaks against a model: it fell, is fooled by smaller changes, or is believed less."""
    far, known = row.distance, [one.verdict for one in (row.before, row.after) if one]
    ranks = [RANK.index(verdict) for verdict in known if verdict in RANK]
    return {
        "fell": row.p is not None and row.p < alpha and row.change < 0,
        "nearer": far is not None and far.p < alpha and far.direction < 0,
        "distrusted": len(ranks) == 2 and ranks[1] > ranks[0],
    }


def _failures(row: Row, alpha: float) -> Iterator[str]:
    name, found = quoted(row.name), _marks(row, alpha)
    if row.after is None:
        yield f"{name} is no longer there (--allow {name})."
        return
    if row.after.verdict not in RANK:
        yield f"{name} has no known verdict: {quoted(row.after.verdict)}."
    if row.before is None:
        return
    star = UNPAIRED if row.distance is None else ""
    if found["fell"] and row.p is not None:
        before, after = (percent(one.rate.value) for one in (row.before, row.after))
        yield f"{name} fell from {before} to {after} % robust ({p_text(row.p)}{star})."
    if found["nearer"] and row.distance:
        distance = kind_of("median_distance")
        after, before = (
            distance.text(median[0]) + distance.unit
            for median in (row.distance.first, row.distance.second)
        )
        yield (
            f"{name}: the median distance went from {before} to {after}, and images are "
            f"significantly nearer ({p_text(row.distance.p)})."
        )
    if found["distrusted"]:
        yield f"{name} was {row.before.verdict} and is {row.after.verdict}."


def _changes(rows: list[Row], before: Side, after: Side) -> Iterator[tuple[str, str]]:
    """What changed in the measurement itself: what it is allowed as, and a sentence."""
    both = [(r.name, r.before, r.after, r.distance) for r in rows if r.before and r.after]
    other = {name: len(b.robust) < len(a.robust) for name, a, b, far in both if far is None}
    gone = {name: sorted(a.attacks - b.attacks) for name, a, b, _ in both if a.attacks - b.attacks}
    for what, fewer in (("Fewer", True), ("Other", False)):
        if names := [quoted(name) for name, less in other.items() if less == fewer]:
            yield IMAGES, f"{what} images: {listed(names)}"
    if before.settings is not None and before.settings != after.settings:
        yield SETTINGS, "The settings of data, seed or attacks differ"
    if names := [quoted(name) for name, a, b, _ in both if a.budget != b.budget]:
        yield SETTINGS, f"Attacked otherwise: {listed(names)}"
    for name, attacks in gone.items():
        missing = listed([quoted(one.removeprefix(ATTACK)) for one in attacks])
        yield SETTINGS, f"{quoted(name)} went without {missing}"


def page(gate: Gate, title: str) -> str:
    """The gate in Markdown: how it ended, what speaks against it, and one row per model."""
    ended = "passed" if gate.passed else "FAILED"
    parts = [f"## {title}: {ended}", "\n".join(f"- ✗ {line}" for line in gate.failures)]
    with budgets_in(gate.norm):
        cells = [_cells(row, gate.alpha) for row in gate.rows]
        names = [name.format(heading("median_distance")) for name in COLUMNS]
    parts.append(tabulate(cells, names, "github", disable_numparse=True))
    parts.append("\n".join(f"- {line}" for line in gate.warnings))
    tested = counted(sum(row.p is not None for row in gate.rows), "model")
    parts.append(
        "Robust: nothing within the budget fools the model, with 95 % interval. Lost: images that "
        "were right and are wrong. Distance: median of the smallest changes found that fool it. p: "
        "that it differs, tested on the same images and corrected for all tests of "
        f"{tested}; level {gate.alpha:g}."
    )
    return "\n\n".join(part for part in parts if part)


def _cells(row: Row, alpha: float) -> list[str]:
    cells = [(NOTHING,) * 3] * 2
    for side, one in enumerate((row.before, row.after)):
        if one is not None:
            robust = interval(one.rate.value, *one.rate.interval)
            cells[side] = percent(one.clean), robust, quoted(one.verdict)
    clean, robusts, verdicts = zip(*cells, strict=True)
    lost = {kind: str(count) for kind, (count, _) in row.lost_and_gained().items()}
    distances = [NOTHING] * 3
    if row.distance is not None:
        medians = (row.distance.second[0], row.distance.first[0])
        distances = [*map(kind_of("median_distance").text, medians), p_value(row.distance.p)]
    if any(_marks(row, alpha).values()):
        mark = "✗"
    elif row.before is None or row.after is None:
        mark = "new" if row.after else "gone"
    else:
        mark = "▲" if row.p is not None and row.p < alpha and row.change > 0 else "="
    p = p_value(row.p) + (UNPAIRED if row.p is not None and row.distance is None else "")
    first = [quoted(row.name), *clean, lost.get("clean", NOTHING)]
    return [*first, *robusts, lost.get("robust", NOTHING), p, *distances, *verdicts, mark]
