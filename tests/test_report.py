"""The framework of the report on planted runs: every number has a cause that was put there."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from planted import N, model, planted, point, record, rows, run_of, searched, settings, swept_on
from ruamel.yaml import YAML
from workspace import ROOT

from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.evaluate.statistics import Rate
from advprune.report import formats
from advprune.report import page as page_module
from advprune.report.chart import COLOURS, Chart, panels
from advprune.report.chart_png import png
from advprune.report.page import charts, grid, markdown_table
from advprune.report.read import read_run
from advprune.report.results import DVC_METRICS, results
from advprune.report.revision import revision_of
from advprune.report.section import Part, sections
from advprune.report.sections.leaderboard import leaderboard
from advprune.report.sections.sweep import sweep, table_of
from advprune.report.sections.verdict import CALIBRATION, calibration, verdict
from advprune.report.terminal import leaderboard as terminal
from advprune.report.terminal import read
from advprune.report.write import write_metrics, write_report


# --- formats -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (formats.budget, 8 / 255, "8/255"),
        (formats.budget, 1.6 / 255, "1.6/255"),
        (formats.budget, 0.03, "0.03"),
        (formats.budget, 0.0, "0"),
        (formats.kind_of("a_difference").text, -0.0004, "+0.0"),
        (formats.percent, 0.0, "0.0"),
        (formats.percent, 0.0004, "0.04"),  # not 0.0: 4 of 10,000
        (formats.percent, 0.99951, "99.95"),
        (formats.percent, 1 - 1e-6, "99.9999"),
        (formats.percent, 1e-12, "0.0"),
        (formats.rate_text, Rate(0, 10_000), "0.0 % (0.0–0.04)"),
        (formats.rate_text, Rate(10_000, 10_000), "100.0 % (99.96–100.0)"),
        (formats.p_value, 0.0004, "< 0.001"),
        (formats.p_value, 0.0312, "0.031"),
        (formats.p_value, 0.25, "0.25"),
        (formats.number, {"E": 0.01, "gate": None}, "E 0.01, gate –"),
        (
            formats.number,
            {"sparsity": 0.9, "train": {"lr": 0.1, "epochs": 3}, "more": {}},
            "sparsity 0.9, train (lr 0.1, epochs 3), more –",
        ),
        (formats.number, True, "yes"),
        (formats.number, 176258, "176,258"),
        (formats.number, float("nan"), "–"),
        (formats.listed, ["a", "b", "c"], "a, b and c"),
        (formats.markdown, "a|b <i> *c*\n", "a\\|b &lt;i&gt; \\*c\\* "),
    ],
)
def test_values_read_as_people_write_them(function, value, text):
    assert function(value) == text


def test_the_name_of_a_column_says_how_it_reads():
    row = {"model": "A"} | formats.with_interval("robust_accuracy", 0.54, 0.501, 0.579)
    row |= formats.with_interval("accuracy:PGD", 0.25, 0.125, 0.5)
    row |= {"robust_difference": -0.032, "p_against_dense": 0.0001, "flips_to_chance": 20.25}
    row |= {"parameters": 1234567, "ece": 0.1234, "sparsity": None, "median_distance": 1.2 / 255}
    assert formats.texts(pd.DataFrame([row])).iloc[0].tolist() == [
        *("A", "54.0 (50.1–57.9)", "25.0 (12.5–50.0)", "-3.2", "< 0.001"),
        *("20.2", "1,234,567", "0.123", "–", "1.20"),
    ]
    assert [
        formats.heading(name) for name in ("robust_accuracy", "accuracy:PGD", "p_against_dense")
    ] == [*("robust %", "PGD %", "p")]
    assert formats.heading("an_unknown_rate") == "an unknown rate %"


def test_a_table_is_shown_without_columns_that_say_nothing():
    table = pd.DataFrame({"model": ["A", "B"], "bits": [8, 32], "ece": [None, None]})
    columns, rows = grid(table)
    assert [column.name for column in columns] == ["model", "bits"]
    assert [[value for _, value in row] for row in rows] == [["A", 8.0], ["B", 32.0]]
    assert str(markdown_table(table.assign(model=["a|b", "<b>"]))).count("\\|") == 1


def test_a_command_can_be_copied_from_markdown_and_page():
    table = pd.DataFrame({"model": ["A"], "regime": ["n < 9"], "command": ["a && b | c `d`"]})
    assert "n &lt; 9 | `a && b \\| c 'd'` |" in str(markdown_table(table))
    found = [page_module.Shown("claims", "Claims", [Part("Claims", table=table)])]
    whole = run_of(model("dense"))
    shown = page_module.html(whole, found)
    assert '<td>n &lt; 9</td><td class="code">a &amp;&amp; b | c `d`</td>' in shown


# --- results -------------------------------------------------------------------------------------
def test_results_by_hand():
    whole = run_of(model("dense", (20, 20, 20)), model("A"), model("B", (17, 20, 20)))
    table = results(whole).set_index("model")
    dense, a, b = (table.loc[f"{name}-standard"] for name in ("dense", "A", "B"))
    # 20 of 40, Wilson with z = 1.96: 0.5 +- 1.96 sqrt(0.25/40 + 1.96^2/(4 40^2)) / (1 + 1.96^2/40)
    ends = [dense[f"robust_accuracy{end}"] for end in ("", "_low", "_high")]
    assert ends == [0.5, 0.351995, 0.648005]
    assert pd.isna(dense.against_dense) and pd.isna(dense.p_against_dense)
    # 16 images lost and none won: p = 2 * 2 / 2^16; 3 lost and none won: p = 2 / 2^3
    assert (a.against_dense, a.p_against_dense, a.robust_difference) == ("lower", 6.1e-05, -0.4)
    assert (b.against_dense, b.p_against_dense) == ("not significant", 0.25)
    assert (a.transfer_accuracy, a.prediction_change_rate, a.attack_success_rate) == (0.1, 0.9, 0.9)
    # confidence 0.75, always right when clean, right in 10 % under attack
    assert (a.ece, a.ece_attacked) == (0.25, 0.65)
    # main, short, long: 10 + 10 + 40 gradients; curves: 4 * 10 and 1 + 5 + 50; twice as many
    # forwards, and 600 of square
    assert (a.gradients, a.forwards) == (156.0, 912.0)
    assert a["accuracy:short"] == 0.5 and a["accuracy:square"] == 0.1


def test_randomized_models_are_scored_in_three_ways():
    """Wrong in half of the draws everywhere: no image is broken by the rule of 9 of 10."""
    unsure = rows("main", planted(4), adv_wrong=0.5, adv_single_pred=np.arange(N) % 4)
    plain = model("A")
    tables = [unsure, plain.records[N:], rows("probe_frozen", planted(4))]
    whole = run_of(replace(plain, records=pd.concat(tables, ignore_index=True)))
    row = results(whole).iloc[1]
    rates = (row.robust_accuracy, row.robust_accuracy_single_draw, row.robust_accuracy_9_of_10)
    assert rates == (0.1, 1.0, 1.0)
    last = list(leaderboard(whole))[-1]
    assert last.table is not None and last.table["robust_accuracy:single draw"].tolist()[1] == 1.0
    assert "9 of 10 draws" in last.text


def test_metrics_are_ten_keys_of_the_results(tmp_path):
    whole = run_of()
    write_metrics(whole, tmp_path / "metrics")
    found = json.loads((tmp_path / "metrics" / "A-standard.json").read_text())
    assert list(found) == list(DVC_METRICS) and len(found) == 10
    assert (found["robust_accuracy"], found["robust_low"]) == (0.1, 0.0396)
    assert found["flips_to_chance"] is None and found["verdict"] == "reliable"


# --- run -----------------------------------------------------------------------------------------
def test_models_are_grouped_by_network_and_by_what_was_done():
    chosen = [model("A"), model("Q", bits=8), model("N", bits=1), model("Z", sparsity=0.9)]
    robust = [model(name, base="robust") for name in ("dense", "A")]
    whole = run_of(model("dense"), *chosen, *robust)
    assert {key: " ".join(one.name for one in group) for key, group in whole.groups.items()} == {
        "standard-pruned": "dense-standard A-standard",
        "standard-quantized": "dense-standard Q-standard",
        "standard-binary": "dense-standard N-standard",
        "standard-sparse": "dense-standard Z-standard",
        "robust-pruned": "dense-robust A-robust",
    }
    assert whole.places["A-robust"] == whole.places["A-standard"] == whole.places["A"]
    assert whole.places["dense-robust"] == -1


def test_what_is_swept_is_set_beside_the_same_images():
    whole = run_of(model("A"), params=swept_on(8, settings()))
    assert whole.n == N and whole.swept.n == 8
    assert len(whole.swept.by_name["A-standard"].transferred("main")) == 8


KNOWN = {
    "recipes": {"standard": {}},
    "prune": {"A": 1, "Q": {"family": "A"}},
    "models": {
        "A-standard": {"do": "prune", "by": "prune.A", "of": "dense-standard"},
        "Q-standard": {"do": "prune", "by": "prune.Q", "of": "A-standard"},
    },
    "studies": {"sweep": {"study": "sweep", "of": "dense-standard", "points": {"A": [1, 2.0]}}},
}
DENSE = model("dense", setting={"method": "standard"})


@pytest.mark.parametrize("broken", ["records.parquet", "model.json", "layers.parquet"])
def test_missing_and_damaged_files_are_refused_with_what_to_do(tmp_path, broken):
    params = settings(recipes={"standard": {}})
    record(run_of(DENSE, params=params), tmp_path)
    place = tmp_path / "runs/digits/dense-standard"
    (place / broken).write_text("{")
    with pytest.raises(UserError, match=f"{broken}.*damaged"):
        read_run(params, tmp_path)
    (place / broken).unlink()
    with pytest.raises(UserError, match=f"{broken}.*run `dvc repro`"):
        read_run(params, tmp_path)


def test_a_partial_run_names_what_was_not_run_and_the_stage_that_makes_it(tmp_path):
    """A model is judged beside its dense network: B's records count once that one is attacked."""
    made = {"do": "prune", "by": "prune.A"}
    models = {"A-standard": {**made, "of": "dense-standard"}, "B": {**made, "of": "dense-robust"}}
    studies = {"sweep": {"study": "sweep", "of": "dense-standard"}}
    studies["flips"] = {"study": "bitflip", "of": "B"}
    params = settings(models=models, studies=studies)
    record(run_of(DENSE, params=params), tmp_path)
    record(replace(run_of(DENSE), models=[replace(model("B"), name="B", transfers={})]), tmp_path)
    (tmp_path / "records/digits/transfer.parquet").unlink(missing_ok=True)
    run = read_run(params, tmp_path)
    assert [one.name for one in run.models] == ["dense-standard"]
    assert run.absent == (
        ("model", "A-standard", "attack@A-standard"),
        ("model", "dense-robust", "attack_dense@robust"),
        ("model", "B", "attack_dense@robust"),
        ("transfer", "", "transfer"),
        ("study", "sweep", "study@sweep"),
        ("study", "flips", "attack_dense@robust"),
    )
    blocks = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {one.stage.partition("@")[0] for one in run.absent} <= set(blocks)
    write_metrics(run, tmp_path / "metrics")
    metrics = json.loads((tmp_path / "metrics/B.json").read_text())
    assert metrics == dict.fromkeys(DVC_METRICS) | {"verdict": "not run"}
    write_report(run, tmp_path / "reports/digits")
    page = (tmp_path / "reports/digits/report.md").read_text()
    assert "Partial run: 1 of 4 models and 0 of 2 studies" in page
    assert "dvc repro attack@A-standard" in page
    text = terminal("digits", folder=tmp_path / "reports")
    assert f"n = {N}" in text and "Not run: A-standard, dense-robust, B." in text
    assert set(revision_of(read("digits", tmp_path / "reports")).results) == {"dense-standard"}


