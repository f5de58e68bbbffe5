"""Binary networks: hand-computed bits and slopes, a deployed form that says the same, its bits."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from bits import hamming
from torch import nn

from advprune.attacks.bit_search import bitflip
from advprune.attacks.engine import attack_copy
from advprune.attacks.pgd import pgd
from advprune.attacks.rerun import rerun
from advprune.attacks.stored_bits import store
from advprune.core.errors import UserError
from advprune.core.train_settings import BinarySettings, TrainSettings
from advprune.data import Split
from advprune.evaluate.craft import kind_of
from advprune.evaluate.layers import where
from advprune.models.binary import (
    BinaryConv2d,
    LatentConv2d,
    LatentLinear,
    begin_epoch,
    binarize,
    binary_layers,
    freeze,
    is_binary,
    latent,
    latent_layers,
    schedule,
    slope,
    standardized,
)
from advprune.models.card import macs_of, sparsity_of, stored_bits_of, write_card
from advprune.models.checkpoint import build, load_model, save_model
from advprune.models.insert import put
from advprune.models.resnet import ResNet, initialize
from advprune.models.spec import ModelSpec, sites, spec_of
from advprune.quantization.post_training import quantize
from advprune.training.binary import (
    at_width,
    binary_spec,
    parameters_of,
    train_binary,
    uniform_width,
)
from advprune.training.growth import Grown
from advprune.training.inputs import Inputs
from conftest import same_weights, stored

ROOT2 = 2**0.5


def spec(**changes):
    """A narrow binary ResNet20 for digits."""
    base = {"architecture": "resnet20", "width": 4, "channels": 1, "classes": 10, "binary": True}
    return ModelSpec(**(base | {"mean": (0.3,), "std": (0.4,)} | changes))


@pytest.fixture(scope="module")
def form(digits):
    """A training form after a few steps, some of its scales negative; not to be changed."""
    model = ResNet(spec())
    initialize(model, torch.Generator().manual_seed(0))
    latent(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        begin_epoch(model, epoch, 3, 1.0)
        optimizer.zero_grad()
        F.cross_entropy(model(digits[0]), digits[1]).backward()
        optimizer.step()
    for layer in latent_layers(model).values():
        if isinstance(layer, LatentConv2d):
            layer.alpha.data[::2] *= -1
    return model.eval()


@pytest.fixture(scope="module")
def frozen(form):
    return freeze(form)


# --- signs and slopes ----------------------------------------------------------------------------
def test_signs_and_slopes_by_hand():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    signs = binarize(x, t=1.0, k=1.0)
    assert signs.tolist() == [-1, -1, 1, 1, 1]
    (signs * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    expected = torch.tensor([0, 2 * (ROOT2 - 0.5), 3 * ROOT2, 4 * (ROOT2 - 0.5), 0])
    assert torch.allclose(x.grad, expected)
    # k (2 sqrt(t^2 / 2) - |t^2 x|) = 100 (0.0141421 - 0.0001 * 50)
    assert float(slope(torch.tensor(50.0), 0.01, 100.0)) == pytest.approx(0.914214, abs=1e-5)


def test_the_schedule_is_the_published_one():
    assert schedule(0, 10) == pytest.approx((0.01, 100.0))
    assert schedule(5, 10) == pytest.approx((10**-0.5, 10**0.5))
    assert schedule(10, 10) == pytest.approx((10.0, 1.0))
    assert schedule(2, 4, last=1.0) == pytest.approx((0.1, 10.0))


def test_samples_are_standardized_each_by_itself_without_masked_channels():
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[10.0, 20.0]], [[30.0, 40.0]]]])
    one = torch.tensor([-1.5, -0.5, 0.5, 1.5]) / 1.25**0.5
    assert torch.allclose(standardized(x).flatten(1), one.expand(2, 4))
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(standardized(channels_last), standardized(x))
    assert standardized(torch.full((1, 2, 2, 2), 0.3)).isfinite().all()
    more = torch.cat([x[:, :1], 100 * x, x[:, 1:]], 1)
    found = standardized(more, torch.tensor([1.0, 0.0, 0.0, 1.0]))[:, [0, 3]]
    assert torch.allclose(found, standardized(x), atol=1e-6)


# --- the layers in training ----------------------------------------------------------------------
def hand_made():
    """Two filters of four weights, one of them with a negative scale."""
    conv = nn.Conv2d(1, 2, 2, bias=False)
    conv.weight.data = torch.tensor([[1.0, 2.0, 3.0, 6.0], [4.0, 0.0, -1.0, -3.0]]).view(2, 1, 2, 2)
    layer = LatentConv2d(conv, binary_input=True)
    assert layer.alpha.tolist() == [3.0, 2.0]  # mean |w|
    layer.alpha.data = torch.tensor([0.5, -0.25])
    return layer


def test_a_convolution_by_hand():
    # filters minus their means, 3 and 0: signs - - + + (0 counts as +) and + + - -
    x = torch.tensor([[[[0.0, 1.0], [2.0, 9.0]]]])  # minus 3: signs - - - +
    assert hand_made()(x).flatten().tolist() == [0.5 * (1 + 1 - 1 + 1), -0.25 * (-1 - 1 + 1 - 1)]


def test_a_negative_scale_moves_into_the_bits():
    layer = hand_made().frozen()
    assert layer.weight.flatten(1).tolist() == [[-0.5, -0.5, 0.5, 0.5], [-0.25, -0.25, 0.25, 0.25]]
    x = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), hand_made()(x))
    lost = hand_made()
    lost.alpha.data[0] = 0.0
    assert (lost.frozen().weight.abs() > 0).all()


def test_the_classifier_by_hand():
    linear = nn.Linear(2, 2)
    linear.weight.data = torch.tensor([[0.5, 0.1], [0.3, -0.1]])  # mean 0.2; 0.5 and 0.3 count
    layer = LatentLinear(linear)
    assert torch.allclose(layer.value(), torch.tensor([[0.4, -0.4], [0.4, -0.4]]))
    x = torch.tensor([[1.0, 2.0]])
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 2], [1, 2]]  # as if the weight itself were used
    assert torch.equal(layer.frozen()(x), layer(x))


def test_the_gradient_of_a_latent_weight_is_that_of_its_bit_through_the_slope():
    layer, x = hand_made(), torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    layer.t, layer.k = 1.0, 1.0
    layer(x).sum().backward()
    signs = torch.where(standardized(x) >= 0, 1.0, -1.0)
    by_bit = torch.stack([0.5 * signs.sum(0), -0.25 * signs.sum(0)])
    flat = layer.weight.detach().clone().requires_grad_(True)
    normal = F.layer_norm(flat.flatten(1), (4,), eps=1e-10)
    normal.backward(by_bit.flatten(1) * slope(normal.detach(), 1.0, 1.0))
    assert torch.allclose(layer.weight.grad, flat.grad, atol=1e-6)


# --- the deployed form ---------------------------------------------------------------------------
def test_the_deployed_form_says_what_the_training_form_says(digits, form, frozen):
    assert torch.equal(frozen(digits[0]), form(digits[0]))
    assert frozen.state_dict().keys() == build(spec()).state_dict().keys()  # nothing else is there
    assert latent_layers(form) and not latent_layers(frozen)
    for layer in binary_layers(frozen).values():
        sizes = layer.weight.abs().flatten(1)
        assert (sizes == sizes[:, :1]).all() and (sizes > 0).all()
    assert [type(site[0]) for site in sites(frozen).values()] == [nn.Hardtanh] * 19
    assert not frozen.conv1.binary_input and frozen.layer1[0].conv1.binary_input


def test_its_bits_are_the_whole_network(digits, form, frozen):
    bits, layers = store(frozen, bits=1, scale="channel"), binary_layers(frozen)
    assert torch.equal(bits.model(digits[0]), frozen(digits[0]))
    assert bits.layers.keys() == layers.keys()
    count = sum(layer.weight.numel() for layer in layers.values())
    assert bits.size == stored_bits_of(frozen) == count
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        store(form, bits=1, scale="channel")


def test_a_bit_flip_changes_the_sign_of_a_weight(digits, frozen):
    images, labels = digits[0][:16], digits[1][:16]
    bits = store(frozen, bits=1, scale="channel")
    assert rerun(bits.model, {n: bits.weight(n) for n in bits.layers}, images) is not None
    found, again = (bitflip(bits, images, labels, budget=3, reuse=reuse) for reuse in (True, False))
    assert found.table.equals(again.table) and len(found.table) == 3
    assert hamming(bits, found.stored) == 3
    before, after = (
        torch.cat([layer.weight.flatten() for layer in binary_layers(model).values()])
        for model in (bits.model, found.stored.model)
    )
    assert int((before != after).sum()) == 3 and torch.equal(before.abs(), after.abs())


def test_the_gradient_of_a_deployed_weight_is_exact():
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    layer = hand_made().frozen()
    layer(x).square().sum().backward()
    plain = layer.weight.detach().clone().requires_grad_(True)
    F.conv2d(binarize(standardized(x)), plain).square().sum().backward()
    assert torch.allclose(layer.weight.grad, plain.grad, atol=1e-5)


def test_attacks_by_gradient_find_a_way(digits, frozen):
    private = attack_copy(frozen, torch.device("cpu"))
    assert torch.equal(private(digits[0]), frozen(digits[0])) and is_binary(private)
    x = digits[0].clone().requires_grad_(True)
    F.cross_entropy(frozen(x), digits[1]).backward()
    assert float((x.grad.flatten(1).abs().amax(1) > 0).float().mean()) > 0.9
    adv = pgd(frozen, digits[0], digits[1], 0.2, 0.05, 5)
    before, after = (F.cross_entropy(frozen(images), digits[1]) for images in (digits[0], adv))
    assert after > before + 0.1
    assert kind_of(frozen) == "binary"
    rows = where(frozen, digits[0][:8], adv[:8])
    assert {"BinaryConv2d", "Site", "BinaryLinear"} <= set(rows.kind)


def test_a_binary_network_comes_back_and_its_card_counts_bits(digits, frozen, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(frozen, path)
    loaded = load_model(path)
    assert torch.equal(loaded(digits[0]), frozen(digits[0]))
    assert spec_of(loaded) == spec() and isinstance(loaded.conv1, BinaryConv2d)
    write_card(path, image_shape=(1, 8, 8))
    card = (tmp_path / "model.json").read_text()
    assert '"bits": 1,' in card and f'"stored_bits": {stored_bits_of(frozen)},' in card
    assert macs_of(frozen, (1, 8, 8)) == macs_of(build(spec(binary=False)), (1, 8, 8))
    assert sparsity_of(frozen) < 0.05  # biases of batch-norm alone


def test_lost_signs_are_refused(digits, frozen, tmp_path):
    for value in (0.0, 0.7):
        broken = copy.deepcopy(frozen)
        broken.layer2[0].conv1.weight.data[1, 0, 0, 0] = value
        save_model(broken, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"the weights of layer2.0.conv1 are not"):
            load_model(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="binary"):
        quantize(frozen, digits[0])
    with pytest.raises(UserError, match="BinaryConv2d"):
        put(frozen, "conv", "conv1", nn.Identity())


# --- specs and sizes -----------------------------------------------------------------------------
def test_the_text_of_other_specs_is_as_it_was():
    plain = spec(binary=False)
    assert plain.model_dump_json() == (
        '{"architecture":"resnet20","width":4,"channels":1,"classes":10,"mean":[0.3],'
        '"std":[0.4],"layers":[],"quantization":null}'
    )
    narrow = spec(binary=False, inner=[4] * 9).model_dump_json()
    assert narrow.endswith('"quantization":null,"inner":[4,4,4,4,4,4,4,4,4]}')
    theirs = {"architecture": "theirs:net", "width": 0, "options": {"a": [1, "b"]}}
    text = spec(binary=False, **theirs).model_dump_json()
    assert '"width"' not in text and text.endswith('"options":{"a":[1,"b"]}}')
    grown = spec(stages=[5, 7, 9, 3], inner=[30] * 9)
    assert ModelSpec.model_validate_json(grown.model_dump_json()) == grown
    assert '"binary":true,"stages":[5,7,9,3]' in grown.model_dump_json()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [4, 4, 8]}, "a stem and 3 stages, not 3"),
        ({"stages": [4, 4, 8, 0]}, "greater than or equal to 1"),
        ({"inner": [5] + [4] * 8}, "from 1 to"),
        ({"inner": [0] + [4] * 8}, "from 1 to"),
        ({"inner": [4] * 8}, "has 9 blocks, not 8"),
        ({"stages": [4, 4, 8, 16], "inner": [0] + [4] * 8}, "from 1 to"),
    ],
)
def test_channels_that_make_no_network_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        spec(**changes)


def test_the_uniform_width_is_the_nearest_of_all():
    base = spec(architecture="resnet18")
    counts = {w: sum(p.numel() for p in build(at_width(base, w)).parameters()) for w in range(1, 9)}
    assert all(parameters_of(at_width(base, w)) == n for w, n in counts.items())
    for wanted in (1, counts[3], counts[3] + 1, (counts[5] + counts[6]) // 2 + 1, counts[7] - 5):
        found = uniform_width(base, wanted)
        assert abs(counts[found] - wanted) == min(abs(n - wanted) for n in counts.values())


def test_what_the_channels_are_called():
    grown = Grown(stages=(5, 7, 9, 3), inner=(6,) * 9, base=(2,) * 13)
    plain = spec(binary=False)
    assert binary_spec(plain) == spec(pool_norm=True)
    widest = binary_spec(plain, grown)
    assert widest == spec(stages=grown.stages, inner=grown.inner, pool_norm=True)
    wide = binary_spec(plain, widest=widest)
    assert wide == spec(width=wide.width, pool_norm=True) and wide.binary


# --- training ------------------------------------------------------------------------------------
def inputs(digits, val=16, state=None):
    """All digits to train on, the first of them again to judge on."""
    images = (digits[0] * 255).round().to(torch.uint8)
    whole = Split(images, digits[1], tuple("0123456789"), "digits")
    few = replace(whole, images=images[:val], labels=digits[1][:val])
    return Inputs(whole, few, 0, torch.device("cpu"), state)


def train(digits, state, epochs=3, method="standard", **changes):
    settings = BinarySettings(epochs=epochs, lr=0.2, t=1.0, method=method, steps=2)
    optimizer = TrainSettings(batch=16, crop=0)
    return train_binary(spec(**changes), settings, optimizer, inputs(digits, state=state))


def test_a_killed_training_gives_the_same_bits(digits, tmp_path):
    whole, history = train(digits, None)
    with stored(kill_after=2):
        train(digits, tmp_path / "state.pt")
    again, told = train(digits, tmp_path / "state.pt")
    assert told == history and same_weights(again, whole)


def test_a_binary_network_learns_from_attacked_images_too(digits):
    _, history = train(digits, None, epochs=12)
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    model, history = train(digits, None, epochs=1, method="pgd")
    assert "val_robust_accuracy" in history[0] and is_binary(model)
    with pytest.raises(UserError, match="not that of a binary network"):
        train(digits, None, binary=False)
