"""The generated parts of README and docs: text between pairs of comments.

Nothing in them is typed by hand: results come from `reports/<profile>/results.csv`, families from
the docstrings of their modules, published claims from claims.yaml and their outcomes from the
`claims.csv` of each report and of the reference networks in weights/.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from advprune.core.claims import FILE, Claim, read_claims
from advprune.core.errors import UserError
from advprune.core.files import write_text
from advprune.report.results import OUTCOMES, RESULTS
from advprune.report.terminal import markdown_of, read, title_of

README, PUBLISHED = Path("README.md"), Path("docs/published.md")
BLOCK = "<!-- {} -->\n{}\n<!-- end of {} -->"  # its name, its content, the kind of block


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
    outcomes: dict[str, pd.Series[str]] = {}
    for place in ("reports", "weights"):
        for path in sorted((root / place).glob(f"*/{OUTCOMES}")):
            found, name = pd.read_csv(path, index_col="id").outcome, path.parent.name
            known = outcomes.get(name, found)  # a report on the same networks, of fewer seeds
            outcomes[name] = found.combine_first(known)
    claims = claims_of(read_claims(root / FILE), outcomes)
    return {README: results | {"families": index()}, PUBLISHED: {"claims": claims}}


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


def claims_of(claims: Sequence[Claim], outcomes: Mapping[str, "pd.Series[str]"]) -> str:
    """The claims of each paper with their place in it and their outcomes by profile."""
    parts = []
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [claim for claim in claims if claim.paper == paper]
        source, theirs = own[0].source, own[0].regime.published
        rows = []
        for one in own:
            place = one.where if one.source == source else f"{one.source}, {one.where}"
            rows.append(
                (one.claim, place, one.published, *(o.get(one.id) for o in outcomes.values()))
            )
        names = ("claim", "where", "published", *outcomes)
        table = tabulate(rows, names, "github", disable_numparse=True)
        parts.append(f"### Claims: {paper}\n\nSource: {source}. Theirs: {theirs}.\n\n{table}")
    return "\n\n".join(parts)
