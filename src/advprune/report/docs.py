"""What the README says of finished runs and of families: the text between pairs of comments.

Nothing in it is typed: results come from `reports/<profile>/results.csv`, families from the
docstrings of their modules.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from advprune.core.errors import UserError
from advprune.core.files import write_text
from advprune.report.formats import percent
from advprune.report.results import RESULTS, without_own
from advprune.report.terminal import read, title_of

BLOCK = "<!-- {} -->\n{}\n<!-- end of {} -->"


def fill(page: Path, root: Path = Path()) -> None:
    """Write a page with every block anew; UserError where it lacks one."""
    from advprune.report.pages import index

    names = sorted(path.parent.name for path in (root / "reports").glob(f"*/{RESULTS}"))
    blocks = {f"results: {name}": results_of(name, read(name, root / "reports")) for name in names}
    write_text(page, filled(page.read_text(encoding="utf-8"), blocks | {"families": index()}))


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A text with each block's content in place of what was between its two comments."""
    for name, content in blocks.items():
        pattern = BLOCK.format(re.escape(name), "(?:.*?)", re.escape(name))
        parts = re.split(pattern, text, flags=re.DOTALL)
        if len(parts) != 2:
            raise UserError(f"a page needs once: {BLOCK.format(name, '…', name)!r}")
        text = BLOCK.format(name, f"\n{content}\n", name).join(parts)
    return text


def results_of(profile: str, table: pd.DataFrame) -> str:
    """One row per group of models: accuracies, and how many differ from the dense network."""
    rows = []
    for group, part in without_own(table).groupby("group", sort=False):
        rates = {name: _span(part[f"{name}_accuracy"]) for name in ("clean", "robust", "transfer")}
        counts = {f"robust {w}": int((part.against_dense == w).sum()) for w in ("higher", "lower")}
        reliable = {"reliable": int((part.verdict == "reliable").sum())}
        rows.append({"models": group, "number": len(part)} | rates | counts | reliable)
    body = tabulate(rows, "keys", "github", disable_numparse=True)
    note = "Higher and lower: significantly, against the dense network on the same images."
    report = f"[report](reports/{profile}/report.md)"
    return f"**{title_of(profile, table)}** ({report})\n\n{body}\n\n{note}"


def _span(values: pd.Series) -> str:
    """`0.0 to 53.0`, or one number where all are the same."""
    low, high = percent(values.min()), percent(values.max())
    return low if low == high else f"{low} to {high}"
