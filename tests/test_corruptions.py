"""Common corruptions, speed and size: by hand, as studies, in the report and on pages."""

import re
import time
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from handmade import N, model, settings
from masked import Around
from PIL import Image
from planted import whole as run_of
from scipy.ndimage import gaussian_filter
from scipy.stats import ttest_rel
from sklearn.datasets import load_digits
from test_cli import folder, here  # noqa: F401 (fixtures)
from test_studies import records, study
from torch import nn
from workspace import ROOT, blocks, change

from advprune.core.errors import UserError
from advprune.core.settings import yaml_of
from advprune.evaluate import timing
from advprune.evaluate.compare import holm
from advprune.evaluate.corruptions import KINDS, SEVERITIES, Shares, compare_shares, corrupt, shares
from advprune.models.card import write_card
from advprune.report.results import results
from advprune.report.section import sections
from advprune.report.sections import corruptions as shown
from advprune.report.sections.speed import TIMINGS
from advprune.report.tables import rated
from advprune.studies import check_studies

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 48, 36), (3, 96, 112)]


def pictures(shape, n=3, seed=0):
    """Smooth pictures of strokes, as photographs and digits are, not noise."""
    random = np.random.default_rng(seed).random((n, *shape))
    smooth = gaussian_filter(random, (0, 0, shape[-2] / 10, shape[-1] / 10))
    low, high = (edge(smooth, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    return np.rint(255 * (smooth - low) / (high - low)).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_change_alone_and_more_with_severity(kind):
    for shape in SHAPES:
        images = pictures(shape)
        found = [corrupt(images, kind, severity, seed=1) for severity in (0, *SEVERITIES)]
        assert all(one.dtype == np.uint8 and one.shape == images.shape for one in found)
        changes = [np.abs(one.astype(float) - images).mean() for one in found]
        assert changes[0] == 0 < changes[-1] and found[0] is not images
        if shape == (3, 32, 32):  # of other sizes, some are as one
            assert changes == sorted(changes) and changes[-1] > changes[1]
        assert (corrupt(images[[2, 0]], kind, 5, seed=1) == found[5][[2, 0]]).all()
        is_random = "noise" in kind or kind == "motion_blur"
        assert (corrupt(images, kind, 5, seed=2) != found[5]).any() == is_random


def test_noise_has_its_variance():
    grey = np.full((30, 1, 32, 32), 102, dtype=np.uint8)
    grey += np.arange(30, dtype=np.uint8)[:, None, None, None]  # images differ, and so does noise
    level = grey / 255
    for kind, expected in (
        ("gaussian_noise", 0.04),
        ("shot_noise", np.sqrt(level.mean() / 500)),
        ("speckle_noise", 0.06 * np.sqrt((level**2).mean())),
    ):
        found = (corrupt(grey, kind, 1) / 255 - level).std()
        assert found == pytest.approx(expected, rel=0.03), kind
    odd = corrupt(np.full((1, 3, 224, 224), 128, dtype=np.uint8), "impulse_noise", 5)
    assert (odd != 128).mean() == pytest.approx(0.27, abs=0.01)
    assert (odd == 255).mean() == pytest.approx(0.135, abs=0.01) and set(odd.flat) == {0, 128, 255}


def test_jpeg_and_pixelate_are_pillows_own():
    def read(picture, quality):
        file = BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    for shape, quality, share in (((3, 32, 32), 50, 0.75), ((3, 224, 224), 10, 0.3)):
        image = pictures(shape, n=1)
        colours = Image.fromarray(image[0].transpose(1, 2, 0))
        expected = read(colours, quality).transpose(2, 0, 1)
        assert (corrupt(image, "jpeg", 4)[0] == expected).all()
        side = int(shape[1] * share)
        small = colours.resize((side, side), Image.Resampling.BOX)
        large = np.asarray(small.resize(shape[1:], Image.Resampling.BOX)).transpose(2, 0, 1)
        difference = np.abs(corrupt(image, "pixelate", 4)[0].astype(int) - large)
        assert difference.max() <= 1  # Pillow rounds to 8 bits in between
    grey = pictures((1, 8, 8), n=1)
    assert (corrupt(grey, "jpeg", 5)[0, 0] == read(Image.fromarray(grey[0, 0]), 40)).all()


def test_blurs_keep_flat_images_and_the_mass_of_a_point():
    flat = np.full((1, 3, 32, 32), 77, dtype=np.uint8)
    point = np.zeros((1, 1, 65, 65), dtype=np.uint8)
    point[0, 0, 32, 32] = 255
    for kind in ("gaussian_blur", "defocus_blur", "motion_blur", "zoom_blur"):
        assert (corrupt(flat, kind, 5) == 77).all(), kind
    strength = KINDS["gaussian_blur"].strength(5, 65)
    assert strength == pytest.approx(65 / 32)
    found = corrupt(point, "gaussian_blur", 5)[0, 0] / 255
    assert found[32, 32] == pytest.approx(1 / (2 * np.pi * strength**2), rel=0.1)
    assert found.sum() == pytest.approx(1, abs=0.2)
    motion = corrupt(point, "motion_blur", 5)[0, 0]
    assert (motion[:, 33:] == 0).all() or (motion[:, :32] == 0).all()  # to one side alone


def test_brightness_keeps_hue_and_saturation_and_contrast_the_mean():
    image = np.array([60, 30, 15], dtype=np.uint8).reshape(1, 3, 1, 1).repeat(32, 2).repeat(32, 3)
    raised = corrupt(image, "brightness", 2)[0, :, 0, 0]  # the value from 60 to 60 + 25.5
    assert raised.tolist() == [86, 43, 21]
    assert (corrupt(np.zeros_like(image), "brightness", 2) == 26).all()  # black becomes grey
    two = np.zeros((1, 1, 32, 32), dtype=np.uint8)
    two[..., :16] = 200
    assert set(np.unique(corrupt(two, "contrast", 2))) == {50, 150}


def test_strengths_are_those_of_the_nearer_size():
    blur, noise = KINDS["gaussian_blur"], KINDS["gaussian_noise"]
    assert [blur.strength(1, side) for side in (8, 32, 64)] == [0.4, 0.4, 0.8]
    assert blur.strength(1, 112) == 0.5 and blur.strength(5, 224) == 6
    assert noise.strength(5, 84) == 0.10 and noise.strength(5, 85) == 0.38


@pytest.mark.parametrize(("kind", "severity"), [("fog", 1), ("jpeg", 6), ("jpeg", -1)])
def test_what_is_unknown_is_refused(kind, severity):
    with pytest.raises(ValueError, match="corrupt: no"):
        corrupt(pictures((1, 8, 8)), kind, severity)
    with pytest.raises(ValueError, match="must be uint8"):
        corrupt(pictures((1, 8, 8)) / 255, "jpeg", 1)


# --- statistics ----------------------------------------------------------------------------------
TEN = frozenset((kind, 1) for kind in list(KINDS)[:10])


def test_shares_are_compared_by_the_paired_t_test():
    random = np.random.default_rng(0)
    first, second = random.integers(0, 11, (2, 60)) / 10
    test = compare_shares(Shares(first, TEN), Shares(second, TEN))
    known = ttest_rel(first, second)
    assert test.p == pytest.approx(known.pvalue)
    assert test.interval == pytest.approx(tuple(known.confidence_interval(0.95)))
    assert test.difference == pytest.approx(first.mean() - second.mean())
    table = hits({(kind, 1): N for kind in ("jpeg", "contrast")})
    jpeg, contrast = (shares(table[table.corruption == kind]) for kind in ("jpeg", "contrast"))
    with pytest.raises(ValueError, match="not of the same images"):
        compare_shares(jpeg, contrast)


def test_what_is_called_detectable_is_found_in_80_percent_of_all_cases():
    random, n = np.random.default_rng(1), 100
    changes = random.normal(size=n)
    changes = 0.2 * (changes - changes.mean()) / changes.std(ddof=1)
    base = Shares(np.full(n, 0.5), TEN)
    size = compare_shares(Shares(0.5 + changes, TEN), base).detectable
    draws = random.normal(size, 0.2, (2000, n)) + 0.5
    found = np.mean([compare_shares(Shares(one, TEN), base).p < 0.05 for one in draws])
    assert found == pytest.approx(0.8, abs=0.04)


# --- the study and its section -------------------------------------------------------------------
def studied(of="dense-standard", **more):
    return {"study": "corruptions", "of": of, **more}


def test_a_study_records_every_image_under_every_corruption(network, digits, tmp_path):
    kinds = ["gaussian_noise", "contrast"]
    given = study(studied(kinds=kinds), network, {"train": digits, "test": digits}, tmp_path)
    table, test = records(given), given.splits["test"]
    sizes = table.groupby(["corruption", "severity"]).size()
    assert len(sizes) == 2 * len(SEVERITIES) and (sizes == len(test.labels)).all()
    own = table[(table.corruption == "contrast") & (table.severity == 4)]
    images = corrupt(test.images.numpy(), "contrast", 4, given.params.seed)
    expected = network(torch.from_numpy(images) / 255).argmax(1)
    assert own.adv_pred.tolist() == expected.tolist()
    assert own.clean_pred.tolist() == network(digits[0]).argmax(1).tolist()


def test_studies_that_compare_nothing_or_name_no_corruption_are_refused():
    pair = studied("E-standard", kinds=["contrast", "jpeg"])
    unlike = r"studies.two.kinds: all models need .* those of one"
    for studies, words in (
        ({"corruptions-E": studied("E-standard")}, "dense-standard, which needs an entry too"),
        ({"corruptions": studied(kinds=["rain"])}, "there is no 'rain'"),
        ({"one": studied(kinds=["contrast", "pixelate"]), "two": pair}, unlike),
    ):
        with pytest.raises(UserError, match=words):
            check_studies(settings(studies))
    check_studies(settings({"one": studied(), "two": studied("E-standard")}))


def hits(right):
    """So many first images are right under each corruption and severity; all are when clean."""
    tables = [
        pd.DataFrame({"index": range(N), "label": 0, "clean_pred": 0}).assign(
            adv_pred=(np.arange(N) >= k).astype(int), corruption=kind, severity=severity
        )
        for (kind, severity), k in right.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_the_section_by_hand():
    """At each severity the dense network loses 2 images more; E 4 under noise alone."""
    names = ("dense-standard", "E-standard", "clamp-standard")
    params = settings({name: studied(name) for name in names})
    lost = {"dense-standard": (2, 2), "E-standard": (4, 2), "clamp-standard": (2, 2)}
    records = {
        name: hits(
            {
                (kind, severity): N - each * severity
                for kind, each in zip(("jpeg", "contrast"), lost[name], strict=True)
                for severity in SEVERITIES
            }
        )
        for name in names
    }
    sent = {("dense-standard", "field"): N}
    models = [model(name, params, {}, sent) for name in names]
    run, plain = run_of(models, params, records), run_of(models, params)
    table = shown.by_severity(run, shown.records_of(run)).set_index("model")
    row = table.loc["E-standard"]
    assert row["accuracy:severity 2"] == pytest.approx(1 - (8 + 4) / 2 / N)
    assert row.mean_accuracy == pytest.approx(1 - (12 + 6) / 2 / N) and row.clean_accuracy == 1
    assert row.difference == pytest.approx(-3 / N) and row.outcome == "lower"
    assert table.loc["clamp-standard"].p == 1 and pd.isna(table.loc["dense-standard"].p)
    values = [shares(records[name]).values for name in names]
    p = [float(ttest_rel(values[1], values[0]).pvalue), 1.0]
    assert row.p == pytest.approx(holm(p)[0])
    kinds = shown.by_kind(run, shown.records_of(run), ["jpeg", "contrast"])
    found = kinds.set_index(["model", "corruption"])
    assert found.difference["E-standard", "jpeg"] == pytest.approx(-6 / N)
    assert found.p["E-standard", "contrast"] == 1
    curve = shown.over_severity(shown.records_of(run))
    assert curve[curve.model == "dense-standard"].accuracy.tolist() == pytest.approx(
        [1 - 2 * severity / N for severity in (0, *SEVERITIES)]
    )
    # The worst case knows nothing of corruptions; without records the section says nothing.
    pd.testing.assert_frame_equal(results(run), results(plain))
    (one,) = [one for one in sections() if one.id == "corruptions"]
    assert len(one.parts(run)) == 2 and one.parts(plain) == []


# --- speed and size -------------------------------------------------------------------------------
CARD = {"macs": 10, "nonzero": 5, "file_bytes": 400}


def slow(seconds, sizes):
    """Sleeps for each image, and notes how many it is given."""

    def delayed(x):
        time.sleep(seconds * len(x))
        sizes.append(len(x))
        return x

    return Around(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), images=delayed).eval()


def test_latency_is_the_median_of_calls_in_turns(monkeypatch):
    monkeypatch.setattr(timing, "CALLS", 6)
    images, seconds, sizes = torch.rand(3, 1, 2, 2), {"fast": 0.0, "slow": 0.02}, list[int]()
    given = {name: (slow(each, sizes), CARD) for name, each in seconds.items()}
    found = timing.timings(given, images, 4).set_index(["model", "batch"])
    assert list(found.index) == [("fast", 1), ("slow", 1), ("fast", 4), ("slow", 4)]
    for (name, batch), row in found.iterrows():
        assert batch * seconds[name] <= row.latency_low <= row.latency <= row.latency_high
    assert found.latency["fast", 1] < found.latency["slow", 1] < found.latency["slow", 4]
    assert (found.calls == 6).all() and (found.macs == 10).all()
    assert (found.threads == torch.get_num_threads()).all() and found.processor.str.len().all()
    assert sizes[-9:] == [4] * 9  # images are repeated where there are too few
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    found = timing.timings({"one": (slow(0.0, []), CARD)}, torch.rand(2, 1, 2, 2), 2)
    assert (found.calls == 5).all()


def test_the_section_is_there_only_where_times_were_measured(tmp_path):
    params = settings()
    sent, names = {("dense-standard", "field"): N}, ("dense-standard", "E-standard")
    models = [model(name, params, {}, sent) for name in names]
    whole = replace(run_of(models, params), folder=tmp_path)
    (section,) = [one for one in sections() if one.id == "speed"]
    assert section.parts(whole) == []
    rows = [
        {"model": name, "batch": batch, "latency": 0.001 * batch, "latency_low": 0.0009 * batch}
        | {"latency_high": 0.002 * batch, "calls": 50, **CARD, "processor": "P", "threads": 2}
        for name in names
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
        with pytest.raises(UserError, match=r"digits.csv is damaged; run `advprune time`"):
            section.parts(whole)
    assert not results(whole).columns.str.contains("latency").any()  # nor does a gate know it


def commands_of(page, start):
    """The commands of a page that begin so, as words."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return [line.split()[1:] for line in re.findall(rf"^{start}.*$", text, re.MULTILINE)]


@pytest.mark.usefixtures("short_attacks")
def test_the_pages_commands_add_corruptions_and_times(here, run, tmp_path, monkeypatch):  # noqa: F811
    model = here.read_bytes()
    monkeypatch.chdir(tmp_path)
    for name in ("net.safetensors", "dense.safetensors"):
        Path(name).write_bytes(model)
    for number, image in enumerate(load_digits().images[:10]):  # one of each class
        Path(f"pictures/{number}").mkdir(parents=True)
        Image.fromarray((15 * image).astype("uint8")).save(f"pictures/{number}/0.png")
    (corruptions,) = commands_of("corruptions.md", "advprune")
    time, _ = commands_of("speed.md", "advprune")
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
    (code,), (written,) = (blocks("corruptions.md", kind) for kind in ("python", "yaml"))
    names = {}
    exec(code, names)
    assert names["blurred"].shape == names["images"].shape
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
    _, command = commands_of("speed.md", "advprune")
    status, out, err = run(*command, "--batch", 8)
    assert status == 0 and out.splitlines()[-1] == "timings/digits.csv", err
    assert pd.read_csv("timings/digits.csv").batch.tolist() == [1, 8]


def test_shares_of_one_image_show_nothing_and_of_other_images_are_refused():
    one = compare_shares(Shares(np.array([1.0]), TEN), Shares(np.array([0.5]), TEN))
    assert one.p == 1 and one.outcome == "not significant" and np.isinf(one.detectable)
    assert tuple(rated("accuracy", Shares(np.array([0.5]), TEN).mean).values()) == (0.5, 0, 1)
    first, second = np.random.default_rng(0).random((2, 60))
    for other in (Shares(second, TEN - {min(TEN)}), Shares(second[:5], TEN)):
        with pytest.raises(ValueError, match="not of the same images"):
            compare_shares(Shares(first, TEN), other)
