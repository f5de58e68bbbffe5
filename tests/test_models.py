"""Networks and checkpoints: sizes, exact round trips, faults named, zeros counted, masks."""

import argparse

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from advprune.core.errors import UserError
from advprune.models.audit import audit
from advprune.models.card import inert_of, reached_places, sparsity_of
from advprune.models.checkpoint import build, fill, load_model, save_model, stored
from advprune.models.resnet import initialize
from advprune.models.spec import ModelSpec, sites, spec_of
from advprune.models.tensor_file import canonical, naming, read_weights
from advprune.models.weights import load_foreign, plain
from advprune.quantization.post_training import quantize
from conftest import same_when_stored

GREY = {"channels": 1, "mean": (0.5,), "std": (0.25,)}


def spec(**changes):
    """A small ResNet20 for three channels."""
    base = {"architecture": "resnet20", "width": 4, "channels": 3, "classes": 5}
    return ModelSpec(**(base | {"mean": (0.5,) * 3, "std": (0.2,) * 3} | changes))


def test_sizes_and_parts_are_the_published_ones(network):
    resnet18 = build(spec(architecture="resnet18", width=64, classes=10))
    assert sum(p.numel() for p in resnet18.parameters()) == 11_173_962
    sizes = {n: p.numel() for n, p in build(spec(width=16, classes=10)).named_parameters()}
    shortcuts = sum(size for name, size in sizes.items() if "shortcut" in name)
    assert sum(sizes.values()) - shortcuts == 269_722  # He et al. have no shortcut weights
    assert shortcuts == 16 * 32 + 32 * 64 + 2 * 96
    assert len(sites(network)) == 17  # activations: the stem's and two in each of eight blocks
    model = build(spec(**GREY))  # normalization is inside the model
    assert torch.equal(model.normalize(torch.full((1, 1, 2, 2), 0.75)), torch.ones(1, 1, 2, 2))
    assert not any("normalize" in name for name in model.state_dict())


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
    found = reached_places(nn.Sequential(layer), (1, side, side))
    assert [places.int().tolist() for places in found.values()] == ([expected] if expected else [])


def test_a_saved_model_comes_back_exactly(network, digits, tmp_path):
    for name in ("a/one", "a/two"):
        save_model(network, tmp_path / name)
    assert (tmp_path / "a" / "one").read_bytes() == (tmp_path / "a" / "two").read_bytes()
    assert {p.name for p in (tmp_path / "a").iterdir()} == {"one", "two"}  # nothing half-written
    loaded = same_when_stored(network, digits[0], tmp_path)
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


# --- the audit of checkpoints ---------------------------------------------------------------------
CONV = "layer1.0.conv1.weight"  # [2, 2, 3, 3]: 36 numbers


def network(**changes):
    """A ResNet20 of width 2 for grey images, no number of which is zero."""
    base = {"architecture": "resnet20", "width": 2, "channels": 1, "classes": 3}
    model = build(ModelSpec(**(base | {"mean": (0.0,), "std": (1.0,)} | changes)))
    initialize(model, torch.Generator().manual_seed(0))
    for place, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            parameter.data.fill_(1 + place)
    return model


@pytest.fixture
def tensors():
    """What a sound checkpoint of it holds."""
    return {name: tensor.clone() for name, tensor in stored(network()).items()}


