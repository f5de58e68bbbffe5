"""The command line: exit statuses, and that it does what the stages do."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import attack as attack_stage
import pandas as pd
import pytest
import settings as settings_stage
import torch
from planted import run_of
from safetensors.torch import load_file, save_file
from workspace import ROOT, change, copy_pipeline

from advprune.cli import app as command_line
from advprune.core.files import WRITING
from advprune.core.params import load
from advprune.core.settings import yaml_of
from advprune.data import load_split, prepare, save_split, stratified_subset
from advprune.evaluate import metrics
from advprune.evaluate.measures import robust_rates
from advprune.evaluate.robust import union
from advprune.evaluate.verdict import Evidence, verdict
from advprune.models.binary import freeze, latent
from advprune.models.card import write_card
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.resnet import initialize
from advprune.models.spec import attach, spec_of
from advprune.pruning import Data
from advprune.pruning import prune as prune_model
from advprune.quantization.post_training import quantize
from advprune.report import read as read_module
from advprune.report import write as write_module
from advprune.training.networks import spec_for
from conftest import same_weights

DENSE = Path("runs/digits/dense-standard/model.safetensors")
TINY = {
    "studies": {},
    "profiles/digits/model/width": 2,
    "profiles/digits/data/test_limit": 12,
    "profiles/digits/attacks": {"square": {"queries": 3}},
    "profiles/digits/curves": {"eps": ["48/255"], "steps": [1]},
    "profiles/digits/suite/table": ["field"],
    "profiles/digits/suite/transfer": ["field"],
    "profiles/digits/suite/deterministic": ["square"],
    "profiles/digits/suite/quantized": [],
    "profiles/digits/suite/binary": [],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A repository with prepared digits and a tiny network, not trained, in its place."""
    place = copy_pipeline(tmp_path_factory.mktemp("command") / "a clone")
    change(place, TINY)
    params = load(place / "params.yaml")
    splits = prepare(params.active().data, params.seed)
    for name, split in splits.items():
        save_split(split, place / "data" / "digits" / f"{name}.safetensors")
    model = build(spec_for(params.active().model, splits["train"]))
    initialize(model, torch.Generator().manual_seed(0))
    model.train()(splits["train"].images / 255)  # settles batch-norm
    save_model(model.eval(), place / DENSE)
    return place


@pytest.fixture
def here(folder, monkeypatch):
    """It is the current folder; the checkpoint's path in it."""
    monkeypatch.chdir(folder)
    return DENSE


def files():
    return {path for path in Path().rglob("*") if path.is_file()}


# --- audit ---------------------------------------------------------------------------------------
def test_audit_of_a_sound_checkpoint(here, run):
    status, out, _ = run("audit", here)
    assert status == 0 and out.splitlines()[-1] == "sound"
    assert "resnet18 of width 2, 1 channel, 10 classes (header)" in out
    assert "conv1 (first)" in out and "linear (last)" in out
    status, out, _ = run("audit", here, "--json")
    found = json.loads(out)
    assert status == 0 and found["sound"] and found["faults"] == []
    assert len(found["layers"]) == 21 and len(found["sha256"]) == 64
    parameters = list(load_model(here).parameters())
    assert found["prunable"]["count"] == sum(p.numel() for p in parameters if p.ndim > 1)
    assert found["all"]["count"] == sum(p.numel() for p in parameters)


def test_results_are_written_before_the_terminal_is_told(here, run, tmp_path, monkeypatch):
    def gone(*_):
        raise BrokenPipeError(32, "Broken pipe", "terminal")

    monkeypatch.setattr("advprune.cli.findings.print_found", gone)
    assert run("evaluate", here, "--page", tmp_path / "net.html", "--out", tmp_path)[0] != 0
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["metrics.json", "net.html", "records.parquet", "verdict.json"]


