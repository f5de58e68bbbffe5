"""The gate: whether robustness fell between two revisions, model by model.

A model falls where its robust accuracy is significantly lower than before: by McNemar's exact test
on the same images, or by Fisher's exact test on the two counts where the images differ or are not
known one by one; or where its distances are significantly smaller on the same images (Wilcoxon's
signed-rank test). p-values are corrected for all these tests together (Holm). A verdict may not get
worse or be unknown, a model may not vanish, and images and settings of the measurement may not
change, unless that is allowed by name.
"""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from advprune.evaluate.compare import holm
from advprune.evaluate.distances import DistanceComparison, compare_distances
from advprune.evaluate.statistics import Rate, mcnemar
from advprune.evaluate.verdict import LEVELS
from advprune.report.formats import (
    NOTHING,
    counted,
    interval,
    levels,
    listed,
    markdown,
    p_text,
    p_value,
    percent,
)
from advprune.report.results import DISTANCE

RANK = list(LEVELS.values())  # from the best to the worst
CAPTION = ("model", "clean % before", "after", "robust % before", "after", "p")
DISTANCES = ("distance /255 before", "after", "p")
VERDICTS = ("verdict before", "after", "")
UNPAIRED = "\\*"
IMAGES, SETTINGS = "images", "settings"  # what may be allowed to change, besides a model by name


@dataclass(frozen=True, eq=False)
class Result:
    """What one revision says of a model: exact counts, and image by image where it is known.

    images: the fingerprint of the test images; robust: bool `[n]`, whether each withstands all
    attacks; distances: `[n]`. None in results of before they were recorded.
    """

    hits: int
    n: int
    clean: float | None
    verdict: str | None
    images: str | None = None
    robust: np.ndarray | None = None
    distances: np.ndarray | None = None

    @property
    def rate(self) -> Rate:
        """Robust accuracy."""
        return Rate(self.hits, self.n)


@dataclass(frozen=True)
class Side:
    """One revision: results by model, and the settings of data and attacks (None: not known)."""

    results: dict[str, Result]
    settings: Any = None


def side_of(table: pd.DataFrame, settings: Any = None) -> Side:
    """A revision from its results (`results.read_results`), with the counts of the images."""
    found = {}
    for row in table.to_dict("records"):
        robust = np.array(list(row["robust_images"])) == "1"
        distances = np.frombuffer(bytes.fromhex(row["image_distances"]), DISTANCE)
        known = {"images": row["images"], "robust": robust, "distances": distances}
        clean, verdict = row["clean_accuracy"], row["verdict"]
        found[row["model"]] = Result(int(robust.sum()), len(robust), clean, verdict, **known)
    return Side(found, settings)


@dataclass(frozen=True, eq=False)
class Row:
    """One model in both revisions; None where it is missing in one.

    p: that robust accuracy differs, corrected for the number of tests; None where one is missing.
    paired: whether it was tested on the same images. farther: the test of distances, likewise.
    """

    name: str
    before: Result | None
    after: Result | None
    p: float | None = None
    paired: bool = False
    farther: DistanceComparison | None = None

    @property
    def change(self) -> float:
        """Robust accuracy after minus before, a fraction."""
        if self.before is None or self.after is None:
            return 0.0
        return (self.after.rate.value or 0.0) - (self.before.rate.value or 0.0)

    def fell(self, alpha: float) -> bool:
        """Whether robust accuracy is significantly lower than before."""
        return self.p is not None and self.p < alpha and self.change < 0

    def nearer(self, alpha: float) -> bool:
        """Whether distances are significantly smaller than before."""
        test = self.farther
        return test is not None and test.p < alpha and test.difference < 0

    @property
    def distrusted(self) -> bool:
        """Whether the verdict got worse."""
        verdicts = [one.verdict for one in (self.before, self.after) if one]
        levels = [RANK.index(verdict) for verdict in verdicts if verdict in RANK]
        return len(levels) == 2 and levels[1] > levels[0]


@dataclass(frozen=True)
class Gate:
    """Both revisions, model by model; `passed` unless there are failures, a sentence each."""

    rows: list[Row]
    alpha: float
    failures: list[str]
    warnings: list[str]

    @property
    def passed(self) -> bool:
        """Whether the change may be merged."""
        return not self.failures


def judge(
    before: Side,
    after: Side,
    alpha: float = 0.05,
    order: Iterable[str] = (),
    allow: Collection[str] = (),
) -> Gate:
    """Compare two revisions. alpha: the level of the tests over all models, in (0, 1).

    order: the names of models in the order of the leaderboard; others follow, sorted. allow: models
    that may fall, vanish or be distrusted, and `images` and `settings`, which then may change.
    """
    named = sorted({*before.results, *after.results})
    names = [name for name in dict.fromkeys(order) if name in named]
    rows = [_row(name, before, after) for name in dict.fromkeys([*names, *named])]
    rows = _corrected(rows)
    failures = [one for row in rows if row.name not in allow for one in _failures(row, alpha)]
    for kind, changes in _changes(rows, before, after).items():
        failures += [f"{change} (--allow {kind})." for change in changes if kind not in allow]
    return Gate(rows, alpha, failures, list(_warnings(rows)))