def test_what_other_settings_made_is_not_reported(tmp_path, capsys):
    """A is made by prune.A: 1, Q from A; the sweep's points are 1 and 2."""
    record(run_of(DENSE, model("A"), model("Q", setting={})), tmp_path)
    (tmp_path / "records/digits/transfer.parquet").unlink()
    table = pd.concat([point(0), point(1)], ignore_index=True).assign(family="A")
    (tmp_path / "records/digits/sweep").mkdir()
    table.to_parquet(tmp_path / "records/digits/sweep/records.parquet")

    def names(**changes):
        run = read_run(settings(**KNOWN | changes), tmp_path)
        lacking = [one.name for one in run.absent if one.kind != "transfer"]
        assert capsys.readouterr().err == (
            f"left out, as made by other settings: {', '.join(lacking)}\n" if lacking else ""
        )
        return lacking

    assert names() == []
    assert names(prune=KNOWN["prune"] | {"A": 1.5}) == ["A-standard", "Q-standard"]
    sweep = KNOWN["studies"]["sweep"] | {"points": {"A": [1, 3]}}
    assert names(studies={"sweep": sweep}) == ["sweep"]
    noted = tmp_path / "data/digits/attacks.json"
    noted.write_text(json.dumps(settings(**KNOWN).attacks_in_force()))
    assert names() == []
    own = settings().model_dump(exclude_unset=True)
    with pytest.raises(UserError, match="holds other attacks than the settings; run"):
        names(suite=own["suite"] | {"binary": []})
    noted.unlink()
    faster = own["attacks"] | {"main": own["attacks"]["main"] | {"steps": 20}}
    with pytest.raises(UserError, match="other settings made dense-standard, A-standard, Q-stand"):
        names(attacks=faster)
    with pytest.raises(UserError, match="; other settings made dense-standard"):
        names(recipes={"standard": {"method": "pgd"}})


