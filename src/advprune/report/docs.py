"""The generated parts of README and docs: text between pairs of comments.

Nothing in them is typed by hand: results come from `reports/<profile>/results.csv`, families from
the docstrings of their modules, published figures from `report.published`.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from advprune.core.errors import UserError
from advprune.core.files import write_text
from advprune.report.published import SYSTEMS, System
from advprune.report.results import RESULTS
from advprune.report.terminal import markdown_of, read, title_of

README, PUBLISHED = Path("README.md"), Path("docs/published.md")
BLOCK = "<!-- {} -->\n{}\n<!-- end of {} -->"  # its name, its content, the kind of block
UNREAD = "†"


def fill(root: Path = Path()) -> None:
    """Rewrite every block of both pages; UserError if one is missing."""
    for page, blocks in blocks_of(root).items():
        text = filled((root / page).read_text(encoding="utf-8"), blocks)
        write_text(root / page, text)


def blocks_of(root: Path = Path()) -> dict[Path, dict[str, str]]:
    """The contents of the blocks of each page, by the name of the block."""
    from advprune.report.pages import index

    names = sorted(path.parent.name for path in (root / "reports").glob(f"*/{RESULTS}"))
    tables = {name: read(name, root / "reports") for name in names}
    readme = (root / README).read_text(encoding="utf-8")
    results = {
        f"results: {name}": results_of(name, table)
        for name, table in tables.items()
        if f"<!-- results: {name} -->" in readme
    }
    figures = "\n\n".join(published_of(system) for system in SYSTEMS)
    return {README: results | {"families": index()}, PUBLISHED: {"published": figures}}


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """A text with each block's content in place of what was between its two comments."""
    for name, content in blocks.items():
        kind = name.partition(":")[0]
        pattern = BLOCK.format(re.escape(name), "(?:.*?)", kind)
        parts = re.split(pattern, text, flags=re.DOTALL)
        if len(parts) != 2:
            raise UserError(f"a page needs exactly one: {BLOCK.format(name, '…', kind)!r}")
        text = BLOCK.format(name, f"\n{content}\n", kind).join(parts)
    return text


def results_of(profile: str, table: pd.DataFrame) -> str:
    """The leaderboard of a profile, with a link to its report."""
    report = f"[report](reports/{profile}/report.md)"
    return f"**{title_of(profile, table)}** ({report})\n\n{markdown_of(table)}"


def published_of(system: System) -> str:
    """A published system: its source, its regime and its figures."""
    rows = [
        (one.setting, f"{one.figure} {UNREAD}" if one.unread else one.figure)
        for one in system.figures
    ]
    table = tabulate(rows, ("setting", "published"), "github", disable_numparse=True)
    return f"### {system.title}\n\nSource: {system.source}. {system.differs}\n\n{table}"
