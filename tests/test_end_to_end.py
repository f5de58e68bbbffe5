"""The real pipeline by real DVC on real digits, at a tiny size, in a folder with spaces."""

import json
import re
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from workspace import GAP, ROOT, TINY, change, copy_pipeline, git, made_here, run, stage

from advprune.core.errors import UserError
from advprune.core.files import sha256_of
from advprune.core.params import load
from advprune.models.checkpoint import load_model
from advprune.report.read import read_run
from conftest import same_weights

KEYS = {
    *("n", "clean_accuracy", "robust_accuracy", "robust_low", "robust_high", "median_distance"),
    *("sparsity", "bits", "flips_to_chance", "verdict"),
}
ATTACKERS = ["GAP_copy"]
JUDGED = ["dense-standard", *(name for name in TINY["models"] if name not in ATTACKERS)]


def stages_run(output):
    """The stages that DVC says it ran."""
    found = re.findall(r"Running stage '([^']+)'", output)
    return [name for name in found if name != "settings"]  # which always runs


def dvc(folder, *command):
    """Run DVC, which must succeed; what it printed."""
    done = run(folder, "-m", "dvc", *command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository in which the pipeline has been run; DVC has taken note of what that made."""
    folder = copy_pipeline(tmp_path_factory.mktemp("end to end") / "a clone")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")
    dense, made = "dense-standard", {k: v["do"] for k, v in TINY["models"].items()}
    words = [("settings",), ("prepare",), ("train", dense), ("attack", dense)]
    words += [(made[name], name) for name in made]
    words += [*(("attack", name) for name in made), *(("study", name) for name in TINY["studies"])]
    made_here(folder, *words, ("transfer",), ("summarize",))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "results")
    return folder


def test_everything_is_made(folder):
    metrics = {p.stem: json.loads(p.read_text()) for p in (folder / "metrics/digits").iterdir()}
    assert set(metrics) == set(JUDGED)
    assert all(set(found) == KEYS and found["n"] == 40 for found in metrics.values())
    bits = {name: found["bits"] for name, found in metrics.items() if found["bits"] != 32}
    assert bits == {"GAP_int8": 8, "BNN-standard": 1}
    report = folder / "reports/digits"
    results = pd.read_csv(report / "results.csv")
    assert results.model.tolist() == JUDGED  # the dense network, then the order of `models`
    text, page = (report / "report.md").read_text(), (report / "report.html").read_text()
    assert all(name in text and name in page for name in JUDGED)
    assert not re.search(r"""(src|href)=["']https?://""", page.split("<script>")[0])
    figures = list((report / "figures").glob("*.png"))
    assert figures
    for figure in figures:
        Image.open(figure).verify()
    for name in ATTACKERS:
        assert pd.read_parquet(folder / f"runs/digits/{name}/records.parquet").empty


def test_every_study_is_recorded(folder):
    tables = {
        name: pd.read_parquet(folder / f"records/digits/{name}/records.parquet")
        for name in TINY["studies"]
    }
    sweep, curve, flips = tables["sweep"], tables["curve"], tables["flips"]
    assert set(zip(sweep.family, sweep.order, strict=True)) == {("E", 0), ("E", 1), ("R", 0)}
    assert {"field", "from_dense_field", "from_dense_momentum"} == set(curve.attack)
    for table in (sweep, curve):  # the profile's `sweep_images`
        assert sorted(table["index"].unique()) == list(range(30))
    assert set(tables["protocol"].member) == {"dense", "dropout"}
    assert set(tables["seeds"].groupby(["point", "seed"]).groups) == {
        (point, seed) for point in ("dense", "LWM_50") for seed in (0, 1)
    }
    runs = flips.groupby(["variant", "seed"], sort=False)
    assert list(runs.groups) == [(v, s) for v in ("untargeted", "margin", "random") for s in (0, 1)]
    assert (runs.flip.first() == 0).all() and runs.accuracy.first().nunique() == 1


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("records/digits/transfer.parquet", "target"),
        ("records/digits/seeds/records.parquet", "adv_pred"),
        ("records/digits/flips/records.parquet", "accuracy"),
        ("runs/digits/E-standard/layers.parquet", "depth"),
        ("runs/digits/E-standard/model.json", "bits"),
    ],
)
def test_a_damaged_record_is_named(folder, monkeypatch, file, column):
    monkeypatch.chdir(folder)
    path, whole = Path(file), Path(file).read_bytes()
    is_card = path.suffix == ".json"
    read = json.loads(whole) if is_card else pd.read_parquet(path)
    del read[column]
    path.unlink()  # DVC may have made it a link, or read-only
    try:
        path.write_text(json.dumps(read)) if is_card else read.to_parquet(path)
        with pytest.raises(UserError, match=f"{path}.*{column}.*dvc repro"):
            read_run(load())
    finally:
        path.unlink()
        path.write_bytes(whole)