def _changes(rows: list[Row], before: Side, after: Side) -> dict[str, list[str]]:
    """What changed in the measurement itself, by what it is allowed as."""
    both = [(r, r.before, r.after) for r in rows if r.before is not None and r.after is not None]
    fewer = [r.name for r, old, new in both if new.n < old.n]
    other = [
        r.name
        for r, old, new in both
        if new.n >= old.n and old.images is not None and old.images != new.images
    ]
    found: dict[str, list[str]] = {IMAGES: [], SETTINGS: []}
    if fewer:
        found[IMAGES].append(f"Fewer images: {_named(fewer)}")
    if other:
        found[IMAGES].append(f"Other images: {_named(other)}")
    if before.settings is not None and before.settings != after.settings:
        found[SETTINGS].append("The settings of data, seed or attacks differ")
    return found


def _named(names: list[str]) -> str:
    return listed([markdown(name) for name in names])


def _corrected(rows: list[Row]) -> list[Row]:
    """p-values of both kinds of tests, corrected for all of them together."""
    tests = [
        p
        for row in rows
        for p in (row.p, None if row.farther is None else row.farther.p)
        if p is not None
    ]
    joint = iter(holm(tests))
    found = []
    for row in rows:
        p = None if row.p is None else next(joint)
        farther = None if row.farther is None else replace(row.farther, p=next(joint))
        found.append(replace(row, p=p, farther=farther))
    return found


def _row(name: str, before: Side, after: Side) -> Row:
    old, new = before.results.get(name), after.results.get(name)
    if old is None or new is None:
        return Row(name, old, new)
    same = old.images == new.images and old.n == new.n
    if same and old.robust is not None and new.robust is not None:
        farther = None
        if old.distances is not None and new.distances is not None:
            farther = compare_distances(new.distances, old.distances)
        return Row(name, old, new, mcnemar(old.robust, new.robust), True, farther)
    return Row(name, old, new, _fisher(old.hits, old.n, new.hits, new.n))


@cache
def _fisher(hits: int, n: int, others: int, m: int) -> float:
    """Fisher's exact two-sided p for two counts over different images."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[hits, n - hits], [others, m - others]]).pvalue)


def _failures(row: Row, alpha: float) -> Iterator[str]:
    name = markdown(row.name)
    if row.after is None:
        yield f"{name} is no longer there (--allow {name})."
        return
    if row.after.verdict not in RANK:
        yield f"{name} has no known verdict: {markdown(row.after.verdict)}."
    if row.before is None:
        return
    if row.fell(alpha):
        before, after = (percent(one.rate.value) for one in (row.before, row.after))
        yield f"{name} fell from {before} to {after} % robust ({_p(row)})."
    if row.nearer(alpha) and row.farther:
        after, before = (levels(median[0]) for median in (row.farther.first, row.farther.second))
        yield (
            f"{name}: the median distance went from {before}/255 to {after}/255, and images are "
            f"significantly nearer ({p_text(row.farther.p)})."
        )
    if row.distrusted:
        yield f"{name} was {row.before.verdict} and is {row.after.verdict}."


def _warnings(rows: list[Row]) -> Iterator[str]:
    if vanished := [markdown(row.name) for row in rows if row.after is None]:
        yield f"No longer there: {listed(vanished)}."
    if added := [markdown(row.name) for row in rows if row.before is None]:
        yield f"New: {listed(added)}."
    tested = [row for row in rows if row.p is not None]
    if unpaired := [markdown(row.name) for row in tested if not row.paired]:
        each = "every model" if len(unpaired) == len(tested) else listed(unpaired)
        yield (
            f"{UNPAIRED} Images differ or their outcomes are missing; tested as two counts, which "
            f"detects large differences only: {each}."
        )


def _p(row: Row) -> str:
    return NOTHING if row.p is None else p_text(row.p) + ("" if row.paired else UNPAIRED)


def page(gate: Gate, title: str) -> str:
    """The gate in Markdown: how it ended, what speaks against it, and one row per model."""
    ended = "passed" if gate.passed else "FAILED"
    parts = [f"## {title}: {ended}", "\n".join(f"- ✗ {line}" for line in gate.failures)]
    cells = [_cells(row, gate.alpha) for row in gate.rows]
    parts.append(tabulate(cells, CAPTION + DISTANCES + VERDICTS, "github", disable_numparse=True))
    parts.append("\n".join(f"- {line}" for line in gate.warnings))
    tested = counted(sum(row.p is not None for row in gate.rows), "model")
    parts.append(
        "Robust: nothing within the budget fools the model, with 95 % interval. Distance: median "
        "of the smallest changes found that do. p: that it differs, tested on the same images and "
        f"corrected for all tests of {tested}; level {gate.alpha:g}."
    )
    return "\n\n".join(part for part in parts if part)


def _cells(row: Row, alpha: float) -> list[str]:
    cells = [(NOTHING,) * 3] * 2
    for side, one in enumerate((row.before, row.after)):
        if one is not None:
            robust = interval(one.rate.value, *one.rate.interval)
            cells[side] = percent(one.clean), robust, markdown(one.verdict or NOTHING)
    clean, robusts, verdicts = zip(*cells, strict=True)
    distances = [NOTHING] * 3
    if row.farther:
        medians = (levels(median[0]) for median in (row.farther.second, row.farther.first))
        distances = [*medians, p_value(row.farther.p)]
    if row.fell(alpha) or row.nearer(alpha) or row.distrusted:
        mark = "✗"
    elif row.before is None or row.after is None:
        mark = "new" if row.after else "gone"
    else:
        mark = "▲" if row.p is not None and row.p < alpha and row.change > 0 else "="
    p = _p(row).removeprefix("p = ").removeprefix("p ")
    return [markdown(row.name), *clean, *robusts, p, *distances, *verdicts, mark]
