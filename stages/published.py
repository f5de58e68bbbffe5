"""What documents say of finished runs: the README's results and docs/published.md, from reports."""

from pathlib import Path
from typing import Annotated

import typer

from common import Workspace, script

README, PAGE = Path("README.md"), Path("docs/published.md")


def published(
    page: Annotated[Path, typer.Option(help="The page of published figures and ours.")] = PAGE,
    readme: Annotated[Path, typer.Option(help="The page that begins with results.")] = README,
) -> None:
    """Fill both pages between their markers from `reports/` and `metrics/`; nothing is computed.

    Settings are those that lie beside a report. In the page of published figures a profile without
    a report says “not run here”; in the README one of which it has no markers is left out.
    """
    from show import as_markdown

    from advprune.core.errors import UserError
    from advprune.core.files import write_text
    from advprune.core.params import FILE, load
    from advprune.report.reproduced import Result, answered, filled, tables

    results = {}
    for name in load().profiles:
        folder = Path("reports") / name
        if (folder / "report.md").is_file():
            text = (folder / "report.md").read_text(encoding="utf-8")
            results[name] = Result(load(folder / FILE), text)

    def with_results(text: str) -> str:
        for name, result in results.items():
            start = f"<!-- results: {name} -->"
            if start in text:
                answer = answered(result, as_markdown(Workspace(result.params)))
                text = filled(text, answer, start, "<!-- end of results -->")
        return text

    for path, fill in ((page, lambda text: filled(text, tables(results))), (readme, with_results)):
        try:
            write_text(path, fill(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be filled: {error}") from error
        print(path)


if __name__ == "__main__":
    script(published)