def test_the_matrix_of_transfer_is_whole(folder):
    """The main attack's images between all models, those of the other attacks whose images are
    kept from the dense network or an attacker's own; of attackers, the answers to their own."""
    expected = {(one, "field", other) for one in JUDGED for other in JUDGED if one != other}
    others = ("momentum", "published_40")
    expected |= {("dense-standard", attack, other) for attack in others for other in JUDGED[1:]}
    expected |= {
        (own, attack, other)
        for own in ATTACKERS
        for attack in ("field", "momentum")
        for other in (*JUDGED, own)
    }
    records = pd.read_parquet(folder / "records/digits/transfer.parquet")
    sizes = records.groupby(["source", "attack", "target"]).size()
    assert set(sizes.index) == expected and (sizes == 40).all()


def test_transfer_leaves_out_what_was_not_attacked(folder, tmp_path, capsys):
    partial = copytree(folder, tmp_path / "partial", ignore=ignore_patterns(".dvc", ".git"))
    (partial / "runs/digits/E-standard/adversarial.safetensors").unlink()
    assert stage(partial, "transfer") == 0
    assert "left out, as not attacked: E-standard\n" in capsys.readouterr().out
    place = "records/digits/transfer.parquet"
    made, whole = (pd.read_parquet(root / place) for root in (partial, folder))
    among = whole[(whole.source != "E-standard") & (whole.target != "E-standard")]
    pd.testing.assert_frame_equal(made, among.reset_index(drop=True))


def test_models_are_taken_from_the_files_that_the_profile_gives(folder, tmp_path, capsys):
    """Pruned, quantized and trained ones; file and card are what making them had given."""
    other = copytree(folder, tmp_path / "given", ignore=ignore_patterns(".dvc", ".git"))
    made = {"GAP_layer-standard": "prune", "GAP_int8": "quantize", "BNN-standard": "train"}
    given: dict[str, Any] = {"absent": {"path": "params.yaml"}}
    for name in made:
        (kept := other / "weights" / name).mkdir(parents=True)
        (other / f"runs/digits/{name}/model.safetensors").rename(kept / "file.safetensors")
        (other / f"runs/digits/{name}/model.json").rename(kept / f"{name}.json")
        file = kept / "file.safetensors"
        given[name] = {"path": str(file), "sha256": sha256_of(file)}
    change(other, {"profiles/digits/model/weights": given})
    assert stage(other, "settings") == 0
    assert "note: model.weights names absent, which is neither" in capsys.readouterr().out
    change(other, {"profiles/digits/model/weights": {"dense-standard": {"path": "params.yaml"}}})
    assert stage(other, "settings") != 0
    assert "name dense-standard by its recipe" in capsys.readouterr().err
    change(other, {"profiles/digits/model/weights": given})
    for name, do in made.items():
        assert stage(other, do, name) == 0
        for file in ("model.safetensors", "model.json"):
            place = f"runs/digits/{name}/{file}"
            assert (other / place).read_bytes() == (folder / place).read_bytes()
    change(other, {"prune/GAP_layer": GAP | {"compression": 3}})
    assert stage(other, "prune", "GAP_layer-standard") != 0
    assert "take GAP_layer-standard out of profiles.digits.model.w" in capsys.readouterr().err
    card = other / "weights/GAP_int8/GAP_int8.json"
    card.write_text("{}")
    assert stage(other, "quantize", "GAP_int8") != 0
    assert "is no card of a model: no setting" in capsys.readouterr().err
    change(other, {"profiles/digits/model/weights/BNN-standard/sha256": "0" * 64})
    assert stage(other, "train", "BNN-standard") != 0
    assert "but params.yaml expects 000" in capsys.readouterr().err


