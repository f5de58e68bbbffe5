"""Networks and checkpoints: sizes, exact round trips, and refusals that name the fault."""

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from advprune.core.errors import UserError
from advprune.models.card import inert_of, met
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.spec import ModelSpec, sites, spec_of
from advprune.models.weights import load_foreign

GREY = {"channels": 1, "mean": (0.5,), "std": (0.25,)}


def spec(**changes):
    """A small ResNet20 for three channels."""
    base = {"architecture": "resnet20", "width": 4, "channels": 3, "classes": 5}
    return ModelSpec(**(base | {"mean": (0.5,) * 3, "std": (0.2,) * 3} | changes))


def test_sizes_are_the_published_ones():
    resnet18 = build(spec(architecture="resnet18", width=64, classes=10))
    assert sum(p.numel() for p in resnet18.parameters()) == 11_173_962
    sizes = {n: p.numel() for n, p in build(spec(width=16, classes=10)).named_parameters()}
    shortcuts = sum(size for name, size in sizes.items() if "shortcut" in name)
    assert sum(sizes.values()) - shortcuts == 269_722  # He et al. have no shortcut weights
    assert shortcuts == 16 * 32 + 32 * 64 + 2 * 96


@pytest.mark.parametrize("side", [4, 8, 33])
@pytest.mark.parametrize("changes", [{}, GREY])
def test_any_image_size_and_channels(side, changes):
    model = build(spec(**changes))
    assert model(torch.rand(2, model.spec.channels, side, side)).shape == (2, 5)


def test_strides_are_a_setting_that_older_files_do_not_hold(tmp_path):
    """Without it a ResNet18 ends at 1x1 on images of 8x8, and 62 % of its weights meet padding."""
    grey = GREY | {"architecture": "resnet18"}
    usual, ours = spec(**grey), spec(**grey, strides=(2, 2, 1, 1))
    assert "strides" not in usual.model_dump_json()
    assert usual.steps == (1, 2, 2, 2) and spec().steps == (1, 2, 2)
    model, shape = build(ours), (1, 8, 8)
    assert (round(inert_of(build(usual), shape), 2), inert_of(model, shape)) == (0.61, 0)
    save_model(model, tmp_path / "model")
    assert spec_of(load_model(tmp_path / "model")) == ours
    sides = []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda *given: sides.append(given[2].shape[-1]))
    model(torch.rand(1, *shape))
    assert sides == [4, 2, 2, 2]
    with pytest.raises(ValidationError, match="resnet18 has 4 stages, not 3"):
        spec(**grey, strides=(1, 2, 2))
    with pytest.raises(ValidationError, match="has no strides"):
        spec(architecture="torchvision/resnet18", width=0, strides=(1, 2, 2, 2))


@pytest.mark.parametrize(
    ("layer", "side", "expected"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), 1, [[0, 0, 0], [0, 1, 0], [0, 0, 0]]),
        (nn.Conv2d(1, 1, 4, padding="same"), 1, [[0] * 4, [0, 1, 0, 0], [0] * 4, [0] * 4]),
        (nn.Conv2d(1, 1, (1, 3), padding=(0, 3), dilation=3), 2, [[0, 1, 0]]),
        (nn.Conv2d(1, 1, (1, 4), padding=(0, 1), stride=4), 2, [[0, 1, 1, 0]]),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), 2, None),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding")
def test_idle_places_by_hand(layer, side, expected):
    found = met(nn.Sequential(layer), (1, side, side))
    assert [places.int().tolist() for places in found.values()] == ([expected] if expected else [])


def test_the_parts_of_a_network(network):
    assert len(sites(network)) == 17  # activations: the stem's and two in each of eight blocks
    model = build(spec(**GREY))  # normalization is inside the model
    assert torch.equal(model.normalize(torch.full((1, 1, 2, 2), 0.75)), torch.ones(1, 1, 2, 2))
    assert not any("normalize" in name for name in model.state_dict())


def test_a_saved_model_comes_back_exactly(network, digits, tmp_path):
    for name in ("a/one", "a/two"):
        save_model(network, tmp_path / name)
    assert (tmp_path / "a" / "one").read_bytes() == (tmp_path / "a" / "two").read_bytes()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"one", "two"}  # nothing half-written
    loaded = load_model(tmp_path / "a" / "one")
    assert torch.equal(loaded(digits[0]), network(digits[0]))
    assert spec_of(loaded) == spec_of(network)
    assert not any(module.training for module in loaded.modules())


def say(old, new):
    return lambda tensors, header: header.update(spec=header["spec"].replace(old, new))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (say('"width":4', '"width":8'), "another width"),
        (lambda tensors, header: header.clear(), "no model spec"),
        (lambda tensors, header: header.update(spec="{"), "the model spec: Invalid JSON"),
        (say("resnet18", "vgg"), "the model spec: architecture: there is no such"),
        (say('"quantization":null', '"inner":[2]'), "the model spec: inner: .* 8 blocks, not 1"),
        (say('"layers":[]', '"layers":[{"kind":"os.system"}]'), "unknown kind 'os.system'"),
    ],
)
def test_what_is_not_the_network_of_the_header_is_refused(network, tmp_path, spoil, words):
    save_model(network, path := tmp_path / "model.safetensors")
    tensors, header = load_file(path), {"spec": spec_of(network).model_dump_json()}
    spoil(tensors, header)
    save_file(tensors, path, header)
    with pytest.raises(UserError, match=words):
        load_model(path)


def test_foreign_weights_are_mapped(network, tmp_path):
    """The network as somebody else would store it: other names, a prefix, a wrapping."""
    path, own = tmp_path / "theirs.pt", spec_of(network)
    theirs = {
        "module." + n.replace("shortcut", "downsample").replace("linear", "fc"): t
        for n, t in network.state_dict().items()
    }
    torch.save({"state_dict": theirs, "epoch": 3}, path)
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(load_foreign(own, str(path), None)(images), network(images))
    with pytest.raises(UserError, match="sha256"):
        load_foreign(own, str(path), "0" * 64)
    theirs["module.head"] = theirs.pop("module.fc.weight")
    torch.save(theirs, path)
    with pytest.raises(UserError, match=r"missing: linear.weight .*; left over: head"):
        load_foreign(own, str(path), None)
