"""The gate: may a change be merged, as far as robustness goes? Two revisions, row by row.

A row falls where its robust accuracy is shown to be lower than before: by McNemar's exact test on
the same images where both revisions know the outcome of each, else by Fisher's exact test on the
two rates; p-values hold for all rows together (Holm). A verdict may not get worse.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from tabulate import tabulate

from advprune.evaluate.compare import holm
from advprune.evaluate.statistics import mcnemar
from advprune.evaluate.verdict import LEVELS
from advprune.report.outcomes import Outcomes
from advprune.report.text import NOTHING, count, listed, markdown, percent, with_interval

RANK = list(LEVELS.values())  # from the best to the worst
SIDES = ("clean % before", "after", "robust % before", "after")
CAPTION = ("row", *SIDES, "p", "verdict before", "after", "")
UNPAIRED = "\\*"


@dataclass(frozen=True)
class Side:
    """What one revision says: metrics by row, outcomes by row, and the settings of the attacks
    (None where they are not known)."""

    metrics: Mapping[str, Mapping[str, Any]]
    outcomes: Mapping[str, Outcomes] = field(default_factory=dict)
    settings: Any = None


@dataclass(frozen=True)
class Row:
    """One model in both revisions; None where it is missing in one.

    p: that robust accuracy differs, corrected for the number of rows; None where it cannot be
    told. paired: whether it is of the same images.
    """

    name: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    p: float | None = None
    paired: bool = False

    @property
    def change(self) -> float:
        """Robust accuracy after minus before, a fraction; 0 where either is not known."""
        before, after = (_robust(found) for found in (self.before, self.after))
        return 0.0 if before is None or after is None else after - before

    def fell(self, alpha: float) -> bool:
        """Whether robust accuracy is shown to be lower than before."""
        return self.p is not None and self.p < alpha and self.change < 0

    @property
    def distrusted(self) -> bool:
        """Whether the verdict got worse."""
        before, after = (_level(found) for found in (self.before, self.after))
        return before is not None and after is not None and after > before


@dataclass(frozen=True)
class Gate:
    """Both revisions, row by row; `passed` unless a row fell or its verdict got worse."""

    rows: list[Row]
    alpha: float
    warnings: list[str]

    @property
    def failures(self) -> list[str]:
        """A sentence each."""
        return [sentence for row in self.rows for sentence in _failures(row, self.alpha)]

    @property
    def passed(self) -> bool:
        """Whether the change may be merged."""
        return not self.failures


def judge(before: Side, after: Side, alpha: float = 0.05, order: Iterable[str] = ()) -> Gate:
    """Compare two revisions. alpha: the level of the tests over all rows, in (0, 1).

    order: the names of rows as they should stand; others follow, sorted.
    """
    named = sorted({*before.metrics, *after.metrics})
    names = [name for name in dict.fromkeys(order) if name in named]
    rows = [_row(name, before, after) for name in dict.fromkeys([*names, *named])]
    tested = [row for row in rows if row.p is not None]
    joint = dict(zip((r.name for r in tested), holm([r.p or 0.0 for r in tested]), strict=True))
    rows = [replace(row, p=joint.get(row.name)) for row in rows]
    return Gate(rows, alpha, list(_warnings(rows, before, after)))


def _row(name: str, before: Side, after: Side) -> Row:
    row = Row(name, before.metrics.get(name), after.metrics.get(name))
    if row.before is None or row.after is None:
        return row
    old, new = _hits(row.before), _hits(row.after)
    if old is None or new is None:
        return row
    first, second = (side.outcomes.get(name) for side in (before, after))
    if first and second and _one_test(first, second) and (first.hits, second.hits) == (old, new):
        return replace(row, p=mcnemar(first.robust, second.robust), paired=True)
    return replace(row, p=_fisher(*old, *new))


def _robust(found: Mapping[str, Any] | None) -> float | None:
    """Robust accuracy, which metrics of long ago do not have."""
    return found.get("robust_accuracy") if found else None


def _level(found: Mapping[str, Any] | None) -> int | None:
    verdict = found.get("verdict") if found else None
    return RANK.index(verdict) if verdict in RANK else None


def _hits(found: Mapping[str, Any]) -> tuple[int, int] | None:
    """Images that stand, and all of them, from a rate that was rounded."""
    value, n = found.get("robust_accuracy"), found.get("n")
    return None if value is None or not n else (round(value * n), int(n))


def _one_test(first: Outcomes, second: Outcomes) -> bool:
    """Whether both are of the same images, in the same order."""
    return first.images == second.images and len(first.robust) == len(second.robust)


@cache
def _fisher(hits: int, n: int, others: int, m: int) -> float:
    """Fisher's exact two-sided p for two rates over different images."""
    from scipy.stats import fisher_exact

    return float(fisher_exact([[hits, n - hits], [others, m - others]]).pvalue)