BUILT = "it is read here; name another file"
NO_FOLDER = "check that the folder may be written to"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("audit NET --keep 0.5", "--keep goes with popup_scores, of which NET holds none"),
        ("audit --nothing", "No such option: --nothing"),
        ("nothing", "No such command 'nothing'"),
        ("evaluate NET --page NET", BUILT),
        ("evaluate NET --page TMP", "it is a folder; name a file"),
        ("evaluate NET --page /dev/null", "it is a device or a pipe; name a file"),
        ("evaluate NET --page TMP/file/net.html", NO_FOLDER),
        (f"evaluate NET --page TMP/{'x' * 300}.html", "File name too long"),
        ("evaluate NET --out TMP/file", NO_FOLDER),
        ("evaluate NET --beside HYDRA", "--beside HYDRA: there are figures of "),
        ("evaluate TMP/four.safetensors", "a network of 4 classes, but profile digits has 10"),
        ("evaluate TMP/m.pt --classes 10", "missing: linear.weight [10, 16] (and 1 more)"),
        ("export NET --out TMP/x.pt", "TMP/x.pt: name a file that ends in .safetensors"),
        ("export NET --out NET", BUILT),
        ("export TMP/m.pt --out TMP/x.safetensors", "TMP/m.pt is no .safetensors file ("),
        ("export TMP/cut.safetensors --out TMP/x.safetensors", "); make or copy it anew"),
        ("export TMP/l.safetensors --out TMP/x.safetensors", "too large for float16"),
        ("prune E NET --setting 0.1 --out NET", BUILT),
        ("prune E NET --setting 0.1 --data TMP/four.safetensors --out TMP/four.safetensors", BUILT),
        ("prune E NET --setting { --out x.safetensors", "--setting is not valid YAML"),
        ("prune Q NET --setting 1 --out x.safetensors", "there is no family 'Q'"),
        ("quantize NET --out NET", BUILT),
        ("quantize NET --bits 9 --out x.safetensors", "should be less than or equal to 8"),
    ],
)
def test_commands_refuse_in_one_line_before_any_work(
    here, run, tmp_path, monkeypatch, command, words
):
    monkeypatch.setattr("advprune.benchmarking.measured", lambda *_: pytest.fail("attacked"))
    (tmp_path / "file").touch()
    (tmp_path / "cut.safetensors").touch()
    model = load_model(here)
    held = dict(model.state_dict())
    held["linear.weights"] = held.pop("linear.weight")
    torch.save(held, tmp_path / "m.pt")
    other = build(model.spec.model_copy(update={"classes": 4}))
    initialize(other, torch.Generator().manual_seed(0))
    save_model(other, tmp_path / "four.safetensors")
    with torch.no_grad():
        model.linear.weight[0, 0] = 1e5
    save_model(model, tmp_path / "l.safetensors")
    before = files(), sorted(tmp_path.rglob("*"))

    def placed(text):
        return text.replace("NET", str(here)).replace("TMP", str(tmp_path))

    status, out, err = run(*map(placed, command.split()))
    assert (status, out) == (2, "") and err.startswith("error: ") and placed(words) in err
    assert err.count("\n") == 1 and (files(), sorted(tmp_path.rglob("*"))) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--eps much", "--eps is a number or a fraction such as 8/255 (got 'much')"),
        ("--eps 8", "--eps is above 0 and at most 1 in Linf (got 8)"),
        ("--eps 0.9/255", "--eps: in images of 8 bits nothing changes by less than 1/255"),
        ("--eps 0.6", "--eps 0.6: curves.eps: a budget is a fraction of the pixel range"),
        ("--size 2", "--size: Input should be greater than or equal to 4 (got 2)"),
        ("--architecture resnet50", "--architecture: there is no such architecture; known"),
        ("--eps 8/255", "DVC cannot start here (no)"),
        ("", None),
    ],
)
def test_a_project_is_written_whole_or_not_at_all(run, tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / ".gitignore").write_text("mine\n")
    # DVC begins, and fails
    begun = f"import pathlib, sys; pathlib.Path('.dvc').mkdir(); sys.exit({'no' if words else 0!r})"
    monkeypatch.setattr("advprune.cli.init.DVC", ("-c", begun))
    made = [] if "--architecture" in given else ["--architecture", "resnet18"]
    status, out, err = run("init", "--data", "pictures", *made, *given.split())
    left = {path.name for path in tmp_path.iterdir()} - {".gitignore", "pictures"}
    if words is None:
        assert status == 0
        assert left == {".dvc", "dvc.yaml", "params.yaml", "requirements.txt", "stages"}
        return
    assert (status, out, left) == (2, "", set())
    assert err.startswith(f"error: {words}") and err.count("\n") == 1


