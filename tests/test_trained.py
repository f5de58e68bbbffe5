"""Networks of others as they were trained: timm, torchvision, the Hub, benchmarks."""

import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision import models
from workspace import ROOT

from advprune import attacks
from advprune.attacks.engine import attack_copy
from advprune.cli.findings import figures
from advprune.cli.options import Network
from advprune.cli.repository import Images, Pictures
from advprune.core.errors import UserError
from advprune.core.hub import downloaded
from advprune.core.train_settings import ModelSettings, TrainSettings
from advprune.data import Split, to_float
from advprune.models.audit import audit
from advprune.models.benchmarks import recognized
from advprune.models.checkpoint import build, save_model, stored
from advprune.models.foreign import check_answers, installed_timm
from advprune.models.preprocessing import for_channels, preprocessing_of
from advprune.models.spec import ModelSpec, sites, spec_of
from advprune.models.weights import load_foreign
from advprune.pruning import Data, prune
from advprune.quantization.post_training import quantize, twin_agreement
from advprune.training.networks import spec_for
from conftest import FOREIGN, VIT, make_foreign, make_network, same_when_stored

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

    def read(path=file, **given):
        place = Pictures(Network(**given), Images(data=pictures))
        return place.network(path, Network(**given)), place

    model, _ = read(mean="0.1,0.2,0.3", std="0.5", resize=36, crop=32)
    spec = spec_of(model)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert spec.fit and (spec.fit.resize, spec.fit.interpolation) == (36, "bicubic")
    assert spec_of(read(normalize=False)[0]).mean == (0.0,) * 3
    save_model(model, tmp_path / "ours.safetensors")
    spec = spec_of(read(tmp_path / "ours.safetensors", mean="0", std="1")[0])
    assert spec.mean == (0.0,) * 3 and spec.fit and spec.fit.resize == 36
    torch.save(make_network(X).state_dict(), tmp_path / "plain.pt")  # nothing says its sizes
    model, place = read(tmp_path / "plain.pt", resize=36, crop=32)
    assert spec_of(model).mean == (0.0,) * 3 and place.split("test").shape == (3, 32, 32)
    with pytest.raises(UserError, match="take pictures of other sizes; give --resize and --crop"):
        place.network(file)
    for wrong, words in (
        ({"mean": "0.5"}, "give --mean and --std together"),
        ({"mean": "a", "std": "1"}, "--mean: write numbers"),
        ({"mean": "0.1,0.2", "std": "1"}, "--mean: 2 numbers for 3 channels"),
        ({"mean": "0", "std": "0"}, "std: a standard deviation is above 0"),
        ({"options": "[1]"}, "--options: write a mapping"),
    ):
        with pytest.raises(UserError, match=words):
            read(**wrong)
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
@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The only place where files of the Hub are found: `someone/tiny`, a ViT."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--someone--tiny"
    export(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return repository / "snapshots" / ("0" * 40)


def test_a_checkpoint_of_the_hub(hub, run):
    status, said, err = run("audit", "hf://someone/tiny")
    assert status == 0 and f"{VIT}, 3 channels, 10 classes (given)" in said
    assert downloaded("hf:someone/tiny/config.json").name == "config.json"
    for reference in ("hf:someone/other", "hf:someone/tiny@v2/weights.bin"):
        status, said, err = run("audit", reference)
        assert status == 2 and err.count("\n") == 1
        assert f"{reference}: the Hub cannot be reached, and the file was not downloaded" in err
    with pytest.raises(UserError, match="write hf:owner/name"):
        downloaded("hf:tiny")


def test_the_hub_is_asked_only_for_what_was_not_downloaded_before(hub, monkeypatch):
    asked = []

    def download(filename, local_files_only, **_):
        asked.append(local_files_only)
        return str(hub / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert downloaded("hf:someone/tiny") == hub / "model.safetensors" and all(asked)
    (hub / "config.json").unlink()  # the connection broke between the two files
    asked.clear()
    assert downloaded("hf:someone/tiny") == hub / "model.safetensors" and not asked[-1]


def test_packages_that_are_missing_are_asked_for(monkeypatch):
    for package in ("huggingface_hub", "timm"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"needs the package huggingface_hub; .*advprune\[hub\]"):
        downloaded("hf:someone/tiny")
    with pytest.raises(UserError, match=r"timm/resnet10t needs .*pip install 'advprune\[timm\]'"):
        installed_timm("timm/resnet10t")


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
        same_when_stored(pruned.model, X, tmp_path)
        assert not torch.equal(pruned.model(X), before), family
    integers = quantize(model, X)
    assert spec_of(integers).quantization.left == () and twin_agreement(integers, X)[0] == 1
    gap = (integers(X) - before).abs().max() / before.abs().max()
    assert 0 < float(gap) < 0.1
    same_when_stored(integers, X, tmp_path)
    assert torch.allclose(attack_copy(model, torch.device("cpu"))(X), before, rtol=1e-3, atol=1e-4)
    for target in (model, integers):
        adv = attacks.pgd(target, X, Y, eps=0.1, step=0.02, steps=5)
        assert 0 < float((adv - X).abs().max()) <= 0.1 + 1e-6
    adv, loss = attacks.pgd(model, X, Y, eps=0.1, step=0.02, steps=5), nn.CrossEntropyLoss()
    assert loss(model(adv), Y) > loss(before, Y)


# --- docs/own-model.md ---------------------------------------------------------------------------
GUIDE = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^advprune (?!.*theirs|.*runs/)(.+)$", GUIDE, re.MULTILINE)


def test_the_commands_of_the_guide(hub, tmp_path, pictures, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(hub, tmp_path / "vit")
    network = make_foreign("torchvision/mobilenet_v2", X).get_submodule("network")
    torch.save(network.state_dict(), tmp_path / "mobilenet.pt")
    for folder in pictures.iterdir():
        for number in range(4):
            image = Image.fromarray((X[number].permute(1, 2, 0) * 255).byte().numpy())
            image.resize((40, 50)).save(folder / f"{number}.png")
        (folder / "a.png").unlink(missing_ok=True)
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
    assert said.endswith("sound\n") and (tmp_path / "small.json").is_file()
    (alone,), (dense, again), (by_name,), (told,) = (logits for logits, _ in seen)
    assert torch.equal(alone, dense) and torch.equal(alone, again)
    assert [shape for _, shape in seen] == [(3, 32, 32)] * 2 + [(3, 224, 224), (3, 32, 32)]
    assert by_name.shape == told.shape == (2, 10)


# --- checkpoints in the format of RobustBench and AdversarialPruningBenchmark ---------------------
class File(dict[str, torch.Tensor]):
    """The tensors of a file, drawn when a forward pass first asks for them by name and shape."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def tensor(self, name, *shape, low=-1.0, high=1.0):
        drawn = torch.rand(shape, generator=self.generator) * (high - low) + low
        return self.setdefault(name, drawn)

    def conv(self, x, name, out, side=3, stride=1, bias=False):
        fan = x.shape[1] * side**2
        weight = self.tensor(f"{name}.weight", out, x.shape[1], side, side) / fan**0.5
        self[f"{name}.weight"] = weight
        shift = self.tensor(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, shift, stride, side // 2)

    def norm(self, x, name):
        count = x.shape[1]
        weight, bias = self.tensor(f"{name}.weight", count), self.tensor(f"{name}.bias", count)
        mean = self.tensor(f"{name}.running_mean", count)
        spread = self.tensor(f"{name}.running_var", count, low=0.5, high=2)
        self[f"{name}.num_batches_tracked"] = torch.tensor(7)
        return F.batch_norm(x, mean, spread, weight, bias)

    def linear(self, x, name, out):
        weight = self.tensor(f"{name}.weight", out, x.shape[1])
        return F.linear(x, weight, self.tensor(f"{name}.bias", out))


def preactivated(f, x, name, out, stride, shortcut, early):
    h = F.relu(f.norm(x, f"{name}.bn1"))
    if stride > 1 or out != x.shape[1]:
        x = f.conv(x if early else h, f"{name}.{shortcut}", out, 1, stride)
    h = f.conv(h, f"{name}.conv1", out, 3, stride)
    return x + f.conv(F.relu(f.norm(h, f"{name}.bn2")), f"{name}.conv2", out)


def wide(f, x):
    """WideResNet-16-2."""
    h = f.conv(x, "conv1", 16)
    for block, stride in ((1, 1), (2, 2), (3, 2)):
        for layer in (0, 1):
            place, out = f"block{block}.layer.{layer}", 16 * 2**block
            h = preactivated(f, h, place, out, 1 if layer else stride, "convShortcut", False)
    return f.linear(F.relu(f.norm(h, "bn1")).mean((2, 3)), "fc", 10)


def preact(f, x, norm):
    h = f.conv(x, "conv1", 8)
    for stage in (1, 2, 3, 4):
        for place in (0, 1):
            stride, out = 2 if stage > 1 and not place else 1, 4 * 2**stage
            name = f"layer{stage}.{place}"
            h = preactivated(f, h, name, out, stride, "shortcut.0", early=not norm)
    h = F.relu(f.norm(h, "bn")) if norm else h
    return f.linear(h.mean((2, 3)), "linear", 10)


def vgg(f, x, hidden, bias=True, pwoa=False):
    index, widths = 0, ((4, 4), (8, 8), (16,) * 3, (32,) * 3, (32,) * 3)
    for stage, outs in enumerate(widths):
        for place, out in enumerate(outs):
            name = f"layer{stage + 1}.{place}" if pwoa else "features"
            first, second = (0, 1) if pwoa else (index, index + 1)
            h = f.conv(x, f"{name}.{first}", out, bias=bias)
            x, index = F.relu(f.norm(h, f"{name}.{second}")), index + 3
        x, index = F.max_pool2d(x, 2) if stage < 4 or not hidden else x, index + 1
    x = x.flatten(1)
    if not hidden:
        return f.linear(x, "classifier", 10)
    names = ("layer6.0", "layer7.0", "layer8") if pwoa else [f"classifier.{n}" for n in (0, 2, 4)]
    for name in names[:2]:
        x = F.relu(f.linear(x, name, hidden))
    return f.linear(x, names[2], 10)


PREACT, VGG = "cifar/preact_resnet18", "cifar/vgg16"
KINDS = {
    "RobustBench's WRN": (wide, "cifar/wide_resnet", {"depth": 16, "widen": 2}),
    **{
        name: (partial(preact, norm=norm), PREACT, {"width": 8, "norm": norm})
        for name, norm in (("RobustBench's PreAct", False), ("FlyingBird's ResNet18", True))
    },
    "FlyingBird's VGG16": (partial(vgg, hidden=0, bias=True), VGG, {"hidden": 0, "bias": True}),
    "HYDRA's VGG16": (partial(vgg, hidden=6, bias=False), VGG, {"hidden": 6, "bias": False}),
    "PwoA's VGG16": (partial(vgg, hidden=6, pwoa=True), VGG, {"hidden": 6, "bias": True}),
}


@pytest.fixture(scope="module")
def ten_pictures(tmp_path_factory):
    """Ten classes, one picture of 32x32 in each."""
    place = tmp_path_factory.mktemp("data") / "pictures"
    pixels = torch.randint(256, (10, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    for number, image in enumerate(pixels.to(torch.uint8)):
        (place / f"c{number}").mkdir(parents=True)
        Image.fromarray(image.numpy()).save(place / f"c{number}" / "a.png")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_of_a_file(tmp_path, ten_pictures, kind):
    forward, architecture, options = KINDS[kind]
    images = to_float(Pictures(Network(), Images(data=ten_pictures)).split("test").images)
    file = File()
    forward(file, images)
    wanted = forward(file, images)
    torch.save({"net": {f"module.{name}": t for name, t in file.items()}}, tmp_path / "a.pth")
    model = Pictures(Network(), Images(data=ten_pictures)).network(tmp_path / "a.pth")
    spec = spec_of(model)
    options = options | ({"width": 4} if architecture == VGG else {})
    assert (spec.architecture, spec.options, spec.classes) == (architecture, options, 10)
    largest = float(wanted.abs().max())
    with torch.no_grad():
        assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-4 * largest)
    same = load_foreign(spec, str(tmp_path / "a.pth"), None)
    assert torch.equal(same(images), model(images))
    small = prune("filters", model, {"fraction": 0.5, "small": True}, (images, torch.arange(10)))
    same_when_stored(small.model, images, tmp_path)


def test_published_numbers_of_parameters():
    sizes = {"channels": 3, "classes": 10, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    for name, options, count in (
        ("wide_resnet", {}, 36_479_194),
        ("preact_resnet18", {"norm": False}, 11_171_146),
        ("vgg16", {}, 14_728_266),
    ):
        with torch.device("meta"):
            model = build(ModelSpec(architecture=f"cifar/{name}", options=options, **sizes))
        assert sum(p.numel() for p in model.parameters()) == count


def test_what_a_file_holds_besides(tmp_path, ten_pictures, run):
    file, place = File(), tmp_path / "a.pt"
    wide(file, torch.zeros(1, 3, 32, 32))
    unused = {f"sub_{n}": t for n, t in file.items() if n.startswith("block1.")}
    torch.save({"state_dict": file | unused}, place)
    status, said, _ = run("audit", place)
    assert status == 0 and said.endswith("sound\n")
    assert "cifar/wide_resnet, 3 channels, 10 classes (given)" in said
    assert f"note: {len(unused)} tensors were left out that the network does not use" in said
    weights = {n: t for n, t in file.items() if t.ndim == 4}
    scores = {n.replace("weight", "popup_scores"): torch.rand(t.shape) for n, t in weights.items()}
    torch.save({"state_dict": file | scores}, place)
    status, said, _ = run("audit", place, "--keep", "0.1")
    assert status == 0 and f"{len(weights)} masks were applied" in said
    buffers = {"mu": torch.tensor([0.4, 0.5, 0.6]), "sigma": torch.tensor([0.1, 0.2, 0.3])}
    torch.save({**file} | {n: t.view(1, 3, 1, 1) for n, t in buffers.items()}, place)
    spec = spec_of(Pictures(Network(), Images(data=ten_pictures)).network(place))
    assert torch.allclose(torch.tensor([spec.mean, spec.std]), torch.stack([*buffers.values()]))
    del file["block2.layer.1.bn2.bias"]
    torch.save({**file}, place)
    status, said, _ = run("audit", place)
    assert status == 1 and "fault: missing: network.block2.layer.1.bn2.bias [64]" in said


def test_other_networks_are_none_of_them():
    for other in (models.vgg16_bn, models.resnet18):
        with torch.device("meta"):
            assert recognized(other().state_dict()) is None
    sizes = {"channels": 3, "classes": 10, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    with pytest.raises(UserError, match="cifar has no network 'vgg19'; known: wide_resnet"):
        build(ModelSpec(architecture="cifar/vgg19", **sizes))
    with pytest.raises(UserError, match="depth is 10, 16, 22"):
        build(ModelSpec(architecture="cifar/wide_resnet", options={"depth": 11}, **sizes))


def test_published_figures():
    hydra = figures()["robustbench/Sehwag2020Hydra"]
    assert (hydra["clean_accuracy"], hydra["robust_accuracy"]) == (0.8898, 0.5714)
    assert all(
        1 > one["clean_accuracy"] > one["robust_accuracy"] > 0.1 for one in figures().values()
    )


@pytest.mark.usefixtures("short_attacks")
def test_the_commands_of_the_guide_on_their_checkpoint(tmp_path, ten_pictures, run, monkeypatch):
    text = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    commands = re.findall(r"^advprune (.*theirs\.pt.*)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(ten_pictures)
    file = File()
    vgg(file, torch.zeros(1, 3, 32, 32), 6, bias=False)
    torch.save({"state_dict": {**file}}, tmp_path / "theirs.pt")
    audited, evaluated = commands
    status, said, err = run(*audited.split())
    assert status == 0 and said.endswith("sound\n")
    status, said, err = run(*evaluated.split(), "--images", "2")
    assert status == 0 and "verdict: " in said
    assert re.search(r"robust +[\d.]+ +57\.1", said)
    assert "beside: RobustBench, model_info/cifar10/Linf at commit 78fcc9e" in said
    status, said, err = run(*evaluated.replace("2020", "2021").split())
    assert status == 2 and "there are figures of robustbench/Sehwag2020Hydra, " in err
