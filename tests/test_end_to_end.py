"""The real pipeline by real DVC on real digits, at a tiny size, in a folder with spaces."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image
from workspace import ROOT, copy_pipeline, run

from advprune.models.checkpoint import load_model

KEYS = {
    "verdict",
    "robust_accuracy_low",
    "clean_accuracy",
    "remnant_accuracy_low",
    "attack_success_rate",
    "transfer_accuracy",
    "n",
}
ROWS = ["dense", "int8", "E", "clamp", "SAP", "random", "GAP_layer", "GAP_int8", "BNN"]
WARM = ("stages/warm.py", "python", "-m")  # runs DVC beside a process that has torch
OWN = ["seed1", "GAP_layer_substitute"]  # the attacker's networks
ON_MASKS = {
    *("mask@random-standard", "mask@GAP_layer-standard", "compression@random-standard"),
    *("attack-masked@random-standard", "attack-masked@GAP_layer-standard"),
    *("quantized@GAP_int8", "attack-quantized@GAP_int8-standard"),
    *("surrogate@seed1", "substitute@GAP_layer-standard", "bitflip@dense_4"),
}
OF_E = ["attack@E-standard", "prune@E-standard", "summarize", "transfer"]
OF_BITS = {"growth", "binary@BNN", "attack-binary@BNN-standard"}


def git(folder: Path, *command: str) -> str:
    """Run git, as somebody who has not configured it; its output."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    words = ["git", *identity, *command]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def stages_run(output: str) -> list[str]:
    """The stages that DVC says it ran."""
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A repository in which the pipeline has been run, and what that printed."""
    folder = copy_pipeline(tmp_path_factory.mktemp("end to end") / "a clone")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "start")
    done = run(folder, "stages/warm.py", "python", "stages/quick.py", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "results")
    return folder, done.stdout


def test_everything_is_made(pipeline: tuple[Path, str]) -> None:
    folder, output = pipeline
    assert len(stages_run(output)) == 19 + len(ON_MASKS | OF_BITS)
    assert set(stages_run(output)) > ON_MASKS | OF_BITS
    metrics = {p.stem: json.loads(p.read_text()) for p in (folder / "metrics/digits").iterdir()}
    assert set(metrics) == {f"{family}-standard" for family in ROWS}
    for found in metrics.values():
        assert set(found) == set(metrics["dense-standard"]) and set(found) >= KEYS
        assert found["n"] == 40
    report = folder / "reports/digits"
    for settings in ("E-standard.sweep", "random-standard.compression"):
        records = pd.read_parquet(folder / f"records/digits/{settings}.parquet")
        assert sorted(records["index"].unique()) == list(range(30))
    text = (report / "report.md").read_text().replace("\u00a0", " ")
    assert text.count("n = 30 test images") == 1 and "n = 30, seed 0" in text
    assert "## Leaderboard" in text and all(f"| {family} " in text for family in ROWS)
    page = (report / "report.html").read_text()
    assert "<html" in page and "data:image/png;base64," in page and "data-plot=" in page
    assert not re.search(r"""(src|href)=["']https?://""", page.split("<script>")[0])
    for figure in (report / "figures").glob("*.png"):
        Image.open(figure).verify()


def test_the_matrix_of_transfer_is_whole(pipeline: tuple[Path, str]) -> None:
    folder, _ = pipeline
    names = [f"{family}-standard" for family in ROWS]
    expected = {(one, "field", other) for one in names for other in names if one != other}
    expected |= {("dense-standard", "momentum", other) for other in names[1:]}
    expected |= {
        (own, attack, other) for own in OWN for attack in ("field", "momentum") for other in names
    }
    table = pd.read_csv(folder / "reports/digits/curves/transfer.csv")
    assert set(zip(table.source, table.attack, table.target, strict=True)) == expected
    assert len(table) == len(expected) and (table.n == 40).all()
    assert table.accuracy.between(0, 1).all()
    records = pd.read_parquet(folder / "transfers/digits/transfer.parquet")
    for row in table.itertuples():
        pair = (records.source == row.source) & (records.target == row.target)
        told = records[pair & (records.attack == row.attack)]
        assert row.accuracy == round(float((told.adv_pred == told.label).mean()), 4)
    text = (folder / "reports/digits/report.md").read_text()
    for words in ("## Compression by masks", "## Quantized models", "Does GAP_layer harden"):
        assert words in text
    head = next(line for line in text.splitlines() if "all sources %" in line)
    assert all(f"| {own} → model %" in head for own in OWN)


def test_metrics_are_the_records_own(pipeline: tuple[Path, str]) -> None:
    folder, _ = pipeline
    table = pd.read_parquet(folder / "records/digits/E-standard.parquet")
    main = table[table.attack == "field"]
    found = json.loads((folder / "metrics/digits/E-standard.json").read_text())
    assert found["remnant_accuracy"] == round(float((main.adv_pred == main.label).mean()), 4)
    assert found["clean_accuracy"] == round(float((main.clean_pred == main.label).mean()), 4)
    assert found["robust_accuracy"] <= found["remnant_accuracy"]
    assert main.linf.max() <= 48 / 255 + 1e-6 and len(main) == 40


