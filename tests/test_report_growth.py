"""Early-Growth in the report: its course and its channels, from a planted history."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from planted import settings, study

from advprune.core.errors import UserError
from advprune.report import study as study_module
from advprune.report.figures import figures, png
from advprune.report.growth import channel_table, course
from advprune.report.page import report_markdown
from advprune.report.study import Study
from advprune.report.write import curves

SHARES = {"stem": (0.5, 0.25), "layer1": (0.25, 1.0), "layer1_0": (0.3333, 0.5833)}  # of 8, 8, 12
GROWN = {
    "stages": [2, 8],
    "inner": [7],
    "base": [2, 2, 3],
    "history": [
        {"epoch": epoch + 1.0, "train_accuracy": 0.2, "density": 0.4, "base_density": 1.0 - epoch}
        | {f"density_{group}": both[epoch] for group, both in SHARES.items()}
        | {"val_accuracy": 0.5}
        for epoch in range(2)
    ],
}


@pytest.fixture
def grown() -> Study:
    return replace(study(params=settings(growth={"factor": 4})), growth=GROWN)


def test_channels_by_hand(grown: Study) -> None:
    table = channel_table(grown)
    assert list(table["channels"]) == ["stem", "layer1", "layer1, inside block 1"]
    assert list(table["base network"]) == ["2", "2", "3"] and list(table.grown) == ["2", "8", "7"]
    assert list(table.iloc[:, -1]) == ["25.0", "100.0", "58.3"]


def test_the_course_is_drawn_as_it_was(grown: Study) -> None:
    figure = course(grown)
    assert figure is not None
    streams, inside, accuracy = figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in streams.lines[1:]}
    assert drawn == {
        "all": [40, 40],
        "of the base": [100, 0],
        "stem": [50, 25],
        "layer1": [25, 100],
    }
    assert [list(line.get_ydata()) for line in inside.lines[1:]] == [pytest.approx([33.33, 58.33])]
    assert streams.lines[0].get_ydata()[0] == inside.lines[0].get_ydata()[0] == 25  # one in four
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[50, 50], [20, 20]]


def test_it_has_a_part_of_the_report_and_its_numbers(grown: Study) -> None:
    page = report_markdown(grown, {name: png(one) for name, one in figures(grown).items()})
    assert "## Early-Growth" in page and "figures/growth.png" in page
    assert list(curves(grown)["growth"].density_layer1) == [0.25, 1.0]


def test_nothing_grown_is_left_out() -> None:
    found = study()
    assert course(found) is None and channel_table(found).empty and "growth" not in curves(found)
    assert "Early-Growth" not in report_markdown(found, {})


@pytest.mark.parametrize("text", [None, '{"stages": ['])
def test_a_file_that_is_missing_or_damaged_is_named(text: str | None, tmp_path: Path) -> None:
    params = settings(binary={"RA_BNN": {"channels": "grown"}})
    if text is not None:
        (tmp_path / "growth.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"growth\.json is missing or damaged"):
        study_module._growth(params, tmp_path / "growth.json")
    (tmp_path / "growth.json").write_text(json.dumps(GROWN), encoding="utf-8")
    assert study_module._growth(params, tmp_path / "growth.json") == GROWN
    assert study_module._growth(settings(), tmp_path / "none.json") == {}
