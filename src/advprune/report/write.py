"""Writing: the report's folder and the metrics' folder, whole or not at all."""

import io
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from ruamel.yaml import YAML

from advprune.core.files import atomic, write_json
from advprune.core.params import FILE
from advprune.report.bits import flip_curves, flip_numbers
from advprune.report.families import Claim
from advprune.report.figures import figures, png
from advprune.report.growth import history
from advprune.report.outcomes import FILE as OUTCOMES
from advprune.report.outcomes import outcome_table
from advprune.report.page import html, report_markdown
from advprune.report.sparse import number_table
from advprune.report.study import Study
from advprune.report.tables import curve_table, sweep_table
from advprune.report.transfers import transfer_table


def write_report(study: Study, folder: Path, claims: Mapping[str, Claim] | None = None) -> None:
    """Write report.md, report.html, figures/*.png, curves/*.csv, outcomes.csv and the settings that
    it was made with, in place of an older report. claims: what each family is said to do."""
    pngs = {name: png(figure) for name, figure in figures(study).items()}
    with _replaced(folder) as temporary:
        for name, data in pngs.items():
            _inside(temporary, f"figures/{name}.png").write_bytes(data)
        for name, table in curves(study).items():
            place = _inside(temporary, f"curves/{name}.csv")
            table.to_csv(place, index=False, lineterminator="\n")
        outcome_table(study).to_csv(temporary / OUTCOMES, index=False, lineterminator="\n")
        (temporary / FILE).write_text(settings_of(study), encoding="utf-8")
        for name, render in (("report.md", report_markdown), ("report.html", html)):
            (temporary / name).write_text(render(study, pngs, claims), encoding="utf-8")


def settings_of(study: Study) -> str:
    """The settings of this run as YAML, of the profiles its own alone: they give it again."""
    params, buffer = study.params, io.StringIO()
    found = params.model_dump(mode="json", exclude_unset=True)
    found["profile"] = params.profile
    found["profiles"] = {params.profile: found["profiles"][params.profile]}
    YAML().dump(found, buffer)  # a line a value: what DVC reads with takes no colon inside braces
    return buffer.getvalue()


def write_metrics(study: Study, folder: Path) -> None:
    """Write `<family>-<base>.json` for each model, in place of an older folder."""
    with _replaced(folder) as temporary:
        for model in study.models:
            write_json(temporary / f"{model.name}.json", study.metrics(model))


def curves(study: Study) -> dict[str, pd.DataFrame]:
    """The curves behind the figures as tables of numbers, for `dvc plots`."""
    found = {
        "security": curve_table(study, "curve_eps", "eps"),
        "steps": curve_table(study, "curve_steps", "steps"),
        "sweep": sweep_table(study),
        "transfer": transfer_table(study),
        "bitflip": flip_curves(study),
        "flips": flip_numbers(study),
    }
    more = {"sparsity": number_table(study), "growth": history(study)}
    return found | {name: table for name, table in more.items() if len(table)}


def _inside(folder: Path, name: str) -> Path:
    place = folder / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder`, which is only then removed."""
    with atomic(folder) as temporary:
        temporary.mkdir()
        yield temporary
        if folder.is_dir():
            shutil.rmtree(folder)