def test_a_sound_checkpoint_has_no_fault_and_its_zeros_are_counted(tensors):
    tensors[CONV].view(-1)[:9] = 0
    tensors["linear.weight"].view(-1)[:4] = 0
    tensors["bn1.bias"][0] = 0
    found = audit(tensors, spec_of(network()))
    assert found.sound and found.faults == () and found.notes == () and found.source == "header"
    # Weights: the stem 18, six convolutions of 36 at width 2; 72 + 5 * 144 at 4; 288 + 5 * 576 at
    # 8; shortcuts 2 * 4 and 4 * 8; the linear layer 8 * 3.
    count = 18 + 6 * 36 + (72 + 5 * 144) + (288 + 5 * 576) + 8 + 32 + 24
    assert found.prunable == (13, count)
    assert found.prunable_sparsity == 13 / count
    # Batch-norm has a weight and a bias a channel: 7 of 2 channels, 7 of 4, 7 of 8; 3 for linear.
    assert (found.zeros, found.count) == (14, count + 2 * 7 * (2 + 4 + 8) + 3)
    by_name = {layer.name: layer for layer in found.layers}
    assert by_name[CONV].sparsity == 0.25 and by_name[CONV].shape == (2, 2, 3, 3)
    assert found.layers[0].name == "conv1.weight" and found.layers[-1].name == "linear.weight"
    assert found.remaining == 9 / (count - 18 - 24)
    model = network()
    fill(model, tensors, "here")
    assert found.sparsity == sparsity_of(model)


def test_a_tolerance_counts_small_numbers_and_minus_128_is_not_small(tensors):
    tensors[CONV].view(-1)[:3] = torch.tensor([0.0, 1e-3, -1e-3])
    assert audit(tensors, tolerance=0).prunable[0] == 1
    assert audit(tensors, tolerance=2e-3).prunable[0] >= 3
    integers = {"a.weight": torch.tensor([[-128, 1, 0]], dtype=torch.int8)}
    assert audit(integers, tolerance=0.5).prunable == (1, 3)
    for wrong in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match=rf"at least 0 \(got {wrong}\)"):
            audit(tensors, tolerance=wrong)


@pytest.mark.parametrize(
    ("name", "value", "fault"),  # the tensor that is put there, its first number, or None: it goes
    [
        ("bn1.bias", None, "missing: bn1.bias [2]"),
        ("head.extra", torch.ones(4), "left over: head.extra [4]"),
        ("linear.bias", torch.ones(4), "misfit: linear.bias has shape [4] where [3] is"),
        (CONV, float("nan"), f"misfit: {CONV} holds NaN"),
        ("bn1.running_mean", float("inf"), "misfit: bn1.running_mean holds NaN or inf"),
        ("linear.bias", torch.ones(3, dtype=torch.int64), "misfit: linear.bias holds int64"),
        ("linear.bias", torch.ones(3, dtype=torch.complex64), "misfit: linear.bias holds com"),
        ("bn1.running_var", torch.ones(2).cfloat(), "misfit: bn1.running_var holds complex"),
        ("linear.bias", torch.tensor([1e300] * 3).double(), "misfit: linear.bias holds NaN"),
        ("bn1.running_var", -1.0, "numbers: bn1.running_var holds negative variances"),
        ("module.conv1.weight", torch.ones(2, 1, 3, 3), "twice: conv1.weight and module.conv"),
        (f"{CONV}_mask", torch.full((2, 2, 3, 3), 0.5), f"mask: {CONV}_mask is not 0 or 1"),
        (f"{CONV}_mask", torch.ones(36), f"mask: {CONV}_mask is not 0 or 1"),
        ("layer9.weight_mask", torch.ones(2), "mask: layer9.weight_mask has no weight"),
        ("conv1.popup_scores", torch.ones(2, 1, 3, 3), "mask: 1 tensors of popup_scores"),
    ],
)
def test_each_fault_is_named(tensors, name, value, fault):
    if value is None:
        del tensors[name]
    elif isinstance(value, float):
        tensors[name].view(-1)[0] = value
    else:
        tensors[name] = value
    found = audit(tensors, spec_of(network()))
    assert not found.sound and found.faults[0].startswith(fault), found.faults


@pytest.mark.parametrize("name", [CONV, "linear.bias", "bn1.running_var"])
@pytest.mark.parametrize("fault", ["none", "half", "missing", "shape", "integers", "nan", "more"])
def test_what_passes_is_what_fill_accepts(tensors, name, fault):
    tensor = tensors.pop(name)
    tensors |= {
        "none": {name: tensor},
        "half": {name: tensor.half()},
        "missing": {},
        "shape": {name: tensor[:-1]},
        "integers": {name: tensor.int()},
        "nan": {name: tensor * float("nan")},
        "more": {name: tensor, "odd": tensor},
    }[fault]
    found = audit(tensors, spec_of(network()))
    try:
        fill(network(), tensors, "here")
    except UserError:
        assert not found.sound
    else:
        assert found.sound and fault in ("none", "half")
        assert any("type:" in note for note in found.notes) == (fault == "half")