# --- charts --------------------------------------------------------------------------------------
def line(**more):
    """Two models over two budgets."""
    table = {"model": ["dense-standard", "A-standard"] * 2, "eps": [0.0, 0.0, 8 / 255, 8 / 255]}
    data = pd.DataFrame(
        table | formats.with_interval("robust_accuracy", [0.9, 0.8, 0.4, 0.3], 0.1, 0.95)
    )
    known = {"series": "model", "interval": True, "ordered": True}
    return Chart("c", "line", data, "eps", "robust_accuracy", **(known | more))


def test_charts_are_drawn_in_the_units_of_their_columns():
    (panel,) = panels(line(), {"dense-standard": -1, "A-standard": 3})
    assert panel.ticks == ["0", "8/255"] and line().labels == ("eps", "robust %")
    dense, a = panel.series
    assert (dense.name, dense.place, a.place) == ("dense-standard", -1, 3)
    assert dense.data.y.tolist() == [90.0, 40.0] and dense.data.high.tolist() == [95.0, 95.0]
    assert a.data.words.iloc[1] == "A-standard, eps 8/255, robust % 30.0 (10.0–95.0)"
    part = Part("P", chart=line())
    with pytest.raises(ValueError, match="two charts are called 'c'"):
        charts([page_module.Shown("s", "S", [part, part])])


