"""Facts that may not be lost on the way: buffers of a network's own, normalization, norms of
attacks, the data and code that a result is from, and how a command ended."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from workspace import change, copy_pipeline, stage

from advprune.cli.app import main
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


def spec(function="net"):
    known = {"channels": 1, "classes": 10, "mean": (0.0,), "std": (1.0,)}
    return ModelSpec(architecture=f"theirs_facts:{function}", **known)


def test_masks_and_equal_buffers_of_the_network_itself_are_no_faults(theirs):
    model = build(spec(), "theirs_facts:net")
    found = audit(stored(model), spec(), factory="theirs_facts:net")
    assert found.sound, found.faults
    tensors = stored(model) | {"network.0.weight_mask": torch.ones(1, 1, 3, 3)}
    assert audit(tensors, spec(), factory="theirs_facts:net").notes[0].startswith("1 masks")


def command(*arguments):
    sys.argv = ["advprune", *map(str, arguments)]
    with pytest.raises(SystemExit) as ending:
        main()
    return int(ending.value.code or 0)


def test_what_the_users_code_does_is_no_answer(theirs, capsys):
    save_model(build(spec(), "theirs_facts:net"), theirs / "m.safetensors")
    options = "m.safetensors", "--factory"
    assert command("audit", *options, "theirs_facts:net") == 0
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
    from advprune.attacks.registry import typed

    extra = ExtraAttack.model_validate(entry)
    found = typed(extra.key, extra.setting)
    assert (found.norm, found.eps) == (norm, pytest.approx(eps))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return copy_pipeline(tmp_path_factory.mktemp("facts") / "work")


def test_normalization_is_not_invented_and_may_be_said(pipeline, monkeypatch):
    monkeypatch.chdir(pipeline)
    known = {"architecture": "resnet20", "width": 2, "channels": 1, "classes": 10}
    theirs = build(ModelSpec(**known, mean=(0.0,), std=(1.0,)))
    torch.save(stored(theirs), "theirs.pt")
    command_line = ("prune", "E", "theirs.pt", "--setting", "0", "--out")
    assert command(*command_line, "plain.safetensors", "--no-normalize") == 0
    assert command(*command_line, "usual.safetensors") == 0
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
    small = build(
        ModelSpec(architecture="resnet20", width=2, channels=1, classes=10, mean=(0.0,), std=(1.0,))
    )
    vars(small)["spec"] = spec_of(small).model_copy(update={"stages": (16384,) * 4})
    save_model(small, theirs / "m.safetensors")
    with pytest.raises(UserError, match=r"the header's network has \d+ numbers, the file \d+"):
        load_model(theirs / "m.safetensors")


@pytest.mark.parametrize("share", [None, "x", 2, -1, float("nan"), [0.5], 10**400, 0.5])
def test_a_card_that_makes_no_sense_is_not_believed(theirs, share):
    (theirs / "m.pt").write_bytes(b"m")
    card = {"sha256": sha256_of(theirs / "m.pt"), "prune_ratio": share, "setting": 3}
    (theirs / "m.json").write_text(json.dumps(card | {"growth": "x", "twin_agreement": "x"}))
    found = card_beside(theirs / "m.pt")
    assert (found["setting"], found["prune_ratio"]) == ((3, 0.5) if share == 0.5 else (None, None))
    assert found["growth"] is None and found["twin_agreement"] is None