def test_audit_names_each_fault_on_a_line_and_ends_with_1(here, run, tmp_path):
    held = {f"module.{name}": t for name, t in load_model(here).state_dict().items()}
    held["module.linear.bias"] = held["module.linear.bias"] * float("nan")
    held["evil\nname\x1b[2J"] = torch.ones(2)
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": held}, path)
    status, out, _ = run("audit", path)
    assert status == 1 and out.splitlines()[-1] == "2 faults"
    assert [line for line in out.splitlines() if line.startswith("fault: ")] == [
        "fault: left over: evil?name?[2J [2]",
        "fault: misfit: linear.bias holds NaN or infinite numbers; train or load anew",
    ]
    status, out, _ = run("audit", path, "--json")
    assert status == 1 and len(json.loads(out)["faults"]) == 2
    save_file({"labels": torch.zeros(3, dtype=torch.int64)}, tmp_path / "no.safetensors")
    status, out, _ = run("audit", tmp_path / "no.safetensors")
    assert status == 1 and "fault: " in out  # a file without layers
    status, out, _ = run("audit", here, "--width", 3, "--classes", 10)
    assert status == 1 and "fault: header: width is 2, and not 3\n1 fault\n" in out


class Malicious:
    """A pickle of it runs a command when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("was-here",)


@pytest.mark.parametrize("command", ["audit", "evaluate", "prune"])
def test_a_pickle_that_runs_code_is_refused(here, run, tmp_path, command):
    path = tmp_path / "malicious.pt"
    torch.save({"state_dict": {"conv1.weight": Malicious()}}, path)
    more = ("--setting", 1, "--out", "x.safetensors") if command == "prune" else ()
    before = files()
    status, out, err = run(command, *(["E"] if command == "prune" else []), path, *more)
    assert status == 2 and "nothing in it is ever run" in err and err.count("\n") == 1
    assert not Path("was-here").exists() and files() == before and out == ""


# --- evaluate ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def staged(folder):
    """What the attack stage records of the network, and what follows from that."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        settings_stage.settings()
        attack_stage.attack("dense-standard")
        records = pd.read_parquet(DENSE.with_name("records.parquet"))
    finally:
        os.chdir(before)
    main = records[records.attack == "field"]
    judged = verdict(Evidence(records, "field", 10))
    return {
        "records": records,
        "metrics": metrics(main) | robust_rates(union(records, [], "Linf", 48 / 255)) | {"n": 12},
        "verdict": judged,
    }


def test_evaluate_says_what_the_stages_say(here, staged, run, tmp_path):
    status, out, _ = run("evaluate", here, "--out", tmp_path / "found")
    assert status == 0 and f"verdict: {staged['verdict'].level}" in out
    found = json.loads((tmp_path / "found/metrics.json").read_text())
    expected = {
        f"main{k.removeprefix('remnant')}" if k.startswith("remnant") else k: v
        for k, v in staged["metrics"].items()
    }
    assert found.items() >= expected.items() and found["n"] == 12
    assert found["verdict"] == staged["verdict"].level and found["prune_ratio"] is None
    assert not any(key.startswith("transfer") for key in found)
    told = json.loads((tmp_path / "found/verdict.json").read_text())
    assert [c["name"] for c in told["checks"]] == [c.name for c in staged["verdict"].checks]
    records = pd.read_parquet(tmp_path / "found/records.parquet")
    pd.testing.assert_frame_equal(records, staged["records"])
    assert not (tmp_path / "found" / "unfinished").exists()


