"""Networks as they were trained: normalization and the size of pictures, from timm, torchvision,
the Hugging Face Hub or the command line; vision transformers and depthwise convolutions."""

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torchvision import models
from workspace import ROOT

from advprune import attacks
from advprune.attacks.engine import attack_copy
from advprune.cli.options import Network
from advprune.cli.repository import Images, Pictures, Repository
from advprune.core.errors import UserError
from advprune.core.hub import downloaded
from advprune.core.train_settings import ModelSettings, TrainSettings
from advprune.data import Split, to_float
from advprune.models.audit import audit
from advprune.models.checkpoint import load_model, save_model, stored
from advprune.models.foreign import check_answers, installed_timm
from advprune.models.preprocessing import for_channels, preprocessing_of
from advprune.models.spec import sites, spec_of
from advprune.pruning import Data, prune
from advprune.quantization.post_training import quantize, twin_agreement
from advprune.training.networks import spec_for
from conftest import FOREIGN, VIT, make_foreign, make_network

X = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
Y = torch.arange(8) % 10


@pytest.fixture
def pictures(tmp_path):
    """A folder of four pictures of other sizes and shapes, in ten classes."""
    generator = torch.Generator().manual_seed(2)
    for number, size in enumerate([(50, 40), (36, 90), (64, 64), (33, 47)]):
        pixels = torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8)
        folder = tmp_path / "pictures" / f"class {number}"
        folder.mkdir(parents=True)
        Image.fromarray(pixels.numpy()).save(folder / "a.png")
    for number in range(4, 10):
        (tmp_path / "pictures" / f"class {number}").mkdir()
    return tmp_path / "pictures"