def test_png_are_the_same_bytes_and_show_the_colours_of_their_series():
    places = {"dense-standard": -1, "A-standard": 1}
    first = png(line(), places)
    assert first == png(line(), places)
    wanted = np.array([int(COLOURS[1][at : at + 2], 16) for at in (1, 3, 5)])
    drawn = np.asarray(Image.open(BytesIO(first)).convert("RGB")).astype(int)
    assert (np.abs(drawn - wanted).max(2) < 24).any()
    heat = pd.DataFrame({"x": list("ab"), "y": list("aa"), "transfer_accuracy": [0.0, 1.0]})
    assert png(Chart("h", "heatmap", heat, "x", "y", value="transfer_accuracy"), {})
    spots = line(ordered=False, marker="model", size="robust_accuracy_low")
    spots = replace(spots, kind="points")
    assert png(spots, places) != png(replace(spots, label="model"), places)  # written beside them
    pixels = [np.full((1, 4, 4), 7, np.uint8), np.full((3, 4, 4), 9, np.uint8)]
    images = pd.DataFrame({"image": [1, 2], "row": ["clean"] * 2, "pixels": pixels})
    assert png(Chart("i", "images", images, "image", "row", value="pixels"), {})


# --- sections ------------------------------------------------------------------------------------
def test_sections_are_found_in_their_folder_in_order():
    found = sections()
    folder = Path(page_module.__file__).parent / "sections"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {one.id for one in found} == files
    assert [one.order for one in found] == sorted(one.order for one in found)
    assert [one.id for one in found][:3] == ["tradeoff", "leaderboard", "claims"]


def test_the_verdict_names_the_checks_that_speak_against_a_model():
    hidden = model("A", (36, 36, 36), carried=8, suite=[searched(20)])
    first, tally, every = verdict(run_of(hidden))
    assert first.table is not None and set(first.table.model) == {"A-standard"}
    assert {"gradient-free", "transfer"} <= set(first.table["check"])
    assert tally.table is not None and every.folded
    assert next(iter(verdict(run_of(model("A"))))).table is None