def test_masks_of_torch_are_applied_as_torch_applies_them():
    model = network()
    for layer in (model.layer1[0].conv1, model.linear):
        torch_prune.l1_unstructured(layer, "weight", amount=0.5)
    held = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    found = audit(held)
    assert found.sound and found.source == "inferred"
    zeros = {layer.name: layer.zeros for layer in found.layers if layer.zeros}
    assert zeros == {CONV: 18, "linear.weight": 12} and found.prunable[0] == 30
    assert found.notes[:1] == ("2 masks were applied; without them 0.00 % would be zeros",)
    filled, images = network(), torch.rand(2, 1, 8, 8)
    fill(filled, plain(held).tensors, "here")  # the network that torch.nn.utils.prune evaluates
    assert torch.equal(filled(images), model.eval()(images))


def test_masks_and_scores_beside_their_weights_by_hand():
    weight = torch.tensor([[1.0, 2.0, float("nan"), 4.0]])
    mask = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for held in (
        {"a.weight": weight, "a.weight_mask": mask},
        {"a.weight": weight, "a.mask": mask.bool()},
        {"a.weight_orig": weight, "a.weight_mask": mask.int()},
    ):
        found = plain(held)
        assert found.faults == [] and list(found.tensors) == ["a.weight"]
        assert found.tensors["a.weight"].tolist() == [[1.0, 0.0, 0.0, 4.0]]
    held = {
        "a.weight": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]),
        "a.popup_scores": torch.tensor([[-9.0, 0.1, 0.5, -0.2, 0.1]]),
    }
    found = plain(held, keep=0.4)  # int(0.6 * 5) = 3 smallest |scores| go: 0.1, 0.1, 0.2
    assert found.tensors["a.weight"].tolist() == [[1.0, 0.0, 3.0, 0.0, 0.0]]
    assert plain(held, keep=1.0).tensors["a.weight"].tolist() == held["a.weight"].tolist()
    for wrong in (0.0, 1.5):
        with pytest.raises(UserError, match=r"lies in \(0, 1\]"):
            plain(held, keep=wrong)


@pytest.mark.parametrize(
    "sizes",
    [
        {"architecture": "resnet18", "width": 2, "classes": 7},
        {"architecture": "resnet20", "width": 3, "classes": 7},
        {"inner": (1, 2, 2, 4, 3, 4, 8, 8, 5)},  # filters that were taken out
    ],
)
def test_the_architecture_is_told_from_names_and_shapes(sizes):
    made = network(**sizes)
    found = audit(stored(made))
    assert found.sound and found.source == "inferred" and found.spec == spec_of(made)


def test_what_is_given_overrides_what_the_shapes_say_and_unknown_ones_are_named(tensors):
    found = audit(tensors, given={"width": 4})
    assert found.source == "given" and not found.sound
    assert any("another width" in fault for fault in found.faults)
    grey = audit(tensors, given={"channels": 3})
    assert any("number of channels (grey or colour)" in fault for fault in grey.faults)
    with pytest.raises(UserError, match=r"width: .* \(got 0\)"):
        audit(tensors, given={"width": 0})
    found = audit({"features.0.weight": torch.rand(8, 3, 3, 3), "classifier.weight": torch.eye(3)})
    assert found.spec is None and found.source == "none"
    assert found.faults == (
        "architecture: no convolution conv1 and linear layer to tell the architecture by",
    )
    assert found.prunable == (6, 225)
    few = {name: tensors[name] for name in ("conv1.weight", "linear.weight")}
    (fault,) = audit(few).faults
    assert fault.startswith("architecture: none fits; the nearest, ") and "finds 2 of its" in fault


