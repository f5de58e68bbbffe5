"""Speed and size, and corruptions, of a network of one's own; the report's section on speed."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from handmade import N, model, run_of, settings
from test_cli import Run, folder, here, run  # noqa: F401 (fixtures)
from torch import nn
from workspace import change

from advprune.evaluate import timing
from advprune.models.card import write_card
from advprune.report.section import sections
from advprune.report.sections.speed import TIMINGS
from advprune.report.write import settings_of

CARD = {"macs": 10, "nonzero": 5, "file_bytes": 400}


class Slow(nn.Module):
    """Sleeps for each image, and sees how many it is given."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.linear, self.seconds, self.sizes = nn.Linear(4, 3), seconds, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        self.sizes.append(len(x))
        return self.linear(x.flatten(1))


def test_latency_is_the_median_of_calls_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CALLS", 6)
    images, models = torch.rand(3, 1, 2, 2), {"fast": Slow(0.002), "slow": Slow(0.01)}
    given = {name: (one.eval(), CARD) for name, one in models.items()}
    found = timing.timings(given, images, 4).set_index(["model", "batch"])
    assert list(found.index) == [("fast", 1), ("slow", 1), ("fast", 4), ("slow", 4)]
    for (name, batch), row in found.iterrows():
        expected = batch * models[name].seconds
        assert row.latency_low >= expected and row.latency_low <= row.latency <= row.latency_high
    assert found.latency["fast", 1] < found.latency["slow", 1] < found.latency["slow", 4]
    assert (found.calls == 6).all() and (found.macs == 10).all()
    assert (found.threads == torch.get_num_threads()).all() and found.processor.str.len().all()
    assert models["slow"].sizes[-9:] == [4] * 9  # images are repeated where there are too few


def test_a_slow_network_is_asked_five_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    found = timing.timings({"one": (Slow(0.0).eval(), CARD)}, torch.rand(2, 1, 2, 2), 2)
    assert (found.calls == 5).all()


def test_the_section_is_there_only_where_times_were_measured(tmp_path: Path) -> None:
    params = settings()
    sent = {("dense-standard", "field"): N}
    models = [model(name, params, {}, sent) for name in ("dense-standard", "E-standard")]
    whole = replace(run_of(models, params), folder=tmp_path)
    (section,) = [one for one in sections() if one.id == "speed"]
    assert section.parts(whole) == []
    rows = [
        {"model": name, "batch": batch, "latency": 0.001 * batch, "latency_low": 0.0009 * batch}
        | {"latency_high": 0.002 * batch, "calls": 50, **CARD, "processor": "P", "threads": 2}
        for name in ("dense-standard", "E-standard")
        for batch in (1, 64)
    ]
    (tmp_path / TIMINGS).mkdir()
    pd.DataFrame(rows).to_csv(tmp_path / TIMINGS / "digits.csv", index=False)
    table, first, second = section.parts(whole)
    assert "P, 2 threads: median and quartiles of 50 calls" in table.text
    assert first.chart and second.chart and len(second.chart.data) == 2
    assert second.chart.data.latency.tolist() == [0.064, 0.064]
    assert "latency" not in settings_of(params)


def test_evaluate_adds_corruptions_and_times(here: Path, run: Run, tmp_path: Path) -> None:  # noqa: F811
    asked = ("evaluate", here, "--dense", here, "--corruptions", "--time")
    status, out, err = run(*asked, "--page", tmp_path / "net.html", "--out", tmp_path / "out")
    assert status == 0, err
    assert re.search(r"severity 1 % .* mean accuracy % .* p ", out)
    assert re.search(r"model +batch +latency ms", out) and re.search(r"model +64 ", out)
    page = (tmp_path / "net.html").read_text(encoding="utf-8")
    assert "Common corruptions" in page and "Distance over latency, batch 64" in page
    table = pd.read_parquet(tmp_path / "out" / "corruptions-model.parquet")
    assert len(table) == 12 * 5 * 12  # images, severities, corruptions
    own, dense = table, pd.read_parquet(tmp_path / "out" / "corruptions-dense.parquet")
    assert own.adv_pred.tolist() == dense.adv_pred.tolist()  # the same network, the same images


def test_time_measures_a_run_for_its_report(here: Path, run: Run) -> None:  # noqa: F811
    change(Path(), {"models": {}, "recipes": {"standard": {"method": "standard"}}})
    write_card(here, image_shape=(1, 8, 8))
    status, out, err = run("time", "--batch", 8)
    assert status == 0 and out.splitlines()[-1] == "timings/digits.csv", err
    assert pd.read_csv("timings/digits.csv").batch.tolist() == [1, 8]