def test_evaluate_of_foreign_weights_without_data_writes_nothing(
    here, staged, run, tmp_path, monkeypatch
):
    held = {f"module.{name}": t for name, t in load_model(here).state_dict().items()}
    torch.save(held, tmp_path / "theirs.pt")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    monkeypatch.chdir(bare)
    status, out, _ = run("evaluate", tmp_path / "theirs.pt")
    assert status == 0 and files() == {Path("params.yaml")}
    robust = 100 * staged["metrics"]["robust_accuracy"]
    assert f"robust {robust:.1f} (" in " ".join(out.split())


def test_evaluate_beside_the_dense_network(here, staged, run, tmp_path):
    made = tmp_path / "pruned.safetensors"
    assert run("prune", "E", here, "--setting", "0.05", "--out", made)[0] == 0
    status, out, err = run("evaluate", made, "--dense", here, "--out", tmp_path)
    assert status == 0, err
    assert "against the dense network: " in out and "transfer" in out
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["prune_ratio"] == json.loads(made.with_suffix(".json").read_text())["prune_ratio"]
    assert found["transfer_accuracy"] is not None and "against_dense" in found
    crafted = load_file(DENSE.with_name("adversarial.safetensors"))["field"]
    _, labels = load_split("data/digits", "test")
    with torch.no_grad():
        right = (load_model(made)(crafted / 255).argmax(1) == labels).float().mean()
    assert found["transfer_accuracy"] == round(float(right), 4)


def integers(model):
    return quantize(model, torch.rand(8, 1, 8, 8))


def bits(model):
    attach(model, spec_of(model).model_copy(update={"binary": True}))
    return freeze(latent(model))


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.parametrize("made", [integers, bits])
def test_evaluate_tells_of_a_network_what_its_card_tells(here, run, tmp_path, made):
    path = tmp_path / "made.safetensors"
    save_model(made(load_model(here)), path)
    assert run("evaluate", path, "--out", tmp_path)[0] == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    write_card(path, image_shape=(1, 8, 8))
    card = json.loads(path.with_suffix(".json").read_text())
    assert found["bits"] == card["bits"] == (8 if made is integers else 1)
    for key in ("stored_bits", "parameters", "nonzero", "sparsity", "macs", "file_bytes"):
        assert found[key] == card[key], key
    assert (found["twin_agreement"] is None) == (made is bits)


# --- export --------------------------------------------------------------------------------------
def test_an_exported_network_is_half_as_large_and_read_back_exactly(here, run, tmp_path):
    out = tmp_path / "weights" / "small.safetensors"
    status, said, _ = run("export", here, "--out", out)
    assert status == 0 and f"{out.stat().st_size:,} bytes instead of" in said
    assert out.stat().st_size < 0.6 * here.stat().st_size  # the header stays as it was
    for (name, found), full in zip(
        load_model(out).state_dict().items(), load_model(here).state_dict().values(), strict=True
    ):
        rounded = full.half().to(full.dtype) if full.is_floating_point() else full
        assert torch.equal(found, rounded), name
    assert run("audit", out)[1].endswith("sound\n")


@pytest.mark.parametrize("made", [integers, bits])
def test_networks_that_rounding_would_change_are_exported_in_full(here, run, tmp_path, made):
    model = made(load_model(here))
    save_model(model, tmp_path / "given.safetensors")
    out = tmp_path / "out.safetensors"
    status, said, _ = run("export", tmp_path / "given.safetensors", "--out", out)
    assert status == 0 and "bytes in full" in said and "moved by at most 0;" in said
    assert out.read_bytes() == (tmp_path / "given.safetensors").read_bytes()


