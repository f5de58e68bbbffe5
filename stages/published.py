"""The tables of docs/published.md: published figures and ours beside them, from the reports."""

from pathlib import Path
from typing import Annotated

import typer

from common import script

PAGE = Path("docs/published.md")


def published(
    page: Annotated[Path, typer.Option(help="The page that holds the two markers.")] = PAGE,
) -> None:
    """Fill the page from `reports/<profile>/` of every profile that was run; nothing is computed.

    Settings are those that lie beside a report. Profiles without a report say “not run here”.
    """
    from advprune.core.errors import UserError
    from advprune.core.files import write_text
    from advprune.core.params import FILE, load
    from advprune.report.reproduced import Result, filled

    results = {}
    for name in load().profiles:
        folder = Path("reports") / name
        if (folder / "report.md").is_file():
            text = (folder / "report.md").read_text(encoding="utf-8")
            results[name] = Result(load(folder / FILE), text)
    try:
        write_text(page, filled(page.read_text(encoding="utf-8"), results))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{page} cannot be filled: {error}") from error
    print(page)


if __name__ == "__main__":
    script(published)
