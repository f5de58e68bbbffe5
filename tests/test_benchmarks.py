"""Checkpoints in the format of RobustBench and AdversarialPruningBenchmark: recognized, audited and
evaluated, against a forward pass written from the papers' formulas and the files' names alone."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision import models
from workspace import ROOT

from advprune.cli.findings import figures
from advprune.cli.options import Network
from advprune.cli.repository import Images, Pictures
from advprune.core.errors import UserError
from advprune.data import to_float
from advprune.models.benchmarks import recognized
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.spec import ModelSpec, spec_of
from advprune.models.weights import load_foreign
from advprune.pruning import prune


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


def vgg(f, x, hidden, bias, pwoa=False):
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


Forward = Callable[[File, torch.Tensor], torch.Tensor]
PREACT, VGG = "cifar/preact_resnet18", "cifar/vgg16"
KINDS = {
    "RobustBench's WRN": (wide, "cifar/wide_resnet", {"depth": 16, "widen": 2}),
    "RobustBench's PreAct": (partial(preact, norm=False), PREACT, {"width": 8, "norm": False}),
    "FlyingBird's ResNet18": (partial(preact, norm=True), PREACT, {"width": 8, "norm": True}),
    "FlyingBird's VGG16": (partial(vgg, hidden=0, bias=True), VGG, {"hidden": 0, "bias": True}),
    "HYDRA's VGG16": (partial(vgg, hidden=6, bias=False), VGG, {"hidden": 6, "bias": False}),
    "PwoA's VGG16": (
        partial(vgg, hidden=6, bias=True, pwoa=True),
        VGG,
        {"hidden": 6, "bias": True},
    ),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Ten classes, one picture of 32x32 in each."""
    place = tmp_path_factory.mktemp("data") / "pictures"
    pixels = torch.randint(256, (10, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    for number, image in enumerate(pixels.to(torch.uint8)):
        (place / f"c{number}").mkdir(parents=True)
        Image.fromarray(image.numpy()).save(place / f"c{number}" / "a.png")
    return place


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_of_a_file(tmp_path, pictures, kind):
    forward, architecture, options = KINDS[kind]
    images = to_float(Pictures(Network(), Images(data=pictures)).split("test").images)
    file = File()
    forward(file, images)
    wanted = forward(file, images)
    torch.save({"net": {f"module.{name}": t for name, t in file.items()}}, tmp_path / "a.pth")
    model = Pictures(Network(), Images(data=pictures)).network(tmp_path / "a.pth")
    spec = spec_of(model)
    options = options | ({"width": 4} if architecture == VGG else {})
    assert (spec.architecture, spec.options, spec.classes) == (architecture, options, 10)
    largest = float(wanted.abs().max())
    with torch.no_grad():
        assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-4 * largest)
    same = load_foreign(spec, str(tmp_path / "a.pth"), None)
    assert torch.equal(same(images), model(images))
    small = prune("filters", model, {"fraction": 0.5, "small": True}, (images, torch.arange(10)))
    save_model(small.model, tmp_path / "small.safetensors")
    assert torch.equal(load_model(tmp_path / "small.safetensors")(images), small.model(images))


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("wide_resnet", {}, 36_479_194),
        ("preact_resnet18", {"norm": False}, 11_171_146),
        ("vgg16", {}, 14_728_266),
    ],
)
def test_published_numbers_of_parameters(name, options, count):
    sizes = {"channels": 3, "classes": 10, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    with torch.device("meta"):
        model = build(ModelSpec(architecture=f"cifar/{name}", options=options, **sizes))
    assert sum(p.numel() for p in model.parameters()) == count


def test_what_a_file_holds_besides(tmp_path, pictures, run):
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
    spec = spec_of(Pictures(Network(), Images(data=pictures)).network(place))
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


def test_the_commands_of_the_guide(tmp_path, pictures, run, monkeypatch):
    text = (ROOT / "docs" / "own-model.md").read_text(encoding="utf-8")
    commands = re.findall(r"^advprune (.*theirs\.pt.*)$", text, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(pictures)
    file = File()
    vgg(file, torch.zeros(1, 3, 32, 32), 6, bias=False)
    torch.save({"state_dict": {**file}}, tmp_path / "theirs.pt")
    audited, evaluated = commands
    status, said, err = run(*audited.split())
    assert status == 0 and said.endswith("sound\n")
    status, said, err = run(*evaluated.split(), "--images", "2")
    assert status == 0 and "verdict: " in said
    assert re.search(r"robust +[\d.]+ +57\.1 +other images", said)
    assert "beside: RobustBench, model_info/cifar10/Linf at commit 78fcc9e" in said
    status, said, err = run(*evaluated.replace("2020", "2021").split())
    assert status == 2 and "is no file, and none of robustbench/Sehwag2020Hydra" in err
