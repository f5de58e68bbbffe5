"""weights/: networks that are whole, sound and as accurate as stated."""

import json
import re
import runpy
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from test_docs import rerun_here
from torch import nn
from workspace import ROOT

from advprune.core.params import load
from advprune.core.train_settings import RecipeSettings, TrainSettings
from advprune.data import prepare, read_split, to_float
from advprune.evaluate.means import mean
from advprune.evaluate.robust import ROUNDING
from advprune.models.audit import audit
from advprune.models.checkpoint import header_spec, load_model, read_tensors
from advprune.pruning import setting_of

EXPORTED = sorted((ROOT / "weights").glob("*/*.safetensors"))
ATTACKED = sorted({path.parent for path in (ROOT / "weights").glob("*/*.records.parquet")})
W32 = ROOT / "weights" / "cifar10-w32"
EPS = 8 / 255
# Rounded to 16 bits, logits move by some thousandths: an image whose two best classes are closer
# than that may fall on the other side. More than one of 300 would be another network.
TOLERANCE = 1


def metrics_of(path):
    """The committed metrics of the network that a file was exported from."""
    return ROOT / "metrics" / path.parent.name / f"{path.name.partition('.')[0]}.json"


@pytest.fixture(scope="module")
def images():
    """The digits profile's test images and labels, made from the embedded data set."""
    params = load(ROOT / "params.yaml", profile="digits")
    split = prepare(params.active().data, params.seed)["test"]
    return to_float(split.images), split.labels


def test_the_networks_that_results_rest_on_are_there():
    names = {path.name.partition(".")[0] for path in EXPORTED if path.parent.name == "digits"}
    assert names >= {"dense-standard", "dense-robust", "RA_BNN-standard", "HYDRA-robust"}


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_an_exported_network_is_small_and_sound(path):
    tensors, metadata = read_tensors(path)
    spec = header_spec(metadata, where=path.name)
    found = audit(tensors, spec)
    assert found.sound and found.source == "header", found.faults
    assert path.stat().st_size < 6_000_000
    floating = {t.dtype for t in tensors.values() if t.is_floating_point()}
    assert floating == {torch.float16 if ".fp16." in path.name else torch.float32}
    assert all(p.dtype == torch.float32 for p in load_model(path).parameters())


@pytest.mark.skipif(rerun_here(), reason="metrics/ was made anew on this machine")
@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.name)
def test_it_is_as_accurate_as_the_committed_metrics_say(path, images):
    if path.parent.name != "digits" or not metrics_of(path).is_file():
        pytest.skip("its images or its metrics are not in the repository")
    recorded = json.loads(metrics_of(path).read_text(encoding="utf-8"))
    with torch.no_grad():
        right = int((load_model(path)(images[0]).argmax(1) == images[1]).sum())
    assert recorded["n"] == len(images[1])
    assert abs(right - round(recorded["n"] * recorded["clean_accuracy"])) <= TOLERANCE


@cache
def attacked(folder):
    """Per network, the records of each attack; `clean` are unchanged images."""
    found = {}
    for path in folder.glob("*.records.parquet"):
        records = pd.read_parquet(path)
        if "network" not in records:
            records["network"] = path.name.partition(".")[0]
        for name, own in records.groupby("network", observed=True):
            by = {a: rows.set_index("index") for a, rows in own.groupby("attack", observed=True)}
            by["clean"] = by["apgd_ce"].assign(adv_pred=by["apgd_ce"].clean_pred, linf=0.0)
            found[name] = by
    return found


def robust(attacks, *names):
    """Which images none of these attacks breaks within 8/255; one may be of some images only."""
    unbroken = pd.Series(True, index=attacks["clean"].index)
    for name in names:
        rows = attacks[name]
        broken = (rows.adv_pred != rows.label) & (rows.linf <= EPS + ROUNDING)
        unbroken[rows.index] &= ~broken
    return unbroken


COLUMNS = {
    "clean": ["clean"],
    "PGD-50, margin": ["pgd_50_margin"],
    "APGD-CE": ["apgd_ce"],
    "APGD-CE and minimum-norm": ["apgd_ce", "minimum_norm_linf"],
    "APGD-CE and APGD-T": ["apgd_ce", "apgd_targeted"],
    "all three": ["apgd_ce", "apgd_targeted", "minimum_norm_linf"],
}