def test_metrics_are_the_records_own(folder):
    table = pd.read_parquet(folder / "runs/digits/E-standard/records.parquet")
    found = json.loads((folder / "metrics/digits/E-standard.json").read_text())
    main = table[table.attack == "field"]
    assert found["clean_accuracy"] == round(float((main.clean_pred == main.label).mean()), 4)
    assert main.linf.max() <= 48 / 255 + 1e-6 and len(main) == 40
    sent = pd.read_parquet(folder / "records/digits/transfer.parquet")
    every = pd.concat([table, sent[sent.target == "E-standard"]])
    inside = every[every.linf <= 48 / 255 + 1e-6]
    kept = (inside.adv_pred == inside.label).groupby(inside["index"]).all()
    assert found["robust_accuracy"] == round(float(kept.mean()), 4)
    far = table.groupby("index").distance.min()
    assert 0 <= found["median_distance"] <= round(float(far.median()), 4) and far.max() > 0


def test_what_was_made_here_is_not_run_again_and_the_closing_table_says_where_the_report_is(
    folder, monkeypatch, run
):
    """DVC runs the settings alone, and they are as they were."""
    said = dvc(folder, "repro")
    assert "Running stage 'settings'" in said and stages_run(said) == []
    assert git(folder, "status", "--porcelain") == ""
    monkeypatch.chdir(folder)
    status, said, _ = run("leaderboard")
    assert status == 0 and "reports/digits/report.html" in said.replace("\n", "")


def test_changes_from_the_command_line_run_their_stages_alone(folder):
    """A family at another setting, a model left out and one added."""
    mine = "{do: prune, of: dense-standard, by: prune.E}"
    changes = ("prune.E=5e-3", "~models.GAP_int8", f"+models.mine={mine}")
    said = dvc(folder, "exp", "run", "-n", "changed", *(w for c in changes for w in ("-S", c)))
    of_both = {f"{b}@{name}" for b in ("model", "attack") for name in ("E-standard", "mine")}
    assert sorted(stages_run(said)) == sorted({*of_both, "summarize", "transfer"})
    now = {*JUDGED, "mine"} - {"GAP_int8"}
    assert {path.stem for path in (folder / "metrics/digits").iterdir()} == now
    dense = load_model(folder / "runs/digits/dense-standard/model.safetensors")
    weights = torch.cat([weight.detach().flatten() for weight in dense.parameters()])
    found = json.loads((folder / "metrics/digits/E-standard.json").read_text())
    assert found["sparsity"] == round(float((weights.abs() < 5e-3).double().mean()), 4)
    shown = dvc(folder, "metrics", "show", "--md")
    assert all(f"{name}.json" in shown for name in now)
    diff = dvc(folder, "metrics", "diff", "main", "--md")
    assert re.search(r"E-standard.json *\| sparsity", diff)
    assert "BNN-standard" not in diff


def test_the_examples_in_python_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    pages = [ROOT / "README.md", ROOT / "docs" / "dvc.md"]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    parts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec("\n".join(parts), {})
    said = capsys.readouterr().out
    assert "Benchmark(clean " in said and "n = 40" in said
    assert "\n0.01\n" in said  # prune.E, as committed
    places = ("model.safetensors", "runs/digits/dense-standard/model.safetensors")
    assert same_weights(*map(load_model, places))


def test_dvclive_shows_the_history_of_each_training(folder):
    pytest.importorskip("dvclive")
    for name in ("dense-standard", "BNN-standard", "GAP_copy"):
        history = json.loads((folder / f"runs/digits/{name}/model.json").read_text())["history"]
        place = f"dvclive/digits/{name}/plots/metrics/val_accuracy.tsv"
        table = pd.read_csv(folder / place, sep="\t")
        assert table.val_accuracy.tolist() == [row["val_accuracy"] for row in history]
    assert "file://" in dvc(folder, "plots", "show", place)
    assert "dvclive" not in git(folder, "status", "--porcelain", "-uall")