def test_quantized_networks_are_audited_as_integers():
    made = quantize(network(), torch.rand(4, 1, 8, 8))
    held = {name: tensor.clone() for name, tensor in stored(made).items()}
    found = audit(held, spec_of(made))
    assert found.sound and found.notes == () and {layer.dtype for layer in found.layers} == {"int8"}
    held["linear.weight"] = held["linear.weight"].float()  # would be cut to integers in silence
    (fault,) = audit(held, spec_of(made)).faults
    assert fault == "misfit: linear.weight holds float32 where int8 is needed"


def test_two_networks_or_tensors_of_one_name_are_never_chosen_between(tensors, tmp_path):
    path = tmp_path / "theirs.pt"
    torch.save({"state_dict": {"net": tensors}, "epoch": 3}, path)
    assert read_weights(path)[0].keys() == tensors.keys()
    torch.save({"state_dict": tensors, "model": {**tensors}}, path)
    with pytest.raises(UserError, match=r"several networks \(state_dict, model\)"):
        read_weights(path)
    for content in (
        {"state_dict": tensors, "state_dict_ema": {**tensors}},
        {"net": {"ema": tensors} | tensors},
        {"teacher": tensors, "student": {**tensors}},
        {"student": {"state_dict": tensors}, "teacher": {"state_dict": {**tensors}}},
        {"net": {"state_dict": tensors}, "ema": {"state_dict": {**tensors}}},
        {"state_dict": dict([*tensors.items()][:1]), "teacher": {**tensors}},
        {"state_dict": tensors, "optimized": {**tensors}, "ema": None},
        {"state_dict": tensors, "members": [{**tensors}, {**tensors}]},
        {"members": {0: tensors, 1: {**tensors}}},
    ):
        torch.save(content, path)
        with pytest.raises(
            UserError, match=r"several networks .*(ema|teach|stud|opti|memb)|'ema' is dict"
        ):
            load_foreign(spec_of(network()), str(path), None)
    for content in (  # what a training keeps beside its network
        {"state_dict": tensors, "epoch": torch.tensor([3])},
        {"state_dict": tensors, "train_loss": torch.ones(3), "val_acc": torch.ones(3)},
        {"model": tensors, "mean": torch.ones(3), "std": torch.ones(3)},
        {"model": tensors, "optimizer": {"m": {**tensors}, "t": 3}},
        {"optimized": tensors},
        {"state_dict": tensors, "param_groups": [{"lr": 0.1}]},
        {"net": tensors, "optimizerG": {"exp_avg": {**tensors}}, "optim1": {**tensors}},
    ):
        torch.save(content, path)
        assert read_weights(path)[0].keys() == tensors.keys()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    with pytest.raises(UserError, match="it is a TorchScript archive, which is not read here"):
        read_weights(path)
    torch.save({"model": tensors, "args": argparse.Namespace(lr=0.1)}, path)
    with pytest.raises(UserError, match=r"it holds argparse\.Namespace, and nothing"):
        read_weights(path)
    torch.save(tensors | {"module.conv1.weight": torch.ones(2, 1, 3, 3)}, tmp_path / "theirs.pt")
    with pytest.raises(UserError, match=r"conv1\.weight are both called conv1\.weight"):
        load_foreign(spec_of(network()), str(tmp_path / "theirs.pt"), None)
    assert canonical("model.module._orig_mod.fc.weight") == "linear.weight"
    # A network that really has a part called `module`: masked names do not fit, and yet decide not.
    own = ModelSpec(architecture="a:b", channels=1, classes=2, mean=(0.0,), std=(1.0,))
    wanted = {f"network.module.{name}" for name in ("conv.weight", "conv.bias", "bn.weight")}
    held = ["module.conv.weight_orig", "module.conv.bias", "module.bn.weight"]
    named = [naming(own, held, wanted)(name) for name in held]
    assert named == [f"network.{name}" for name in held]
    assert canonical("layer1.0.downsample.0.weight") == "layer1.0.shortcut.0.weight"
    assert canonical("modules.conv1.weight") == "modules.conv1.weight"