def _failures(row: Row, alpha: float) -> Iterator[str]:
    if row.fell(alpha) and row.before and row.after:
        before, after = (percent(_robust(found)) for found in (row.before, row.after))
        yield f"{markdown(row.name)} fell from {before} to {after} % robust ({_p(row)})."
    if row.distrusted and row.before and row.after:
        yield f"{markdown(row.name)} was {row.before['verdict']} and is {row.after['verdict']}."


def _warnings(rows: list[Row], before: Side, after: Side) -> Iterator[str]:
    if vanished := [markdown(row.name) for row in rows if row.after is None]:
        yield f"No longer there: {listed(vanished)}."
    if added := [markdown(row.name) for row in rows if row.before is None]:
        yield f"New: {listed(added)}."
    if None not in (before.settings, after.settings) and before.settings != after.settings:
        yield (
            "The settings of the data or of the attacks are others than before: what changed may "
            "be the measurement."
        )
    tested = [row for row in rows if row.p is not None]
    if unpaired := [markdown(row.name) for row in tested if not row.paired]:
        each = "every row" if len(unpaired) == len(tested) else listed(unpaired)
        yield (
            f"{UNPAIRED} Not known image by image on both sides, so tested as two rates, which "
            f"sees large differences alone: {each}."
        )


def _p(row: Row) -> str:
    if row.p is None:
        return NOTHING
    shown = "p < 0.001" if row.p < 0.001 else f"p = {row.p:.2g}"
    return shown + ("" if row.paired else UNPAIRED)


def page(gate: Gate, title: str) -> str:
    """The gate in Markdown: how it ended, what speaks against it, and a row a model."""
    ended = "passed" if gate.passed else "FAILED"
    parts = [f"## {title}: {ended}", "\n".join(f"- ✗ {line}" for line in gate.failures)]
    cells = [_cells(row, gate.alpha) for row in gate.rows]
    parts.append(tabulate(cells, CAPTION, "github", disable_numparse=True))
    parts.append("\n".join(f"- {line}" for line in gate.warnings))
    tested = count(sum(row.p is not None for row in gate.rows), "row")
    parts.append(
        "Robust: the worst case over the suite, with 95 % interval. p: that it differs, tested on "
        f"the same images and corrected for {tested}; level {gate.alpha:g}."
    )
    return "\n\n".join(part for part in parts if part)


def _cells(row: Row, alpha: float) -> list[str]:
    def robust(found: Mapping[str, Any] | None) -> str:
        low, high = ((found or {}).get(f"robust_accuracy_{end}") for end in ("low", "high"))
        return with_interval(_robust(found), low, high)

    sides = (row.before, row.after)
    return [
        markdown(row.name),
        *(percent((found or {}).get("clean_accuracy")) for found in sides),
        *(robust(found) for found in sides),
        _p(row).removeprefix("p = ").removeprefix("p "),
        *(str((found or {}).get("verdict", NOTHING)) for found in sides),
        _mark(row, alpha),
    ]


def _mark(row: Row, alpha: float) -> str:
    if row.fell(alpha) or row.distrusted:
        return "✗"
    if row.after is None:
        return "gone"
    if row.before is None:
        return "new"
    better = row.p is not None and row.p < alpha and row.change > 0
    return "▲" if better else "="