def figures(attacks):
    """What a README says of a network, from the records of `bench/reference.py`."""
    cells = {
        f"{title} %": f"{100 * robust(attacks, *names).mean():.2f}"
        for title, names in COLUMNS.items()
        if attacks.keys() >= set(names)
    }
    if "apgd_targeted" in attacks:
        left = robust(attacks, *COLUMNS["APGD-CE and APGD-T"])
        cells["of the first 1,000"] = str(left[:1000].sum())
    if (rows := attacks.get("minimum_norm_linf")) is not None:
        distances = rows.linf.where(rows.adv_pred != rows.label, np.inf)
        cells["median Linf distance /255"] = f"{255 * distances.median():.2f}"
        cells["no distance found"] = str(np.isinf(distances).sum())
    if (rows := attacks.get("minimum_norm_l2")) is not None:
        distances = rows.l2.where(rows.adv_pred != rows.label, np.inf)
        cells["median L2 distance"] = f"{distances.median():.3f}"
    return cells


def tables(page, corner):
    """Tables whose first title is `corner`: per row, its cells by their titles."""
    found = []
    for block in page.read_text(encoding="utf-8").split("\n\n"):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        if rows and rows[0][:1] == [corner]:
            body = {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
            found.append(body)
    return found


@pytest.mark.parametrize("folder", ATTACKED, ids=lambda path: path.name)
def test_a_readme_says_what_the_records_of_ten_thousand_images_say(folder):
    known, shown = attacked(folder), tables(folder / "README.md", "network")
    assert {name for table in shown for name in table} == set(known)
    for table in shown:
        for name, cells in table.items():
            assert cells == {title: figures(known[name]).get(title, "–") for title in cells}, name
    for attacks in known.values():
        assert set(attacks["apgd_ce"].index) == set(range(10_000))
        for name, rows in attacks.items():
            assert rows.index.is_unique and (name == "apgd_targeted" or len(rows) == 10_000)
            assert name.startswith("minimum_norm") or rows.linf.max() <= EPS + ROUNDING


def test_hydra_and_lwm_differ_as_the_readme_says_over_seeds_and_images():
    known = attacked(W32)
    ((table),) = tables(W32 / "README.md", "HYDRA minus LWM")
    assert set(table) == {"95 %", "99 %"}
    page = (ROOT / "docs" / "published.md").read_text(encoding="utf-8")
    row = r"\| {}, {} +\| robust ([\d.]+) % \(VGG-16\), ([\d.]+) % \(WRN-28-4\) \|"
    for sparsity, cells in table.items():
        published = [re.search(row.format(name, sparsity), page) for name in ("HYDRA", "LWM")]
        gaps = [float(published[0][i]) - float(published[1][i]) for i in (1, 2)]
        assert cells.pop("published") == f"{gaps[0]:+.1f} and {gaps[1]:+.1f}"
        for title, cell in cells.items():
            column, _, seeds = title.partition(", seed")
            names = COLUMNS[column]
            pairs = [
                [known[f"{family}-{sparsity[:2]}-seed{seed}"] for family in ("HYDRA", "LWM")]
                for seed in range(3)
            ]
            ours = [pair for pair in pairs if all(one.keys() >= set(names) for one in pair)]
            assert seeds == {1: " 0", 2: "s 0 and 1", 3: "s 0 to 2"}[len(ours)]
            rows = [robust(a, *names).astype(float) - robust(b, *names) for a, b in ours]
            found = mean(100 * np.stack(rows))
            low, high = found.interval
            assert cell == f"{found.value:+.2f} ({low:.2f} to {high:.2f})"
            assert low > 0 and min(row.mean() for row in rows) > 0
            assert column != "APGD-CE" or high < min(gaps)


def difference(first, second):
    """Of shares of the same images in points, with a 95 % interval."""
    found = mean(100 * (first.astype(float).to_numpy() - second.to_numpy())[None])
    low, high = found.interval
    return f"{found.value:+.2f} ({low:.2f} to {high:.2f})"


def test_the_suite_at_width_32_is_what_its_records_say():
    records = pd.read_parquet(W32 / "suite.parquet")
    by_model = records.groupby("model", observed=True)
    models = {name: rows.set_index("index") for name, rows in by_model}
    ((shown),) = tables(W32 / "README.md", "model")
    assert set(shown) == set(models)
    reported = pd.read_csv(ROOT / "reports" / "cifar10-w32" / "results.csv").set_index("model")
    for name, rows in models.items():
        clean, ce = (rows[column] == rows.label for column in ("clean_pred", "apgd_ce"))
        both, parent = ce & (rows.apgd_t == rows.label), models["dense-robust"]
        own = {
            "clean %": f"{100 * clean.mean():.2f}",
            "APGD-CE %": f"{100 * ce.mean():.2f}",
            "APGD-CE and APGD-T %": f"{100 * both.mean():.2f}",
            "robust %": f"{100 * rows.robust.mean():.2f}",
            "median distance /255": f"{255 * rows.distance.median():.2f}",
            "clean % minus parent": difference(clean, parent.clean_pred == parent.label),
            "robust % minus parent": difference(rows.robust, parent.robust),
        }
        if name.startswith("dense"):
            own |= {key: "–" for key in own if key.endswith("parent")}
        assert shown[name] == own, name
        assert rows.index.tolist() == [*range(10_000)] and not (rows.robust & ~both).any()
        assert (rows.robust <= (rows.probe_stronger == rows.label)).all()
        assert reported.robust_accuracy[name] == pytest.approx(rows.robust.mean())
        assert reported.clean_accuracy[name] == pytest.approx(clean.mean())


@pytest.mark.parametrize("path", sorted(W32.glob("*-seed0.fp16.*")), ids=lambda path: path.name)
def test_each_layer_of_a_pruned_network_has_the_share_of_zeros_that_its_name_says(path):
    share = int(path.name.split("-")[1]) / 100
    layers = [m for m in load_model(path).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 21
    for layer in layers:
        more = int((layer.weight == 0).sum()) - int(share * layer.weight.numel())
        assert 0 <= more < 10  # a few weights are too small for 16 bits


def test_images_attacked_on_another_machine_score_as_the_records_say():
    split = read_split(Path(__file__).parent / "attacked-cifar10.safetensors")
    with torch.no_grad():
        found = load_model(W32 / "HYDRA-99-seed0.fp16.safetensors")(to_float(split.images))
    clean, adversarial = found.argmax(1).chunk(2)  # images 0 to 23, and what APGD-CE made of them
    rows = attacked(W32)["HYDRA-99-seed0"]["apgd_ce"].sort_index()[: len(clean)]
    assert rows.label.tolist() == split.labels[: len(clean)].tolist()
    assert clean.tolist() == rows.clean_pred.tolist()
    assert (adversarial.numpy() != rows.adv_pred).sum() <= TOLERANCE
    before, after = split.images.int().chunk(2)
    assert (after - before).abs().max() == 8
    suite = pd.read_parquet(W32 / "suite.parquet").set_index("model")
    for name in ("dense-robust", "dense-standard", "HYDRA_95-robust"):
        file = {"HYDRA_95-robust": "HYDRA-95-seed0"}.get(name, name)
        with torch.no_grad():
            said = load_model(W32 / f"{file}.fp16.safetensors")(to_float(before.byte())).argmax(1)
        assert said.tolist() == suite.loc[name].clean_pred[: len(before)].tolist()


@pytest.mark.parametrize("folder", ATTACKED, ids=lambda path: path.name)
def test_the_commands_of_a_readme_are_made_of_settings_that_exist(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python bench/reference.py (?:.*\\\n)*.*$", text, re.MULTILINE)
    assert lines
    for line in lines:
        words = shlex.split(line.replace("\\\n", " "))
        options = dict(zip(words[4::2], words[5::2], strict=True))
        read = {
            key: YAML(typ="safe").load(options.get(f"--{key}", "{}"))
            for key in ("train", "recipe", "family")
        }
        TrainSettings(**read["train"])
        RecipeSettings(**read["recipe"])
        for name, setting in read["family"].items():
            setting_of(name, setting, place=name)


def test_claims_on_reference_networks_are_judged_as_committed(tmp_path):
    place = tmp_path / W32.name
    place.mkdir()
    for name in ("pruned.records.parquet", "pruned.notes.json", "dense-robust.fp16.safetensors"):
        (place / name).symlink_to(W32 / name)
    runpy.run_path(str(ROOT / "bench" / "claims.py"))["main"](place)
    found, committed = (pd.read_csv(folder / "claims.csv") for folder in (place, W32))
    pd.testing.assert_frame_equal(found, committed, rtol=1e-6)
    attacks = attacked(W32)
    for percent in (95, 99):  # the mean over seeds of the records' own share
        hydra, lwm = (
            np.mean([robust(attacks[f"{f}-{percent}-seed{k}"], "apgd_ce").mean() for k in range(3)])
            for f in ("HYDRA", "LWM")
        )
        row = found.set_index("id").loc[f"hydra-{percent}"]
        assert row.difference == pytest.approx(hydra - lwm)
        assert row.outcome == "reproduced" and row.seeds == 3 and row.n == 10_000