def test_the_verdict_says_how_often_it_is_wrong(tmp_path):
    assert calibration(tmp_path / CALIBRATION) == ""  # not measured here
    path = tmp_path / CALIBRATION.name
    rates = {"pass": Rate(1, 16), "number": Rate(0, 16), "pass_suite": Rate(0, 7)}
    rates |= {"alarm": Rate(1, 16)}
    found = {f"false_{k}": {"hits": r.hits, "n": r.n} | r.columns("rate") for k, r in rates.items()}
    planted = [
        ("noise, a", "reliable", 0.1),
        ("crop, a", "suspect", 0.2),
        ("none, a", "reliable", 0.05),
    ]
    models = [{"name": name, "level": level, "hidden": hidden} for name, level, hidden in planted]
    models.append({"name": "honest", "level": "reliable"})
    path.write_text(json.dumps(found | {"images": 50, "models": models}), encoding="utf-8")
    text = calibration(path)
    assert "50 images" in text and "main attack, 1 of 16 (1.1–28.3 %) are called reliable, " in text
    assert (
        "reliable, namely noise on dense-a; 0 of 16 (0.0–19.4 %) are called reliable with" in text
    )
    assert "of the suite, 0 of 7 (0.0–35.4 %) are called reliable." in text
    assert text.endswith("Of honest models, 1 of 16 (1.1–28.3 %) are called suspect or broken.")


def test_nn_prunes_table_has_dense_every_setting_and_int8_under_transfer():
    study = {"study": "sweep", "of": "dense-standard", "points": {"A": [1, 2]}}
    params = settings(studies={"sweep": study})
    records = pd.concat([point(0), point(1, (0, 2, 0))]).assign(family="A")
    int8 = model("int8", (4, 20, 4), carried=30, bits=8)
    run = run_of(int8, params=params, studies={"sweep": records})
    table = table_of(run, "sweep")
    assert table.family.tolist() == ["dense", "A", "A", "int8"]
    assert table.setting.tolist()[1:] == ["1", "2", "transfer"]
    assert table["accuracy:short"].tolist() == [0.5, 0.5, 0.05, 0.75]
    assert table["against_dense:short"].tolist()[1:] == ["not significant", "lower", "higher"]
    assert table.prune_ratio.tolist() == [0.0, 0.5, 0.5, 0.0]
    _, figure = sweep(run)  # A alone has more than one setting
    assert figure.chart is not None and figure.chart.x_label == "A"
    data = figure.chart.data
    assert list(data.images.unique()) == ["main", "short", "long", "clean"]
    short = data[data.images == "short"]
    assert short.setting.tolist() == ["dense", "1", "2"]
    assert short.accuracy.tolist() == [0.5, 0.5, 0.05]


# --- files ---------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report's folder of a planted run, without pictures, in the place of an older one."""
    folder, params = tmp_path_factory.mktemp("reports") / "digits", settings()
    profile = {**params.profiles["digits"], "show_images": False}
    (folder / "old").mkdir(parents=True)
    write_report(run_of(params=params.model_copy(update={"profiles": {"digits": profile}})), folder)
    return folder


def test_a_report_is_whole_and_in_the_place_of_an_older_one(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"report.html", "report.md", "results.csv", "params.yaml", "figures"}
    assert load(written / "params.yaml").profile == "digits"
    text = (written / "report.md").read_text()
    drawn = {f"figures/{path.name}" for path in (written / "figures").iterdir()}
    named = {part.partition(")")[0] for part in text.split("](")[1:]}
    assert drawn == {name for name in named if name.startswith("figures/")} != set()
    assert "| A-standard" in text and "10.0 (4.0–23.1)" in text


def test_the_terminal_reads_the_results_alone(written):
    text = terminal("digits", folder=written.parent)
    title, *table, last = text.splitlines()
    assert title == (
        "digits: accuracy in percent, robust: no attack broke the image (Linf, eps 48/255), n = 40"
    )
    assert last == f"{written / 'report.html'}"
    row = next(one for one in table if one.startswith("A-standard"))
    words = "A-standard 20.0 32 100.0 10.0 (4.0–23.1) 32.0 not significant 10.0 reliable"
    assert row.split() == words.split()
    assert "| A-standard" in terminal("digits", markdown=True, folder=written.parent)
    with pytest.raises(UserError, match="run `dvc repro`"):
        terminal("cifar10", folder=written.parent)
