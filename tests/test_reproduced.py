"""docs/published.md: every figure of ours is a cell of a report, and every command a stage."""

import re
from pathlib import Path

import pandas as pd
import pytest
from dvc.repo import Repo

from advprune.core import params
from advprune.report import published
from advprune.report.page import _markdown_table
from advprune.report.reproduced import (
    END,
    NOT_RUN,
    START,
    SYSTEMS,
    UNREAD,
    Cell,
    Comparison,
    Result,
    answered,
    filled,
    tables,
)
from advprune.report.summary import QUESTION

ROOT = Path(__file__).parent.parent
SETTINGS = params.load(ROOT / "params.yaml")
NASTY = pd.DataFrame(
    {
        "family": ["E", "a|b", "R"],
        "setting": ["0.01", r"\ [x] ~ *y*", "compression 4, published True"],
        "p & q %": ["< 0.001", "5.0 (1.0–9.0)", "`z`"],
    }
)
CELLS = [
    cell
    for system in SYSTEMS
    for row in system.rows
    for cells in row.ours.values()
    for cell in cells
]


def result(*sections: str) -> Result:
    return Result(SETTINGS, "\n".join(sections))


def section(title: str, caption: str, table: pd.DataFrame) -> str:
    """A section as report.md has it, with another table before the one under the caption."""
    other = _markdown_table(pd.DataFrame({"other": ["1"]}))
    return (
        f"## {title}\n\nWords.\n\n{other}\n\n**{caption}**\n\n{_markdown_table(table)}\n\nAfter.\n"
    )


def test_a_table_is_read_back_as_it_was_written() -> None:
    found = result(section("One", "C", NASTY), "## Two\n\nWords.\n")
    assert found.tables("One", "C") == NASTY.to_dict("records")
    assert found.tables("One") == [{"other": "1"}]  # without a caption, the first
    assert found.tables("Two") == found.tables("Three") == found.tables("One", "D") == []


def test_a_cell_is_found_by_its_row() -> None:
    found = result(section("One", "C", NASTY))

    def read(row: dict[str, str], column: str = "p & q %") -> str | None:
        return Cell("x", "One", "C", row, column).read(found)

    assert read({"family": "E"}) == "x < 0.001"
    assert read({"family": "R", "setting": "compression 4"}) == "x `z`"
    assert read({"family": "R", "setting": "compression"}) is None  # no setting begins with it
    assert read({"family": "Q"}) is None
    with pytest.raises(KeyError):
        read({"family": "E"}, "clean %")


def test_what_was_not_run_is_said_and_what_was_is_shown() -> None:
    table = pd.DataFrame(
        {
            "entry": ["dense_8"],
            "flips to chance": ["12.0 (1.0–23.0)"],
            "clean %": ["98.7"],
            "after as many random flips %": ["98.0"],
        }
    )
    text = tables({"digits": result(f"## Bits under attack\n\n{_markdown_table(table)}\n")})
    line = next(line for line in text.splitlines() if "28.0 ± 4.47" in line)
    assert "digits: dense_8 flips 12.0 (1.0–23.0), clean 98.7" in line
    assert "`dvc repro bitflip@dense_8`" in line
    line = next(line for line in text.splitlines() if "541.2" in line)
    assert f"| {NOT_RUN} |" in line and "digits" not in line
    assert f"0.1 % left {UNREAD}" in text  # not read at its source


def test_a_page_is_filled_between_its_marks_alone() -> None:
    once = filled(f"before\n{START}\nan older table\n{END}\nafter\n", tables({}))
    assert once.startswith(f"before\n{START}\n") and once.endswith(f"{END}\nafter\n")
    assert "an older table" not in once and NOT_RUN in once
    assert filled(once, tables({})) == once
    with pytest.raises(ValueError, match="needs the lines"):
        filled(f"{END} {START}", "")


def test_one_of_several_results_is_filled_and_the_others_stand() -> None:
    page = "<a>\n1\n<end>\nbetween\n<b>\n2\n<end>\nafter\n"
    assert filled(page, "new", "<b>", "<end>") == (
        "<a>\n1\n<end>\nbetween\n<b>\n\nnew\n\n<end>\nafter\n"
    )


def test_an_answer_is_the_summary_of_the_report_over_its_table() -> None:
    head = "# Title\n\nData: some digits, n = 9 test images. Every number.\n\n"
    answer = "- It falls (p &lt; 0.001).\n- The price.\n"
    asked = "### Is it so? Yes: 9 %\n\n- not of the summary? No\n\n### a: Why? Because\n"
    found = result(head, f"## {QUESTION}\n\n{answer}\n## Findings\n\n{asked}")
    text = answered(found, "| a table |")
    assert text.endswith("\n\n- Is it so? **Yes: 9 %**\n- a: Why? **Because**\n\n</details>")
    assert text.startswith("**digits**: some digits, n = 9 test images; resnet18 of width 8, ")
    assert f"\n\n{answer}\n| a table |\n\n<details>" in text and "not of the summary" not in text
    long = "\n".join(30 * ["| a row |"])
    assert f"The rows of digits</summary>\n\n{long}\n\n</details>" in answered(found, long)
    with pytest.raises(KeyError, match="no answer under"):
        answered(result(head), "")


def test_the_tables_of_the_page_are_whole() -> None:
    lines = [line for line in tables({}).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}
    assert all(row.why and row.stage for system in SYSTEMS for row in system.rows)


def test_every_table_that_is_looked_for_is_one_of_the_report() -> None:
    source = (ROOT / "src/advprune/report/page.py").read_text(encoding="utf-8")
    titles = {cell.section for cell in CELLS} | {cell.caption for cell in CELLS}
    assert all(f'"{title}"' in source for title in titles - {"", "Base standard"})
    assert 'f"Base {base}"' in source


def test_every_figure_is_in_the_report_of_digits() -> None:
    found = Result(SETTINGS, (ROOT / "reports/digits/report.md").read_text(encoding="utf-8"))
    of_digits = [
        cell
        for system in SYSTEMS
        for row in system.rows
        for profile, cells in row.ours.items()
        for cell in cells
        if profile == "digits"
    ]
    assert len(of_digits) > 100 and all(cell.read(found) for cell in of_digits)


def test_every_command_is_a_stage() -> None:
    stages = {stage.addressing for stage in Repo(str(ROOT)).index.stages}
    named: list[Comparison] = [row for system in SYSTEMS for row in system.rows]
    assert {row.stage for row in named} <= stages


def test_the_published_sweep_agrees_with_itself() -> None:
    rows = published.NN_PRUNE.rows
    assert all(row.remnant <= row.clean for row in rows.values())
    zeroed = [row.changed for (family, _), row in rows.items() if family == "E"]
    assert zeroed == sorted(zeroed) and len(zeroed) == 8
    # Of 1,000 images each accuracy is a multiple of 0.1 %, and guessing leaves one.
    assert all(round(10 * row.clean, 6).is_integer() for row in rows.values())
    assert min(row.clean for row in rows.values()) == pytest.approx(0.1)
