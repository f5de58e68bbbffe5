"""The pages of the families and their rows in the README, from the docstrings of their modules.

A module's docstring begins with the keys of its families and what they do; its paragraphs begin
with a heading and a full stop (Claim, Formula, Source). Settings are those of their classes.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from advprune.pruning.family import registered

FOLDER = Path("docs/families")
OPENING = re.compile(r"^([A-Z][\w ]{2,30}(?: \([^)]*\))?)\. ")


def write_pages(root: Path = Path()) -> list[Path]:
    """Write `docs/families/<module>.md` of every module of families, and remove other pages."""
    from advprune.core.files import write_text

    pages = pages_of()
    for old in (root / FOLDER).glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        write_text(root / FOLDER / f"{name}.md", text)
    return [FOLDER / f"{name}.md" for name in pages]


def pages_of() -> dict[str, str]:
    """The text of each page by the name of its module."""
    return {name: "".join(_page(name, keys)) for name, keys in modules().items()}


def modules() -> dict[str, dict[str, type]]:
    """By module of `advprune.pruning`: its families in order, each with its class of settings."""
    found: dict[str, dict[str, type]] = {}
    for key, (setting, function) in registered().items():
        found.setdefault(function.__module__.rpartition(".")[2], {})[key] = setting
    return dict(sorted(found.items()))


def index() -> str:
    """One row per module for the README: its families, linked, and what they do."""
    lines = ["| family | what it does |", "|---|---|"]
    for name, keys in modules().items():
        what = _paragraphs(name)[0].partition(": ")[2].rstrip(".")
        lines.append(f"| [{', '.join(keys)}]({FOLDER.as_posix()}/{name}.md) | {what} |")
    return "\n".join(lines)


def _page(name: str, keys: dict[str, type]) -> Iterator[str]:
    title, *body = _paragraphs(name)
    yield f"# {title.rstrip('.')}\n"
    for paragraph in body:
        yield f"\n{OPENING.sub(lambda match: f'**{match[1]}.** ', paragraph)}\n"
    yield "\n## Settings\n"
    for setting in dict.fromkeys(keys.values()):
        own = ", ".join(f"`prune.{key}`" for key, kind in keys.items() if kind is setting)
        yield f"\n{own}\n\n```yaml\n{', '.join(_defaults(setting))}\n```\n"
        yield f"\n{inspect.getdoc(setting)}\n"
    yield f"\nCode: `src/advprune/pruning/{name}.py`. This page is generated from it.\n"


def _paragraphs(name: str) -> list[str]:
    text = inspect.getdoc(import_module(f"advprune.pruning.{name}")) or ""
    return text.split("\n\n")


def _defaults(setting: Any) -> Iterator[str]:
    """`name: default` of each field; what has to be given is `…`."""
    for name, field in setting.model_fields.items():
        value = field.get_default(call_default_factory=True)
        yield f"{name}: {'…' if value is PydanticUndefined else _yaml(value)}"


def _yaml(value: Any) -> str:
    """A default as params.yaml would have it."""
    if hasattr(value, "model_dump"):
        return f"{{{', '.join(f'{key}: {_yaml(one)}' for key, one in value.model_dump().items())}}}"
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )
