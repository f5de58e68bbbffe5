"""Stages and commands: facts that may not be lost on the way, and bad input refused in one line."""

import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import typer
from workspace import change, copy_pipeline, stage

from advprune.attacks.registry import typed
from advprune.cli.evaluate import card_beside
from advprune.cli.options import Network
from advprune.cli.repository import Repository
from advprune.core.attack_settings import ExtraAttack
from advprune.core.ending import ended
from advprune.core.errors import UserError
from advprune.core.files import referenced, sha256_of
from advprune.core.train_settings import DataSettings
from advprune.data.sources import key_of
from advprune.models.audit import audit
from advprune.models.checkpoint import build, load_model, save_model, stored
from advprune.models.foreign import code_files
from advprune.models.spec import ModelSpec, spec_of

THEIRS = """
import sys, torch
from torch import nn

class Blur(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("filt", torch.outer(*[torch.tensor([1.0, 2.0, 1.0])] * 2)[None, None])
        self.register_buffer("attn_mask", torch.eye(3))
        self.register_buffer("mask", torch.ones(1, 1, 3, 3))

    def forward(self, x):
        return nn.functional.conv2d(x, self.filt * self.mask / 16, padding=1)

def net(classes, channels):
    parts = [nn.Conv2d(channels, 1, 3, padding=1), Blur(), Blur(), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(64, classes))

def leaves(classes, channels):
    sys.exit(0)
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A folder with code of somebody's own, from which commands are run."""
    (tmp_path / "theirs_facts.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("theirs_facts", None)


KNOWN = {"channels": 1, "classes": 10, "mean": (0.0,), "std": (1.0,)}
SMALL = {"architecture": "resnet20", "width": 2, **KNOWN}


def spec(function="net"):
    return ModelSpec(architecture=f"theirs_facts:{function}", **KNOWN)


def test_masks_and_equal_buffers_of_the_network_itself_are_no_faults(theirs):
    model = build(spec(), "theirs_facts:net")
    found = audit(stored(model), spec(), factory="theirs_facts:net")
    assert found.sound, found.faults
    tensors = stored(model) | {"network.0.weight_mask": torch.ones(1, 1, 3, 3)}
    assert audit(tensors, spec(), factory="theirs_facts:net").notes[0].startswith("1 masks")


def test_what_the_users_code_does_is_no_answer(theirs, capsys, run):
    save_model(build(spec(), "theirs_facts:net"), theirs / "m.safetensors")
    assert run("audit", "m.safetensors", "--factory", "theirs_facts:net")[0] == 0
    with pytest.raises(UserError, match=r"theirs_facts:leaves, called with .* SystemExit: 0"):
        build(spec("leaves"), "theirs_facts:leaves")

    def crash(**_):
        raise ZeroDivisionError

    def leave(**_):
        sys.exit(0)

    def long(**_):
        Path("x" * 300).stat()

    assert ended(crash, "it") == ended(leave, "it") == 2
    assert "sys.exit(0)" in capsys.readouterr().err
    assert ended(long, "it") == 2
    assert capsys.readouterr().err.strip() == f"error: {'x' * 300}: File name too long"

    def raised(**_):
        raise OSError("could not get source code")  # as libraries do, with no fault of the system

    assert ended(raised, "it") == 2
    assert "in raised\n" in capsys.readouterr().err


def test_a_full_disk_and_a_poor_terminal(capfd, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")  # of pandas, without a name

    def marks(**_):
        print("✓ passed")

    assert ended(full, "it") == 2
    assert capfd.readouterr().err == "error: No space left on device\n"
    poor = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", poor)
    assert ended(marks, "it") == 0
    poor.flush()
    assert poor.buffer.getvalue() == b"? passed\n"


def test_a_reader_that_has_gone_is_no_error(capsys, monkeypatch):
    """As `| head` is: what Typer makes of a closed pipe is not the called code's own exit."""
    app = typer.Typer()

    @app.command()
    def talks():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.argv", ["it"])
    assert ended(app, "it") == 2
    assert capsys.readouterr().err == ""


def test_no_package_is_imported_to_find_a_file(theirs):
    (theirs / "evil" / "sub").mkdir(parents=True)
    (theirs / "evil" / "__init__.py").write_text("open('PWNED', 'w')")
    for reference, words in (
        ("package:evil.sub/x", "one package by its name"),
        ("package:evil/../theirs_facts.py", "has no file '../theirs_facts.py'"),
        ("package:none/x", "'none' is not installed; pip install none"),
        ("/nowhere/model.pt", "there is no weights file /nowhere/model.pt"),
    ):
        with pytest.raises(UserError, match=words):
            referenced(reference)
    assert not Path("PWNED").exists() and "evil" not in sys.modules


def test_code_of_ones_own_is_part_of_what_work_depends_on(theirs):
    (theirs / "theirs_helper.py").write_text("SIGN = 1")
    with (theirs / "theirs_facts.py").open("a") as file:
        file.write("\nimport theirs_helper\n")
    names = [path.name for path in code_files("theirs_facts:net")]
    assert names == ["theirs_facts.py", "theirs_helper.py"]


@pytest.mark.parametrize(
    ("entry", "norm", "eps"),
    [
        ({"name": "PGD", "eps": "8/255"}, "Linf", 8 / 255),
        ({"name": "PGD"}, "Linf", 8 / 255),  # torchattacks' own
        ({"name": "PGDL2"}, "L2", 1.0),
        ({"name": "APGD", "norm": "L2", "eps": 0.5}, "L2", 0.5),
        ({"name": "CW"}, "L2", 1.0),  # it has no budget: any change
    ],
)
def test_norm_and_budget_of_an_attack_are_its_own(entry, norm, eps):
    extra = ExtraAttack.model_validate(entry)
    found = typed(extra.key, extra.setting)
    assert (found.norm, found.eps) == (norm, pytest.approx(eps))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return copy_pipeline(tmp_path_factory.mktemp("facts") / "work")


def test_normalization_is_not_invented_and_may_be_said(pipeline, monkeypatch, run):
    monkeypatch.chdir(pipeline)
    theirs = build(ModelSpec(**SMALL))
    torch.save(stored(theirs), "theirs.pt")
    command_line = ("prune", "E", "theirs.pt", "--setting", "0", "--out")
    assert run(*command_line, "plain.safetensors", "--no-normalize")[0] == 0
    assert run(*command_line, "usual.safetensors")[0] == 0
    plain, usual = (load_model(f"{name}.safetensors") for name in ("plain", "usual"))
    assert spec_of(plain).mean == (0.0,) != spec_of(usual).mean
    found = Repository(None).network(Path("usual.safetensors"), Network(normalize=False))
    assert spec_of(found).mean == (0.0,)
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(found(images), theirs.eval()(images))


def test_images_are_those_of_the_settings_that_are_there_now(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline)
    assert stage(pipeline, "prepare") == 0
    before = Repository(None).split("test")
    for key, value in (("profiles/digits/data/test_limit", 17), ("seed", 3)):
        change(pipeline, {key: value})
        split = Repository(None).split("test")
        assert not torch.equal(split.images[:17], before.images[:17])
    assert len(split.labels) == 17


def test_pictures_and_weights_are_noted_by_what_they_hold(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline)
    change(pipeline, {"profiles/digits/model/weights": {"standard": {"path": "given.pt"}}})
    change(pipeline, {"profiles/digits/data/source": "cifar10", "studies": {}})
    monkeypatch.setenv("ADVPRUNE_DATA", "link")
    notes = []
    for contents in (b"1", b"2"):  # of one size and time, behind one link
        Path("given.pt").write_bytes(contents)
        os.utime("given.pt", (0, 0))
        place = Path(f"pictures{contents.decode()}")
        place.mkdir()
        (place / "x.png").write_bytes(contents)
        Path("link").unlink(missing_ok=True)
        Path("link").symlink_to(place)
        assert stage(pipeline, "settings") == 0
        files = (Path("data/digits", f"{name}.json") for name in ("weights", "pictures"))
        notes.append([json.loads(file.read_text()) for file in files])
        data = DataSettings(source="cifar10")
        notes[-1].append(key_of(data, 0))
    assert all(one and one != other for one, other in zip(*notes, strict=True))


def test_code_that_dvc_does_not_watch_is_named(theirs, pipeline, monkeypatch, capsys):
    monkeypatch.chdir(pipeline)
    (pipeline / "theirs_facts.py").write_text(THEIRS)
    (pipeline / "networks" / "theirs_facts.py").write_text(THEIRS)
    change(pipeline, {"models": {}, "studies": {}, "profiles/digits/data/source": "digits"})
    change(pipeline, {"profiles/digits/model": {}})
    for factory, noted in (("theirs_facts:net", True), ("networks.theirs_facts:net", False)):
        change(pipeline, {"profiles/digits/model/factory": factory})
        assert stage(pipeline, "settings") == 0
        assert ("DVC does not watch" in capsys.readouterr().out) == noted


def test_a_network_that_is_larger_than_its_file_is_not_made(theirs):
    small = build(ModelSpec(**SMALL))
    vars(small)["spec"] = spec_of(small).model_copy(update={"stages": (16384,) * 4})
    save_model(small, theirs / "m.safetensors")
    with pytest.raises(UserError, match=r"does not fit .* has shape \[2\] where \[16384\]"):
        load_model(theirs / "m.safetensors")


@pytest.mark.parametrize("share", [None, "x", 2, -1, float("nan"), [0.5], 10**400, 0.5])
def test_a_card_that_makes_no_sense_is_not_believed(theirs, share):
    (theirs / "m.pt").write_bytes(b"m")
    card = {"sha256": sha256_of(theirs / "m.pt"), "prune_ratio": share, "setting": 3}
    (theirs / "m.json").write_text(json.dumps(card | {"growth": "x", "twin_agreement": "x"}))
    found = card_beside(theirs / "m.pt")
    assert (found["setting"], found["prune_ratio"]) == ((3, 0.5) if share == 0.5 else (None, None))
    assert found["growth"] is None and found["twin_agreement"] is None


# --- bad input to the stages: exit status 2, nothing half-written ---------------------------------
WEIGHTS = "runs/digits/dense-standard/model.safetensors"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A workspace with data and a dense network."""
    folder = copy_pipeline(tmp_path_factory.mktemp("errors") / "work")
    for words in (("prepare",), ("settings",), ("train", "dense-standard")):
        assert stage(folder, *words) == 0
    return folder


@pytest.fixture
def refused(prepared, tmp_path, monkeypatch, capsys):
    """In a copy of the prepared workspace, which is the current folder: the one line with which a
    stage refuses to work; nothing may have been written, but caches and work to resume."""
    folder, caches = tmp_path / "work", {"__pycache__", "checkpoints"}
    shutil.copytree(prepared, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("ADVPRUNE_DATA", raising=False)

    def files():
        return {p for p in folder.rglob("*") if p.is_file() and not caches & set(p.parts)}

    def line(*words):
        before, status = files(), stage(folder, *words)
        shown = capsys.readouterr().err.strip()
        message = shown.splitlines()[-1]
        assert status == 2 and message.startswith("error: ") and "Traceback" not in shown, shown
        assert files() == before
        return message

    return line


@pytest.mark.parametrize(
    ("name", "arguments", "key", "value", "words"),
    [
        ("prune", ("my-E",), "prune/mine", {"family": "E", "threshold": -1}, ["prune.mine: thr"]),
        ("prune", ("odd",), "prune/E", 1, ["odd is none of", "do: prune (E-standard, GAP"]),
        ("quantize", ("E-standard",), "prune/E", 1, ["do: quantize (GAP_int8)"]),
        ("train", ("odd",), "prune/E", 1, ["do: train (dense-standard, BNN-standard, GAP_copy"]),
        ("settings", (), "prune/GAPP", 1, ["prune.GAPP", "known: AWT, E, ESR, GAP"]),
        ("study", ("odd",), "prune/E", 1, ["no studies.odd", "sweep, curve, protocol"]),
        ("attack", ("dense-standard",), "profile", "cifar100", ["no profile 'cifar100'", "digits"]),
        ("attack", ("odd",), "prune/E", 1, ["no model 'odd'", "dense-standard, E-standard"]),
        ("attack", ("E-standard",), "prune/E", 1, ["no checkpoint", "E-standard", "dvc repro"]),
        ("attack", ("dense-standard",), "attack/score_draws", 20, ["attacks.json is not up to da"]),
        ("transfer", (), "prune/E", 1, ["no model of digits was attacked", "dvc repro"]),
        ("summarize", (), "prune/E", 1, ["no dense network has a records.parquet", "dvc repro"]),
    ],
)
def test_wrong_settings(refused, name, arguments, key, value, words):
    mine = {"do": "prune", "of": "dense-standard", "by": "prune.mine"}
    change(Path(), {"models/my-E": mine, "prune/mine": {"family": "E", "threshold": 0.5}})
    change(Path(), {key: value})
    message = refused(name, *arguments)
    assert all(word in message for word in words), message


def test_a_checkpoint_cut_in_half(refused):
    path = Path(WEIGHTS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = refused("prune", "E-standard"), refused("attack", "dense-standard")
    assert all(WEIGHTS in message and "damaged" in message for message in said)


def test_a_place_that_cannot_be_written(refused):
    shutil.rmtree("runs/digits")
    Path("runs/digits").write_text("a file where a folder should be")
    assert "cannot write runs/digits" in refused("train", "dense-standard")


def test_trainings_of_two_names_have_each_a_state_of_their_own(tmp_path, monkeypatch):
    """A substitute may have a surrogate's settings, and learns something else."""
    folder, known, recipe = copy_pipeline(tmp_path / "it"), [], {"method": "standard"}
    change(folder, {"recipes/other": recipe, "recipes/standard": recipe})
    for name in ("settings", "prepare"):
        assert stage(folder, name) == 0

    def noted(self, *settings, files):
        known.append((settings, tuple(files)))
        raise UserError("far enough")

    monkeypatch.setattr("common.Workspace.unfinished", noted)
    for name in ("standard", "other"):
        assert stage(folder, "train", f"dense-{name}") == 2
    assert len(set(map(str, known))) == 2
