"""Speed and size, and corruptions, of a network of one's own; the report's section on speed."""

import re
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from handmade import N, model, run_of, settings
from PIL import Image
from sklearn.datasets import load_digits
from test_cli import folder, here  # noqa: F401 (fixtures)
from torch import nn
from workspace import ROOT, change

from advprune.core.errors import UserError
from advprune.core.settings import yaml_of
from advprune.evaluate import timing
from advprune.evaluate.corruptions import KINDS
from advprune.models.card import write_card
from advprune.report.results import results
from advprune.report.section import sections
from advprune.report.sections.speed import TIMINGS
from advprune.studies import check_studies

CARD = {"macs": 10, "nonzero": 5, "file_bytes": 400}


SIZES = defaultdict[int, list[int]](list)  # by network, the numbers of images it was given


class Slow(nn.Module):
    """Sleeps for each image, and sees how many it is given."""

    def __init__(self, seconds):
        super().__init__()
        self.linear, self.seconds = nn.Linear(4, 3), seconds

    def forward(self, x):
        time.sleep(self.seconds * len(x))
        SIZES[id(self)].append(len(x))
        return self.linear(x.flatten(1)) + torch.tensor([0.0, 2.0, 4.0])


def test_latency_is_the_median_of_calls_in_turns(monkeypatch):
    monkeypatch.setattr(timing, "CALLS", 6)
    images, models = torch.rand(3, 1, 2, 2), {"fast": Slow(0.0), "slow": Slow(0.02)}
    given = {name: (one.eval(), CARD) for name, one in models.items()}
    found = timing.timings(given, images, 4).set_index(["model", "batch"])
    assert list(found.index) == [("fast", 1), ("slow", 1), ("fast", 4), ("slow", 4)]
    for (name, batch), row in found.iterrows():
        expected = batch * models[name].seconds
        assert row.latency_low >= expected and row.latency_low <= row.latency <= row.latency_high
    assert found.latency["fast", 1] < found.latency["slow", 1] < found.latency["slow", 4]
    assert (found.calls == 6).all() and (found.macs == 10).all()
    assert (found.threads == torch.get_num_threads()).all() and found.processor.str.len().all()
    assert SIZES[id(models["slow"])][-9:] == [4] * 9  # images are repeated where there are too few


def test_a_slow_network_is_asked_five_times(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    found = timing.timings({"one": (Slow(0.0).eval(), CARD)}, torch.rand(2, 1, 2, 2), 2)
    assert (found.calls == 5).all()


def test_the_section_is_there_only_where_times_were_measured(tmp_path):
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
    for text in ("", "model,batch\nE-standard,1\n", "\0"):
        (tmp_path / TIMINGS / "digits.csv").write_text(text)
        with pytest.raises(UserError, match=r"digits.csv is damaged"):
            section.parts(whole)
    assert not results(whole).columns.str.contains("latency").any()  # nor does a gate know it


def shown(page, start):
    """The commands of a page that begin so, as words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line.split()[1:] for line in re.findall(rf"^{start}.*$", text, re.MULTILINE)]


def test_the_pages_commands_add_corruptions_and_times(
    here,  # noqa: F811
    run,
    tmp_path,
    monkeypatch,
):
    model = here.read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("net.safetensors", "dense.safetensors"):
        Path(name).write_bytes(model)
    for number, image in enumerate(load_digits().images[:10]):  # one of each class
        Path(f"pictures/{number}").mkdir(parents=True)
        Image.fromarray((15 * image).astype("uint8")).save(f"pictures/{number}/0.png")
    (corruptions,), (time, _) = shown("corruptions.md", "advprune"), shown("speed.md", "advprune")
    status, out, err = run(*corruptions, "--out", "out", *time[-3:])
    assert status == 0 and time[:-3] == corruptions[:-3], err
    assert re.search(r"severity 1 % .* mean accuracy % .* p ", out)
    assert re.search(r"model +batch +latency ms", out) and re.search(r"model +64 ", out)
    page = Path("net.html").read_text(encoding="utf-8")
    assert "Common corruptions" in page and "Distance over latency, batch 64" in page
    own, dense = (pd.read_parquet(f"out/corruptions-{name}.parquet") for name in ("model", "dense"))
    assert len(own) == 10 * 5 * 12  # images, severities, corruptions
    assert own.adv_pred.tolist() == dense.adv_pred.tolist()  # the same network, the same images


def test_the_page_on_corruptions_shows_code_and_settings_that_work():
    text = (ROOT / "docs" / "corruptions.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names = {}
    exec(code, names)
    assert names["blurred"].shape == names["images"].shape
    (written,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    studies = yaml_of(written, "page")["studies"]
    models = {
        name: {"do": "prune", "of": "dense-standard", "by": "prune.E"}
        for name in ("E-standard", "SAP-standard")
    }
    check_studies(settings(studies, models=models))
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(KINDS)


def test_time_measures_a_run_for_its_report(here, run):  # noqa: F811
    change(Path(), {"models": {}, "recipes": {"standard": {"method": "standard"}}})
    write_card(here, image_shape=(1, 8, 8))
    _, command = shown("speed.md", "advprune")
    status, out, err = run(*command, "--batch", 8)
    assert status == 0 and out.splitlines()[-1] == "timings/digits.csv", err
    assert pd.read_csv("timings/digits.csv").batch.tolist() == [1, 8]