def test_bits_are_flipped_and_told(pipeline: tuple[Path, str]) -> None:
    folder, _ = pipeline
    records = pd.read_parquet(folder / "records/digits/dense_4.bitflip.parquet")
    runs = records.groupby(["variant", "seed"], sort=False)
    assert list(runs.groups) == [(v, s) for v in ("untargeted", "margin", "random") for s in (0, 1)]
    assert (runs.flip.first() == 0).all() and (
        runs.accuracy.first() == runs.accuracy.first().iloc[0]
    ).all()
    assert "## Bits under attack" in (folder / "reports/digits/report.md").read_text()
    table = pd.read_csv(folder / "reports/digits/curves/flips.csv")
    assert table.search.tolist() == ["untargeted", "margin"] and (table.seeds == 2).all()


def test_a_second_run_does_nothing(pipeline: tuple[Path, str]) -> None:
    again = run(pipeline[0], "-m", "dvc", "repro")
    assert again.returncode == 0 and stages_run(again.stdout) == []
    assert "up to date" in again.stdout


def test_a_queue_of_changes_to_one_family_runs_its_stages_alone(
    pipeline: tuple[Path, str],
) -> None:
    folder, _ = pipeline
    values = {"sweep-1": 5e-3, "sweep-2": 2e-3}
    setting = f"prune.E={','.join(map(str, values.values()))}"
    queued = run(folder, "-m", "dvc", "exp", "run", "--queue", "-n", "sweep", "-S", setting)
    assert queued.returncode == 0, queued.stderr
    done = run(folder, *WARM, "dvc", "exp", "run", "--run-all")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(folder, "status", "--porcelain", "params.yaml", "dvc.lock", "metrics") == ""
    dense = load_model(folder / "models/digits/dense-standard/model.safetensors")
    weights = torch.cat([weight.detach().flatten() for weight in dense.parameters()])
    logs = re.split(r"Reproducing experiment '([^']+)'", done.stdout)[1:]
    ran = dict(zip(logs[::2], map(stages_run, logs[1::2]), strict=True))
    assert {name: sorted(stages) for name, stages in ran.items()} == dict.fromkeys(values, OF_E)
    for name, threshold in values.items():
        found = git(folder, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").strip()
        metrics = json.loads(git(folder, "show", f"{found}:metrics/digits/E-standard.json"))
        small = (weights.abs() < threshold).double().mean()
        assert metrics["sparsity"] == round(float(small), 4), name
    assert run(folder, "-m", "dvc", "exp", "apply", "sweep-1").returncode == 0
    shown = run(folder, "-m", "dvc", "metrics", "show", "--md")
    assert shown.returncode == 0
    assert all(f"{family}-standard.json" in shown.stdout for family in ROWS)
    changed = run(folder, "-m", "dvc", "metrics", "diff", "main", "--md").stdout
    assert re.search(r"E-standard.json *\| sparsity", changed)
    assert "clamp-standard" not in changed


def test_a_family_is_added_from_the_command_line(pipeline: tuple[Path, str]) -> None:
    folder, _ = pipeline
    done = run(folder, *WARM, "dvc", "exp", "run", "-S", "+prune.round=2")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = ["attack@round-standard", "prune@round-standard", "summarize"]
    assert sorted(stages_run(done.stdout)) == [*expected, "transfer"]
    assert (folder / "metrics/digits/round-standard.json").is_file()


def test_the_library_example_of_the_readme_runs(pipeline: tuple[Path, str]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    done = run(pipeline[0], "-c", f"import sys; sys.path.insert(0, 'src')\n{example}")
    assert done.returncode == 0, done.stderr
    assert "'remnant_accuracy':" in done.stdout and "'n': 40" in done.stdout


def test_the_closing_table_says_where_the_report_is(pipeline: tuple[Path, str]) -> None:
    done = run(pipeline[0], "stages/show.py")
    assert done.returncode == 0, done.stderr
    assert "reports/digits/report.html" in done.stdout.replace("\n", "")


def test_stage_scripts_run_without_dvc_and_give_the_same_bytes(
    pipeline: tuple[Path, str],
) -> None:
    folder, _ = pipeline
    for stage, outs in (
        (("attack", "clamp"), ["records/digits/clamp-standard.parquet"]),
        (("prune", "clamp"), ["models/digits/clamp-standard/model.safetensors"]),
        (("prune", "GAP_layer"), ["models/digits/GAP_layer-standard/model.safetensors"]),
        (("quantize", "GAP_int8"), ["models/digits/GAP_int8-standard/model.safetensors"]),
        (("growth",), ["models/digits/growth.json"]),
        (("binary", "BNN"), ["models/digits/BNN-standard/model.safetensors"]),
        (("surrogate", "GAP_layer", "--copy"), [f"surrogates/digits/{OWN[1]}/model.safetensors"]),
        (("bitflip", "dense_4"), ["records/digits/dense_4.bitflip.parquet"]),
        (("transfer",), ["transfers/digits/transfer.parquet"]),
        (("summarize",), ["metrics/digits/E-standard.json", "reports/digits/report.html"]),
    ):
        before = [(folder / out).read_bytes() for out in outs]
        for out in outs:
            (folder / out).unlink()
        done = run(folder, f"stages/{stage[0]}.py", *stage[1:])
        assert done.returncode == 0, done.stderr
        assert [(folder / out).read_bytes() for out in outs] == before