def export(folder):
    """A small ViT of timm in evaluation mode, and its weights and config.json as timm writes them
    for the Hub."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model(VIT.partition("/")[2], num_classes=10, **FOREIGN[VIT]).eval()
    timm.models.save_for_hf(theirs, folder, model_args=FOREIGN[VIT], safe_serialization=True)
    return theirs


def test_a_vit_gives_the_logits_of_timm(pictures, tmp_path):
    theirs = export(tmp_path / "hub")
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(theirs, args={"img_size": 32})
    assert config["mean"] == (0.5, 0.5, 0.5) and config["crop_pct"] == 0.9
    given = create_transform(**config, is_training=False)
    files = sorted(pictures.glob("*/*.png"))
    place = Pictures(Network(), Images(data=pictures))
    model = place.network(tmp_path / "hub" / "model.safetensors")
    with torch.no_grad():
        wanted = theirs(torch.stack([given(Image.open(file)) for file in files]))
        split = place.split("test")
        found = model(to_float(split.images))
    assert split.shape == (3, 32, 32) and sorted(split.labels.tolist()) == [0, 1, 2, 3]
    assert torch.allclose(found, wanted[split.labels], atol=1e-5)
    assert not torch.allclose(found, theirs(to_float(split.images)), atol=1e-2)
    # Once stored by this library, the network still says how pictures become its images.
    save_model(model, tmp_path / "ours.safetensors")
    again = Pictures(Network(), Images(data=pictures))
    loaded = again.network(tmp_path / "ours.safetensors")
    assert torch.equal(loaded(to_float(again.split("test").images)), found)


@pytest.mark.parametrize("name", ["mobilenet_v2", "vit_b_16", "inception_v3"])
def test_torchvisions_transforms(name):
    weights = models.get_model_weights(name).DEFAULT
    how = preprocessing_of(f"torchvision/{name}", {})
    assert how is not None and how.fit is not None
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (300, 260, 3), generator=generator, dtype=torch.uint8)
    picture = Image.fromarray(pixels.numpy())
    image = torch.tensor(list(how.fit(picture).tobytes()), dtype=torch.uint8)
    image = to_float(image.view(*[how.fit(picture).height] * 2, 3).permute(2, 0, 1)[None])
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (how.mean, how.std))
    assert torch.allclose((image[0] - mean) / std, weights.transforms()(picture), atol=1e-5)


def test_weights_are_told_by_their_file():
    named = Path("anywhere/resnet50-0676ba61.pth")  # as torchvision's server calls the first
    sides = []
    for file in (named, Path("mine.pth")):
        how = preprocessing_of("torchvision/resnet50", {}, file)
        assert how is not None and how.fit is not None
        sides.append(how.fit.resize)
    assert sides == [256, 232]
    assert preprocessing_of("resnet18", {}) is preprocessing_of("a.b:c", {}) is None


def test_what_the_command_line_says_goes_first(pictures, tmp_path):
    export(tmp_path / "hub")
    file = tmp_path / "hub" / "model.safetensors"
    known = Network(mean="0.1,0.2,0.3", std="0.5", resize=36, crop=32)
    place = Pictures(known, Images(data=pictures))
    spec = spec_of(place.network(file, known))
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert spec.fit and (spec.fit.resize, spec.fit.interpolation) == (36, "bicubic")
    plain = Network(normalize=False)
    assert spec_of(Pictures(plain, Images(data=pictures)).network(file, plain)).mean == (0.0,) * 3
    save_model(place.network(file, known), tmp_path / "ours.safetensors")
    other = Network(mean="0", std="1")
    place = Pictures(other, Images(data=pictures))
    spec = spec_of(place.network(tmp_path / "ours.safetensors", other))
    assert spec.mean == (0.0,) * 3 and spec.fit and spec.fit.resize == 36
    torch.save(make_network(X).state_dict(), tmp_path / "plain.pt")  # nothing says its sizes
    place = Pictures(sized := Network(resize=36, crop=32), Images(data=pictures))
    spec = spec_of(place.network(tmp_path / "plain.pt", sized))
    assert spec.mean == (0.0,) * 3 and place.split("test").shape == (3, 32, 32)
    with pytest.raises(UserError, match="take pictures of other sizes; give --resize and --crop"):
        place.network(tmp_path / "hub" / "model.safetensors")
    for wrong, words in (
        (Network(mean="0.5"), "give --mean and --std together"),
        (Network(mean="a", std="1"), "--mean: write numbers"),
        (Network(mean="0.1,0.2", std="1"), "--mean: 2 numbers for 3 channels"),
        (Network(mean="0", std="0"), "std: a standard deviation is above 0"),
        (Network(options="[1]"), "--options: write a mapping"),
    ):
        with pytest.raises(UserError, match=words):
            Pictures(wrong, Images(data=pictures)).network(file, wrong)
    assert for_channels("--mean", (0.25, 0.5, 0.75), 1) == (0.5,)  # of grey images


def test_weights_of_a_profile_are_normalized_as_they_were_trained():
    split = Split((X * 255).byte(), Y, tuple("0123456789"), "test")
    settings = ModelSettings(architecture="torchvision/mobilenet_v2")
    assert spec_for(settings, split).mean != (0.485, 0.456, 0.406)
    assert spec_for(settings, split, Path("x.pth")).mean == (0.485, 0.456, 0.406)
    said = settings.model_copy(update={"mean": (0.5,), "std": (0.25,)})
    assert spec_for(said, split, Path("x.pth")).std == spec_for(said, split).std == (0.25,) * 3
    with pytest.raises(ValueError, match="one number for each channel"):
        ModelSettings(mean=(0.5,))


# --- the Hugging Face Hub ------------------------------------------------------------------------
def without_connection(monkeypatch, cache):
    """Only what lies in `cache` is found."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_a_checkpoint_of_the_hub(tmp_path, run, monkeypatch):
    cache = tmp_path / "cache"
    without_connection(monkeypatch, cache)
    for reference in ("hf:someone/tiny", "hf:someone/tiny@v2/weights.bin"):
        status, said, err = run("audit", reference)
        assert status == 2 and err.count("\n") == 1
        assert f"{reference}: the Hub cannot be reached, and the file was not downloaded" in err
    repository = cache / "models--someone--tiny"
    export(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    status, said, err = run("audit", "hf://someone/tiny")
    assert status == 0 and f"{VIT}, 3 channels, 10 classes (given)" in said
    assert downloaded("hf:someone/tiny/config.json").name == "config.json"
    with pytest.raises(UserError, match="write hf:owner/name"):
        downloaded("hf:tiny")


def test_packages_that_are_missing_are_asked_for(monkeypatch):
    for package in ("huggingface_hub", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub; .*advprune\[hub\]"):
        downloaded("hf:someone/tiny")
    with pytest.raises(UserError, match=r"timm/resnet10t needs .*pip install 'advprune\[timm\]'"):
        installed_timm("timm/resnet10t")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architecture": "../../evil"}, "no such architecture"),
        ({"model_args": {"checkpoint_path": "/etc/x"}}, "cannot be given as an option"),
        ({"pretrained_cfg": {"mean": "x", "input_size": [3, 8, 8]}}, "config.json: could not"),
        ({"pretrained_cfg": {"crop_pct": -0.0, "std": 3}}, "config.json: "),
    ],
)
def test_a_wrong_config_is_refused(tmp_path, change, words):
    export(tmp_path / "hub")
    place = tmp_path / "hub" / "config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    save_file({"a": X}, tmp_path / "a.safetensors")
    known = Network(channels=3, classes=10)
    split = Split((X * 255).byte(), Y, tuple("0123456789"), "test")
    monkey = Repository.__new__(Pictures)
    vars(monkey).update(first=split, channels=3, _images=split, fit=None, part="test")
    with pytest.raises(UserError, match=words):
        monkey.network(tmp_path / "hub" / "model.safetensors", known)