# --- prune ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("family", "setting"), [("E", "1e-1"), ("GAP_layer", "{compression: 4, steps: 1}")]
)
def test_prune_does_what_the_family_does(here, run, tmp_path, family, setting):
    out, params = tmp_path / "a folder" / "small.safetensors", load()
    status, said, err = run("prune", family, here, "--setting", setting, "--out", out)
    assert status == 0 and "small.safetensors and small.json" in said, err
    dense, found, value = load_model(here), load_model(out), yaml_of(setting, "it")
    data = Data(*load_split("data/digits", "train"), params.active().train)
    assert same_weights(found, prune_model(family, dense, value, data, params.seed).model)
    card = json.loads(out.with_suffix(".json").read_text())
    zeros = sum(int((p == 0).sum()) for p in found.parameters())
    assert card["sparsity"] == round(zeros / sum(p.numel() for p in dense.parameters()), 4)
    if family == "E":
        for weight, before in zip(found.parameters(), dense.parameters(), strict=True):
            assert torch.equal(weight, torch.where(before.abs() < 0.1, 0.0, before))
        assert card["setting"] == 0.1
    assert {path.name for path in out.parent.iterdir()} == {"small.safetensors", "small.json"}
    assert not set(Path().glob("checkpoints/*")) - {WRITING}


def test_quantize_rounds_as_the_stage_does(here, run, tmp_path):
    out = tmp_path / "int.safetensors"
    status, said, err = run("quantize", here, "--bits", 4, "--out", out)
    assert status == 0 and "int.safetensors and int.json: 4 bits; its twin agrees on 100" in said
    images, labels = load_split("data/digits", "train")
    shown = images[stratified_subset(labels, min(512, len(labels)), load().seed)]
    assert same_weights(load_model(out), quantize(load_model(here), shown, 4)), err
    card = json.loads(out.with_suffix(".json").read_text())
    assert card["bits"] == card["setting"]["bits"] == 4 and card["macs"] > 0


# --- report, and the whole -----------------------------------------------------------------------
def test_report_is_the_summarize_stage(here, run, monkeypatch):
    whole, asked = run_of(), []
    monkeypatch.setattr(read_module, "read_run", lambda p: asked.append(p.profile) or whole)
    for name in ("write_metrics", "write_report"):
        monkeypatch.setattr(write_module, name, lambda *given: asked.append(given))
    status, out, _ = run("report")
    assert status == 0 and out.strip() == "reports/digits/report.html"
    assert asked == ["digits", (whole, Path("metrics/digits")), (whole, Path("reports/digits"))]


def test_no_command_shows_the_help(run):
    status, out, _ = run("--help")
    names = ("audit", "evaluate", "prune", "report", "gate", "completion")
    assert status == 0 and all(name in out for name in names)


def test_the_shell_completes_commands_families_and_profiles(here, run, monkeypatch):
    def offered(*words):
        monkeypatch.setenv("_ADVPRUNE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(("advprune", *words)))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        return set(run()[1].split())

    assert offered("e") == {"evaluate", "export"}
    assert offered("prune", "GAP") == {"GAP_layer"}
    assert offered("report", "--profile", "dig") == {"digits"}
    monkeypatch.chdir("data")
    assert offered("prune", "GAP") == set()


def test_every_command_is_described_with_its_options():
    import typer

    text = (ROOT / "docs" / "command.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(command_line.app).commands
    for name, command in commands.items():
        assert f"## advprune {name}\n" in text, name
        for parameter in command.params:
            for option in (o for o in parameter.opts if o.startswith("--") and o != "--help"):
                assert option in text, (name, option)


SHOWN = re.findall(
    r"^\$ advprune ((?:.*\\\n)*.*)$", (ROOT / "docs/command.md").read_text("utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("line", [line for line in SHOWN if "gate" not in line])  # test_gate.py
def test_commands_that_are_shown_can_be_run(folder, run, tmp_path, monkeypatch, line):
    shutil.copy(folder / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line.replace("\\\n", " "))
    for path in (Path(word) for word in words if word.startswith("runs/")):
        path.parent.mkdir(parents=True)
        shutil.copy(folder / DENSE, path)
    status, out, err = run(*words)
    assert status == 0 and out, err


def test_what_is_needed_and_missing_is_named(folder, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = run("evaluate", "model.pt")
    assert "cannot read params.yaml: it is not there; give your own pictures by --data" in err
    Path("params.yaml").write_bytes((folder / "params.yaml").read_bytes())
    status, _, err = run("leaderboard")
    assert status == 2 and "there is no reports/digits/results.csv; run `dvc repro`" in err
