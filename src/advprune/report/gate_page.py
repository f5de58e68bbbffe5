"""The gate in Markdown, for a pull request."""

from tabulate import tabulate

from advprune.report import formats
from advprune.report.formats import NOTHING, p_value, percent
from advprune.report.gate import TESTS, UNPAIRED, Gate, Row, quoted

COLUMNS = (
    *("model", "clean % before", "after", "lost", "robust % before", "after", "lost", "p"),
    *("{} before", "after", "p", "verdict before", "after", ""),
)


def page(gate: Gate, title: str) -> str:
    """The gate in Markdown: outcome, reasons, and one row per model."""
    with formats.budgets_in(gate.norm):
        names = [name.format(formats.heading("median_distance")) for name in COLUMNS]
    cells = [_cells(row, gate.alpha) for row in gate.rows]
    tested = formats.counted(sum(bool(row.tests) for row in gate.rows), "model")
    parts = [
        f"## {title}: {'passed' if gate.passed else 'FAILED'}",
        "\n".join(f"- ✗ {line}" for line in gate.failures),
        tabulate(cells, names, "github", disable_numparse=True),
        "\n".join(f"- {line}" for line in gate.warnings),
        "Robust: nothing within the budget fools the model, with 95 % interval. Lost: images that "
        "were right and are wrong. Distance: median of the smallest changes found that fool it. p: "
        "that it differs, tested on the same images and corrected for all tests of "
        f"{tested}; level {gate.alpha:g}.",
    ]
    return "\n\n".join(part for part in parts if part)


def _cells(row: Row, alpha: float) -> list[str]:
    """One line of the table, in the order of `COLUMNS`."""
    both, pairs = (row.before, row.after), row.pairs
    clean = [percent(one and one.clean) for one in both]
    ends = [(one.rate.value, *one.rate.interval) if one else (None,) for one in both]
    robust = [formats.cell_text(formats.RATE, *one) for one in ends]
    lost = {kind: str(pairs[kind].lost) if pairs else NOTHING for kind in ("clean", "robust")}
    p = {kind: p_value(row.tests[kind].p) if kind in row.tests else NOTHING for kind in TESTS}
    distances = [one.distance if one and pairs else NOTHING for one in both]
    verdicts = [quoted(one.verdict) if one else NOTHING for one in both]
    return [
        quoted(row.name),
        *(*clean, lost["clean"]),
        *(*robust, lost["robust"], p["robust"] + UNPAIRED * row.is_unpaired),
        *(*distances, p["distance"]),
        *(*verdicts, _mark(row, alpha)),
    ]


def _mark(row: Row, alpha: float) -> str:
    """Whether a model is new or gone, fell, rose, or did neither."""
    if row.before is None or row.after is None:
        return "new" if row.after else "gone"
    if any(row.changed(kind, -1, alpha) for kind in TESTS) or row.is_distrusted:
        return "✗"
    return "▲" if row.changed("robust", 1, alpha) else "="