# --- vision transformers and depthwise convolutions ----------------------------------------------
FAMILIES = {
    **{"E": 0.02, "S": {"sigmas": 1, "gate": "none"}, "R": 0.1, "SAP": 1.0},
    **{"magnitude_global": {"sparsity": 0.5}, "gradient_layer": {"sparsity": 0.5}},
}


@pytest.mark.parametrize(("name", "places"), [(VIT, 2), ("torchvision/mobilenet_v2", 35)])
def test_what_is_measured_works_on_them(tmp_path, name, places):
    model = make_foreign(name, X)
    check_answers(model, (3, 32, 32))
    assert audit(stored(model), spec_of(model)).sound and len(sites(model)) == places
    data, before = Data(X, Y, TrainSettings(batch=4)), model(X)
    for family, setting in FAMILIES.items():
        pruned = prune(family, model, setting, data)
        assert pruned.notes.get("sites") == (places if family == "SAP" else None)
        save_model(pruned.model, tmp_path / "model.safetensors")
        logits = []
        for one in (pruned.model, load_model(tmp_path / "model.safetensors")):
            torch.manual_seed(0)
            logits.append(one(X))
        assert torch.equal(*logits) and not torch.equal(logits[0], before), family
    integers = quantize(model, X)
    assert spec_of(integers).quantization.left == () and twin_agreement(integers, X)[0] == 1
    gap = (integers(X) - before).abs().max() / before.abs().max()
    assert 0 < float(gap) < 0.1
    save_model(integers, tmp_path / "model.safetensors")
    assert torch.equal(load_model(tmp_path / "model.safetensors")(X), integers(X))
    assert torch.allclose(attack_copy(model, torch.device("cpu"))(X), before, rtol=1e-3, atol=1e-4)
    for target in (model, integers):
        adv = attacks.pgd(target, X, Y, eps=0.1, step=0.02, steps=5)
        assert 0 < float((adv - X).abs().max()) <= 0.1 + 1e-6
    adv, loss = attacks.pgd(model, X, Y, eps=0.1, step=0.02, steps=5), nn.CrossEntropyLoss()
    assert loss(model(adv), Y) > loss(before, Y)


# --- docs/own-model.md ---------------------------------------------------------------------------
GUIDE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^advprune (?!.*theirs|.*runs/)(.+)$", GUIDE, re.MULTILINE)


@pytest.fixture
def followed(tmp_path, pictures, monkeypatch):
    """The folder in which the guide's commands are run."""
    monkeypatch.chdir(tmp_path)
    export(tmp_path / "vit")
    network = make_foreign("torchvision/mobilenet_v2", X).get_submodule("network")
    torch.save(network.state_dict(), tmp_path / "mobilenet.pt")
    for folder in pictures.iterdir():
        for number in range(4):
            image = Image.fromarray((X[number % 8].permute(1, 2, 0) * 255).byte().numpy())
            image.resize((40, 50)).save(folder / f"{number}.png")
        (folder / "a.png").unlink(missing_ok=True)
    return tmp_path


def test_the_commands_of_the_guide(followed, run, monkeypatch):
    without_connection(monkeypatch, followed)
    repository = followed / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(followed / "vit", repository / "snapshots" / ("0" * 40))
    seen = []

    def only_answers(subjects, split, *_):  # attacks would take long
        images = to_float(split.images[:2])
        seen.append(([one.network(images) for one in subjects], split.shape))

    monkeypatch.setattr("advprune.benchmarking.measured", only_answers)
    monkeypatch.setattr("advprune.cli.findings.print_found", lambda *_: None)
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        status, said, err = run(*shlex.split(command))
        assert status == 0, err
    assert said.endswith("sound\n") and (followed / "small.json").is_file()
    (alone,), (dense, again), (by_name,), (told,) = (logits for logits, _ in seen)
    assert torch.equal(alone, dense) and torch.equal(alone, again)
    assert [shape for _, shape in seen] == [(3, 32, 32)] * 2 + [(3, 224, 224), (3, 32, 32)]
    assert by_name.shape == told.shape == (2, 10)
