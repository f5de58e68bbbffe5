"""Bad input to the stages: one line that names the fault, exit status 2, nothing half-written."""

import shutil
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from workspace import change, copy_pipeline, stage

WEIGHTS = "runs/digits/dense-standard/model.safetensors"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workspace with data and a dense network."""
    folder = copy_pipeline(tmp_path_factory.mktemp("errors") / "work")
    for words in (("prepare",), ("settings",), ("train", "dense-standard")):
        assert stage(folder, *words) == 0
    return folder


class Bench:
    """A workspace to break: stages are called in this process."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys

    def put(self, key, value):
        change(self.folder, {key: value})

    def refused(self, *words):
        """The one line with which a stage refuses to work; nothing may have been written."""
        before, status = self.files(), stage(self.folder, *words)
        shown = self.capsys.readouterr().err.strip()
        message = shown.splitlines()[-1]
        assert status == 2, shown
        assert message.startswith("error: ") and "Traceback" not in shown, shown
        assert self.files() == before
        return message

    def files(self):
        """All files, but for caches of Python and work that can be resumed."""
        paths, caches = self.folder.rglob("*"), {"__pycache__", "checkpoints"}
        return {str(p) for p in paths if p.is_file() and not caches & set(p.parts)}


@pytest.fixture
def bench(prepared, tmp_path, monkeypatch, capsys):
    """A copy of the prepared workspace, which is the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ADVPRUNE_DATA", raising=False)
    return Bench(folder, capsys)


@pytest.mark.parametrize(
    ("name", "arguments", "key", "value", "words"),
    [
        ("prune", ("E-standard",), "prune/E", -1, ["prune.E", "-1", "greater than or equal to 0"]),
        ("prune", ("my-E",), "prune/mine", {"family": "E", "threshold": -1}, ["prune.mine: thr"]),
        ("prune", ("odd",), "prune/E", 1, ["odd is none of", "do: prune (E-standard, GAP"]),
        ("quantize", ("E-standard",), "prune/E", 1, ["do: quantize (GAP_int8)"]),
        ("train", ("odd",), "prune/E", 1, ["do: train (dense-standard, BNN-standard, GAP_copy"]),
        ("settings", (), "prune/GAPP", 1, ["prune.GAPP", "known: AWT, E, ESR, GAP"]),
        ("settings", (), "attack/extra", [{"name": "PGDD"}], ["no attack 'PGDD'"]),
        ("study", ("odd",), "prune/E", 1, ["no studies.odd", "sweep, curve, protocol"]),
        ("attack", ("dense-standard",), "profile", "cifar100", ["no profile 'cifar100'", "digits"]),
        ("attack", ("odd",), "prune/E", 1, ["no model 'odd'", "dense-standard, E-standard"]),
        ("attack", ("E-standard",), "prune/E", 1, ["no checkpoint", "E-standard", "dvc repro"]),
        ("attack", ("dense-standard",), "attack/score_draws", 20, ["attacks.json is not up to da"]),
        ("transfer", (), "prune/E", 1, ["no model of digits was attacked", "dvc repro"]),
        ("summarize", (), "prune/E", 1, ["no dense network has a records.parquet", "dvc repro"]),
    ],
)
def test_wrong_settings(bench, name, arguments, key, value, words):
    bench.put("models/my-E", {"do": "prune", "of": "dense-standard", "by": "prune.mine"})
    bench.put("prune/mine", {"family": "E", "threshold": 0.5})
    bench.put(key, value)
    message = bench.refused(name, *arguments)
    assert all(word in message for word in words), message


def spoil(path, name, value):
    """Put `value` into the first place of a tensor of a safetensors file."""
    tensors = load_file(path)
    tensors[name].view(-1)[0] = value
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)


def test_a_checkpoint_cut_in_half(bench):
    path = Path(WEIGHTS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = bench.refused("prune", "E-standard"), bench.refused("attack", "dense-standard")
    assert all(WEIGHTS in message and "damaged" in message for message in said)


def test_a_checkpoint_with_nan(bench):
    spoil(Path(WEIGHTS), "linear.weight", float("nan"))
    assert "linear.weight holds NaN" in bench.refused("attack", "dense-standard")


def test_weights_of_another_width(bench):
    shutil.copy(WEIGHTS, "other.safetensors")
    bench.put("profiles/digits/model/width", 8)
    bench.put("profiles/digits/model/weights", {"standard": {"path": "other.safetensors"}})
    message = bench.refused("train", "dense-standard")
    assert "other.safetensors" in message and "another width" in message


def test_a_place_that_cannot_be_written(bench):
    shutil.rmtree("runs/digits")
    Path("runs/digits").write_text("a file where a folder should be")
    assert "cannot write runs/digits" in bench.refused("train", "dense-standard")
