"""The generated parts of README and docs: text between pairs of comments, and pages of families.

Results come from `reports/<profile>/results.csv`, claims from claims.yaml and each `claims.csv`,
strength of the attacks and error rates of the verdict from bench/, families from the docstrings of
their modules: the keys of the families and what they do, then paragraphs that begin with a heading
and a full stop (Claim, Formula, Source).
"""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import pandas as pd
from pydantic import BaseModel
from pydantic_core import PydanticUndefined, to_jsonable_python
from tabulate import tabulate

from advprune.core.claims import FILE, Claim, read_claims
from advprune.core.errors import UserError
from advprune.core.files import write_text
from advprune.report.results import CLAIMS, RESULTS
from advprune.report.sections.strength import beside_autoattack
from advprune.report.sections.verdict import CALIBRATION, calibration
from advprune.report.terminal import read, table_of, title_of

README, PUBLISHED, FOLDER = Path("README.md"), Path("docs/published.md"), Path("docs/families")
MEASUREMENT = Path("docs/measurement.md")
BLOCK = "<!-- {} -->\n{}\n<!-- end of {} -->"  # its name, its content, the kind of block
REFERENCE = " ‡"  # marks an outcome on reference networks, as docs/published.md explains
OPENING = re.compile(r"^([A-Z][\w ]{2,30}(?: \([^)]*\))?)\. ")  # of a paragraph: its heading


def fill(root: Path = Path()) -> list[Path]:
    """Rewrite every block of README and docs, and the pages of families; returns their paths.
    UserError if a block is missing."""
    found = {
        page: filled((root / page).read_text(encoding="utf-8"), blocks)
        for page, blocks in blocks_of(root).items()
    }
    found |= {FOLDER / f"{name}.md": text for name, text in family_pages().items()}
    for old in (root / FOLDER).glob("*.md"):
        if FOLDER / old.name not in found:
            old.unlink()
    for page, text in found.items():
        write_text(root / page, text)
    return list(found)


def blocks_of(root: Path = Path()) -> dict[Path, dict[str, str]]:
    """The contents of the blocks of each page, by the name of the block."""
    readme, blocks = (root / README).read_text(encoding="utf-8"), {"families": index()}
    for name in sorted(path.parent.name for path in (root / "reports").glob(f"*/{RESULTS}")):
        if f"<!-- results: {name} -->" in readme:
            title = title_of(name, table := read(name, root / "reports"))
            link = f"([report](reports/{name}/report.md))"
            blocks[f"results: {name}"] = f"**{title}** {link}\n\n{table_of(table)}"
    outcomes: dict[str, pd.Series[str]] = {}
    for place in ("reports", "weights"):
        for path in sorted((root / place).glob(f"*/{CLAIMS}")):
            found, name = pd.read_csv(path, index_col="id").outcome, path.parent.name
            found += REFERENCE * (place == "weights")
            known = outcomes.get(name, found)  # a report on the same networks, of fewer seeds
            outcomes[name] = found.combine_first(known)
    claims = claims_of(read_claims(root / FILE), outcomes)
    measured = {"strength": beside_autoattack(root), "verdict": calibration(root / CALIBRATION)}
    return {README: blocks, PUBLISHED: {"claims": claims}, MEASUREMENT: measured}


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


def claims_of(claims: Sequence[Claim], outcomes: Mapping[str, "pd.Series[str]"]) -> str:
    """The claims of each paper with their place in it and their outcomes by profile."""
    parts = []
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [claim for claim in claims if claim.paper == paper]
        source, theirs = own[0].source, own[0].regime.published
        rows = []
        for one in own:
            place = one.where if one.source == source else f"{one.source}, {one.where}"
            found = (outcome.get(one.id) for outcome in outcomes.values())
            rows.append((one.claim, place, one.published, one.regime.asked, *found))
        names = ("claim", "where", "published", "regime", *outcomes)
        table = tabulate(rows, names, "github", disable_numparse=True)
        parts.append(f"### Claims: {paper}\n\nSource: {source}. Theirs: {theirs}.\n\n{table}")
    return "\n\n".join(parts)


def family_pages() -> dict[str, str]:
    """The text of each page of families by the name of its module."""
    pages = {}
    for name, keys in modules().items():
        title, *body = _paragraphs(name)
        parts = [f"# {title.rstrip('.')}"]
        parts += [OPENING.sub(lambda match: f"**{match[1]}.** ", text) for text in body]
        parts.append("## Settings")
        for setting in dict.fromkeys(keys.values()):
            own = ", ".join(f"`prune.{key}`" for key, kind in keys.items() if kind is setting)
            defaults = []  # as params.yaml would have them; what has to be given is `…`
            for field, info in setting.model_fields.items():
                value = info.get_default(call_default_factory=True)
                text = "…" if value is PydanticUndefined else json.dumps(to_jsonable_python(value))
                defaults.append(f"{field}: {text.replace(chr(34), '')}")
            parts += [own, f"```yaml\n{', '.join(defaults)}\n```"]
            parts.append(str(inspect.getdoc(setting)))
        parts.append(f"Code: `src/advprune/pruning/{name}.py`. This page is generated from it.\n")
        pages[name] = "\n\n".join(parts)
    return pages


def modules() -> dict[str, dict[str, type[BaseModel]]]:
    """By module of `advprune.pruning`: its families in order, each with its class of settings."""
    from advprune.pruning.family import families  # needs torch

    found: dict[str, dict[str, type[BaseModel]]] = {}
    for key, (setting, function) in families().items():
        found.setdefault(function.__module__.rpartition(".")[2], {})[key] = setting
    return dict(sorted(found.items()))


def index() -> str:
    """One row per module for the README: its families, linked, and what they do."""
    lines = ["| family | what it does |", "|---|---|"]
    for name, keys in modules().items():
        what = _paragraphs(name)[0].partition(": ")[2].rstrip(".")
        lines.append(f"| [{', '.join(keys)}]({FOLDER.as_posix()}/{name}.md) | {what} |")
    return "\n".join(lines)


def _paragraphs(name: str) -> list[str]:
    text = inspect.getdoc(import_module(f"advprune.pruning.{name}")) or ""
    return text.split("\n\n")
