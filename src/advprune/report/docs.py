"""What documents say of finished runs: the blocks of README.md and docs/published.md.

A block is the text between two comments; nothing in it is typed, all of it comes from
`reports/<profile>/results.csv` and `report.published`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from advprune.core.errors import UserError
from advprune.core.files import write_text
from advprune.report.formats import heading, percent, texts
from advprune.report.published import SYSTEMS, System
from advprune.report.results import RESULTS
from advprune.report.terminal import read, title_of

README, PUBLISHED = Path("README.md"), Path("docs/published.md")
BLOCK = "<!-- {} -->\n{}\n<!-- end of {} -->"
OURS = (
    *("model", "sparsity", "bits", "clean_accuracy", "main_accuracy", "robust_accuracy"),
    *("transfer_accuracy", "flips_to_chance"),
)
UNREAD = "†"
Results = Mapping[str, pd.DataFrame]  # by profile


def fill(root: Path = Path()) -> list[Path]:
    """Write both pages anew, and say which; UserError where a page has no block to be filled."""
    results = committed(root)
    blocks = {f"results of {name}": summary_of(name, table) for name, table in results.items()}
    write_text(root / README, filled(root / README, blocks))
    tables = "\n\n".join(system_table(system, results) for system in SYSTEMS)
    write_text(root / PUBLISHED, filled(root / PUBLISHED, {"published figures": tables}))
    return [README, PUBLISHED]


def committed(root: Path = Path()) -> dict[str, pd.DataFrame]:
    """The results of each run that has a report, by profile."""
    names = sorted(path.parent.name for path in (root / "reports").glob(f"*/{RESULTS}"))
    return {name: read(name, root / "reports") for name in names}


def filled(page: Path, blocks: Mapping[str, str]) -> str:
    """The text of a page with each block's content in place of what was there."""
    text = page.read_text(encoding="utf-8")
    for name, content in blocks.items():
        pattern = BLOCK.format(re.escape(name), "(?:.*?)", re.escape(name))
        # A function, because a replacement's backslashes would be read as groups.
        new = BLOCK.format(name, f"\n{content}\n", name)
        text, times = re.subn(pattern, lambda _, new=new: new, text, flags=re.DOTALL)
        if times != 1:
            raise UserError(f"{page} needs the lines {BLOCK.format(name, '…', name)!r} once")
    return text


def summary_of(profile: str, table: pd.DataFrame) -> str:
    """One row per group of models: their accuracies, and how many differ from the dense network."""
    rows = []
    for group, part in table.groupby("group", sort=False):
        rows.append(
            {
                "models": group,
                "number": len(part),
                **{
                    name: _span(part[f"{name}_accuracy"])
                    for name in ("clean", "robust", "transfer")
                },
                **{
                    f"robust {word}": int((part.against_dense == word).sum())
                    for word in ("higher", "lower")
                },
                "reliable": int((part.verdict == "reliable").sum()),
            }
        )
    path = f"reports/{profile}/report.md"
    note = "Higher and lower: significantly, against the dense network on the same images."
    body = tabulate(rows, "keys", "github", disable_numparse=True)
    return f"**{title_of(profile, table)}** ([report]({path}))\n\n{body}\n\n{note}"


def _span(values: pd.Series) -> str:
    low, high = percent(values.min()), percent(values.max())
    return low if low == high else f"{low} to {high}"


def system_table(system: System, results: Results) -> str:
    """A published system: its figures as in the source, and our models of its families."""
    theirs = [
        [one.setting, f"{one.figure} {UNREAD}" if one.unread else one.figure]
        for one in system.figures
    ]
    ours = [_ours(name, table, system) for name, table in results.items()]
    found = pd.concat(ours, ignore_index=True) if ours else pd.DataFrame()
    parts = [
        f"### {system.title}",
        f"Source: {system.source}.",
        tabulate(theirs, ("setting", "published"), "github", disable_numparse=True),
    ]
    if len(found):
        shown = texts(found).rename(columns=heading)
        parts.append("Ours:")
        parts.append(tabulate(shown, "keys", "github", disable_numparse=True, showindex=False))
    else:
        parts.append("Ours: not run here.")
    return "\n\n".join([*parts, f"How they differ: {system.differs}"])


def _ours(profile: str, table: pd.DataFrame, system: System) -> pd.DataFrame:
    chosen = table[table.family.isin([*system.families, "dense"])]
    if not table.family.isin(system.families).any():
        chosen = chosen.iloc[:0]
    columns = [name for c in OURS for name in (c, f"{c}_low", f"{c}_high") if name in table]
    shown = chosen[columns].dropna(axis="columns", how="all")
    shown.insert(0, "profile", profile)
    return shown
