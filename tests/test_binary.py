"""Binary networks: bits and slopes by hand, a deployed form that says the same; Early-Growth."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from workspace import ROOT

from advprune.attacks.bit_search import bitflip
from advprune.attacks.engine import attack_copy
from advprune.attacks.pgd import pgd
from advprune.attacks.stored_bits import store
from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.core.train_settings import BinarySettings, GrowthSettings, TrainSettings
from advprune.data import Split
from advprune.evaluate.craft import kind_of
from advprune.models import binary
from advprune.models.binary import (
    BinaryConv2d,
    binarize,
    binary_layers,
    is_binary,
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
from advprune.training.growth import Gate, Grown, SuperNet, grow, settled
from advprune.training.inputs import Inputs
from advprune.training.networks import train_network
from conftest import same_when_stored

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
    binary.latent(model).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(3):
        binary.begin_epoch(model, epoch, 3, 1.0)
        optimizer.zero_grad()
        F.cross_entropy(model(digits[0]), digits[1]).backward()
        optimizer.step()
    for layer in binary.latent_layers(model).values():
        if isinstance(layer, binary.LatentConv2d):
            layer.alpha.data[::2] *= -1
    return model.eval()


@pytest.fixture(scope="module")
def frozen(form):
    return binary.freeze(form)


# --- signs and slopes ----------------------------------------------------------------------------
def test_signs_slopes_and_their_schedule_by_hand():
    x = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0], requires_grad=True)
    signs = binarize(x, t=1.0, k=1.0)
    assert signs.tolist() == [-1, -1, 1, 1, 1]
    (signs * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])).sum().backward()
    expected = torch.tensor([0, 2 * (ROOT2 - 0.5), 3 * ROOT2, 4 * (ROOT2 - 0.5), 0])
    assert torch.allclose(x.grad, expected)
    # k (2 sqrt(t^2 / 2) - |t^2 x|) = 100 (0.0141421 - 0.0001 * 50)
    assert float(slope(torch.tensor(50.0), 0.01, 100.0)) == pytest.approx(0.914214, abs=1e-5)
    assert binary.schedule(0, 10) == pytest.approx((0.01, 100.0))
    assert binary.schedule(5, 10) == pytest.approx((10**-0.5, 10**0.5))
    assert binary.schedule(10, 10) == pytest.approx((10.0, 1.0))
    assert binary.schedule(2, 4, last=1.0) == pytest.approx((0.1, 10.0))


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
    layer = binary.LatentConv2d(conv, binary_input=True)
    assert layer.alpha.tolist() == [3.0, 2.0]  # mean |w|
    layer.alpha.data = torch.tensor([0.5, -0.25])
    return layer


def test_a_convolution_by_hand_whose_negative_scale_moves_into_the_bits():
    # filters minus their means, 3 and 0: signs - - + + (0 counts as +) and + + - -
    x = torch.tensor([[[[0.0, 1.0], [2.0, 9.0]]]])  # minus 3: signs - - - +
    assert hand_made()(x).flatten().tolist() == [0.5 * (1 + 1 - 1 + 1), -0.25 * (-1 - 1 + 1 - 1)]
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
    layer = binary.LatentLinear(linear)
    assert torch.allclose(layer.value(), torch.tensor([[0.4, -0.4], [0.4, -0.4]]))
    x = torch.tensor([[1.0, 2.0]])
    layer(x).sum().backward()
    assert layer.weight.grad.tolist() == [[1, 2], [1, 2]]  # as if the weight itself were used
    assert torch.equal(layer.frozen()(x), layer(x))


def test_the_gradient_of_a_weight_is_that_of_its_bit_through_the_slope_and_deployed_exact():
    layer, x = hand_made(), torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    layer.t, layer.k = 1.0, 1.0
    layer(x).sum().backward()
    signs = torch.where(standardized(x) >= 0, 1.0, -1.0)
    by_bit = torch.stack([0.5 * signs.sum(0), -0.25 * signs.sum(0)])
    flat = layer.weight.detach().clone().requires_grad_(True)
    normal = F.layer_norm(flat.flatten(1), (4,), eps=1e-10)
    normal.backward(by_bit.flatten(1) * slope(normal.detach(), 1.0, 1.0))
    assert torch.allclose(layer.weight.grad, flat.grad, atol=1e-6)
    x = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    layer = hand_made().frozen()
    layer(x).square().sum().backward()
    plain = layer.weight.detach().clone().requires_grad_(True)
    F.conv2d(binarize(standardized(x)), plain).square().sum().backward()
    assert torch.allclose(layer.weight.grad, plain.grad, atol=1e-5)


# --- the deployed form ---------------------------------------------------------------------------
def test_the_deployed_form_says_what_the_training_form_says(digits, form, frozen):
    images, labels = digits
    assert torch.equal(frozen(images), form(images)) and kind_of(frozen) == "binary"
    assert torch.equal(attack_copy(frozen, torch.device("cpu"))(images), frozen(images))
    assert frozen.state_dict().keys() == build(spec()).state_dict().keys()  # nothing else is there
    assert binary.latent_layers(form) and not binary.latent_layers(frozen)
    for layer in binary_layers(frozen).values():
        sizes = layer.weight.abs().flatten(1)
        assert (sizes == sizes[:, :1]).all() and (sizes > 0).all()
    assert [type(site[0]) for site in sites(frozen).values()] == [nn.Hardtanh] * 19
    assert not frozen.conv1.binary_input and frozen.layer1[0].conv1.binary_input
    adv = pgd(frozen, images, labels, 0.2, 0.05, 5)
    assert F.cross_entropy(frozen(adv), labels) > F.cross_entropy(frozen(images), labels) + 0.1


def test_its_bits_are_the_whole_network_and_a_flip_changes_the_sign_of_a_weight(
    digits, form, frozen
):
    images, labels = digits[0][:16], digits[1][:16]
    bits, layers = store(frozen, bits=1, scale="channel"), binary_layers(frozen)
    assert torch.equal(bits.model(images), frozen(images)) and bits.layers.keys() == layers.keys()
    assert bits.size == stored_bits_of(frozen) == sum(m.weight.numel() for m in layers.values())
    with pytest.raises(ValueError, match="no convolution or linear layer"):
        store(form, bits=1, scale="channel")
    found = bitflip(bits, images, labels, budget=3)
    before, after = (
        torch.cat([layer.weight.flatten() for layer in binary_layers(model).values()])
        for model in (bits.model, found.stored.model)
    )
    assert int((before != after).sum()) == 3 and torch.equal(before.abs(), after.abs())


def test_a_binary_network_comes_back_and_its_card_counts_bits(digits, frozen, tmp_path):
    loaded = same_when_stored(frozen, digits[0], tmp_path)
    assert spec_of(loaded) == spec() and isinstance(loaded.conv1, BinaryConv2d)
    write_card(tmp_path / "model.safetensors", image_shape=(1, 8, 8))
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
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stages": [4, 4, 8]}, "a stem and 3 stages, not 3"),
        ({"stages": [4, 4, 8, 0]}, "greater than or equal to 1"),
        ({"inner": [5] + [4] * 8}, "from 1 to"),
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
    assert ModelSpec.model_validate_json(widest.model_dump_json()) == widest


# --- training ------------------------------------------------------------------------------------
def inputs(digits, val=16):
    """All digits to train on, the first of them again to judge on."""
    images = (digits[0] * 255).round().to(torch.uint8)
    whole = Split(images, digits[1], tuple("0123456789"), "digits")
    few = replace(whole, images=images[:val], labels=digits[1][:val])
    return Inputs(whole, few, 0, torch.device("cpu"))


def train(digits, epochs, method="standard", **changes):
    settings = BinarySettings(epochs=epochs, lr=0.2, t=1.0, method=method, steps=2)
    return train_binary(spec(**changes), settings, TrainSettings(batch=16), inputs(digits))


def test_a_binary_network_learns_from_attacked_images_too(digits):
    _, history = train(digits, 12)
    assert history[-1]["train_loss"] < 0.9 * history[0]["train_loss"]
    model, history = train(digits, 1, "pgd")
    assert "val_robust_accuracy" in history[0] and is_binary(model)
    with pytest.raises(UserError, match="not that of a binary network"):
        train(digits, 1, binary=False)


# --- Early-Growth ---------------------------------------------------------------------------------
PLAIN = spec(binary=False)
SETTINGS = GrowthSettings(factor=2, epochs=4, frozen=0, lr=0.2, gate_lr=1.0, t=1.0, rate=1.5)


def gate(logits):
    """A gate with these logits."""
    made = Gate(len(logits), 1, torch.Generator().manual_seed(0))
    made.logits.data = torch.tensor(logits)
    return made


def test_gates_start_with_the_base_network_on_and_end_where_logits_are_positive():
    made = Gate(3000, 1000, torch.Generator().manual_seed(0))
    assert made.logits[:1000].eq(1).all() and made.kept.sum() == 1000
    rest = (made.logits[1000:] * 10).round()
    assert torch.allclose(rest / 10, made.logits[1000:])
    assert rest.unique().tolist() == list(range(-10, -1))  # -1.0 to -0.2, in tenths
    made = gate([0.1, -0.1, 3.0, -3.0]).eval()
    noise = torch.Generator()
    assert made(noise).tolist() == made(noise).tolist() == [1, 0, 1, 0]
    assert gate([-2.0, -1.0, -3.0]).eval()(noise).tolist() == [0, 1, 0]  # never all off


def test_draws_have_the_probability_of_the_sigmoid():
    made = gate([-1.0] * 40_000 + [0.5] * 40_000)
    made.beta[40_000:] = 3.0
    drawn = made(torch.Generator().manual_seed(1)).detach()
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and torch.equal(made.on, drawn > 0)
    for part, value in ((drawn[:40_000], -1.0), (drawn[40_000:], 1.5)):
        expected = float(torch.tensor(value).sigmoid())
        assert float(part.mean()) == pytest.approx(expected, abs=0.01)  # four sigma


def test_the_gradient_of_a_draw_is_that_of_the_soft_gate():
    made = gate([-1.0, 0.5, 2.0])
    made.beta = torch.tensor([1.0, 2.0, 4.0])
    weights = torch.tensor([1.0, 10.0, 100.0])
    (made(torch.Generator().manual_seed(5)) * weights).sum().backward()
    uniform = torch.rand(3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    soft = (made.beta * made.logits + (uniform / (1 - uniform)).log()).sigmoid()
    expected = weights * made.beta * soft * (1 - soft)
    assert torch.allclose(made.logits.grad, expected.float(), rtol=1e-4)


def test_frozen_gates_are_all_on_and_learn_nothing():
    network = SuperNet(PLAIN, 2, 0).train()
    for epoch, frozen in ((0, True), (1, True), (2, False), (3, False)):
        network.begin_epoch(epoch, SETTINGS.model_copy(update={"frozen": 2}))
        made = network.gates["stem"]
        made.logits.grad = None
        drawn = made(torch.Generator().manual_seed(0))
        drawn.sum().backward()
        assert bool(made.logits.grad.abs().sum() == 0) == bool((drawn == 1).all()) == frozen
        assert bool((made.beta == 1).all()) == (epoch < 3)  # steeper after the first draws alone


def cut(network):
    """The network of the kept channels, with the weights that the wide one has there."""
    stages, inner = network.channels()
    changes = {"stages": stages, "inner": inner, "pool_norm": True}
    small = binary.latent(ResNet(ModelSpec.model_validate(PLAIN.model_dump() | changes)))
    kept = {name: network.gates[name].kept for name in network.gates}
    image = torch.ones(1, dtype=torch.bool)
    sides = {"conv1": (image, kept["stem"]), "bn1": (kept["stem"], kept["stem"])}
    before = kept["stem"]
    for name, block in network.network.named_modules():
        if not hasattr(block, "conv2"):
            continue
        stage, _, place = name.partition(".")
        inside, after = kept[f"{stage}_{place}"], kept[stage]
        sides |= {f"{name}.conv1": (before, inside), f"{name}.bn1": (inside, inside)}
        sides |= {f"{name}.conv2": (inside, after), f"{name}.bn2": (after, after)}
        sides |= {f"{name}.shortcut.0": (before, after), f"{name}.shortcut.1": (after, after)}
        before = after
    sides |= {"pool.1": (before, before), "linear": (before, torch.ones(10, dtype=torch.bool))}
    wide = network.network.state_dict()
    state = {}
    for name in small.state_dict():
        read, written = sides.get(name.rpartition(".")[0], (None, None))
        tensor = wide[name]
        if read is not None and tensor.ndim:
            tensor = tensor[written][:, read] if tensor.ndim > 1 else tensor[written]
        state[name] = tensor
    small.load_state_dict(state)
    return small.eval()


def test_channels_that_are_off_are_as_good_as_absent(digits):
    network = SuperNet(PLAIN, 2, 0).double()
    generator = torch.Generator().manual_seed(1)
    for name in network.gates:
        logits = network.gates[name].logits
        logits.data = torch.randn(len(logits), generator=generator, dtype=torch.float64)
    network.gates["stem"].logits.data[:] = 1.0  # as many as the first stage would be by chance
    for parameter in network.network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * noise
    images = digits[0].double()
    network.train()
    binary.begin_epoch(network.network, 0, 1)
    for _ in range(3):
        network(images)
    network.eval()
    small = cut(network).double()
    assert 0 < float(network.density()["density"]) < 1
    # Batch-norm before the classifier divides by small deviations.
    assert torch.allclose(network(images), small(images), atol=1e-6)


def test_the_base_network_may_lose_channels_too():
    network = SuperNet(PLAIN, 2, 0)
    assert network.density()["density"] == 0.5 and network.density()["base_density"] == 1.0
    assert network.channels() == (PLAIN.streams, PLAIN.blocks)
    network.gates["layer3_1"].logits.data[:] = -1.0
    network.gates["layer3_1"].logits.data[20] = 1.0
    found = network.density()
    assert found["density_layer3_1"] == round(1 / 32, 4) and found["base_density"] < 1
    assert network.channels()[1][-2:] == (1, 16)


def test_the_gates_noise_comes_from_the_epoch_alone(digits):
    network, found = SuperNet(PLAIN, 2, 0).train(), []
    for state, epoch in ((0, 0), (1, 0), (1, 1)):
        torch.manual_seed(state)
        network.begin_epoch(epoch, SETTINGS)
        gates = network.gates.values()
        found.append(network(digits[0][:4]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    on = torch.cat([made.on for made in gates])
    network.begin_epoch(2, SETTINGS)
    assert torch.cat([made.beta for made in gates])[on].min() >= 1.5  # steeper where it was on


# --- growth --------------------------------------------------------------------------------------
def run(digits, **changes):
    optimizer = TrainSettings(batch=16, crop=0, label_smoothing=0.1)
    return grow(PLAIN, SETTINGS.model_copy(update=changes), optimizer, inputs(digits))


def test_growth_starts_at_the_base_network_and_counts_its_gates(digits):
    calm = run(digits, epochs=1, gate_lr=1e-6)
    assert calm.history[0]["density"] == 0.5 and calm.stages == PLAIN.streams
    grown = run(digits)
    assert len(grown.history) == 4 and grown.history[0]["density"] == pytest.approx(0.5, abs=0.1)
    assert grown.base == (*PLAIN.streams, *PLAIN.blocks)
    last, counts, sizes = grown.history[-1], grown.stages + grown.inner, [2 * n for n in grown.base]
    assert last["density"] == pytest.approx(sum(counts) / sum(sizes), abs=1e-4)
    named = [value for name, value in last.items() if name.startswith("density_")]
    counted = [n / size for n, size in zip(counts, sizes, strict=True)]
    assert named == pytest.approx(counted, abs=1e-4)
    assert binary_spec(PLAIN, grown).stages == grown.stages
    assert Grown.model_validate_json(grown.model_dump_json()) == grown


def test_a_result_that_is_not_larger_is_refused(digits, monkeypatch):
    base = Grown(stages=(8, 8, 16, 32, 64), inner=(8, 8, 16, 16, 32, 32, 64, 64), base=(8,) * 13)
    monkeypatch.setattr("advprune.training.networks.grow", lambda *_: base)
    with pytest.raises(UserError, match=r"ended with (\d+) .* not more than the \1 it"):
        train_network(load(ROOT / "params.yaml"), "RA_BNN-standard", inputs(digits))


def test_growth_ends_when_it_has_settled(digits):
    for patience in (1, 2):  # not while rates rise, in the first three of nine epochs
        assert len(run(digits, epochs=9, tolerance=1.0, patience=patience).history) == 3
    rows = [{"density": value} for value in (0.3, 0.5, 0.504, 0.5)]
    assert settled(rows, 0.005, 2) and not settled(rows, 0.005, 3)
    assert not settled(rows, 0.004, 1) and not settled(rows[:2], 0.5, 2)


def test_cross_entropy_alone_is_minimized_and_gates_do_not_decay(digits):
    network = SuperNet(PLAIN, 2, 0).train()
    network.begin_epoch(0, SETTINGS)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = network(inputs(digits).train.images[order] / 255)
        expected = float(F.cross_entropy(logits, digits[1][order]))
    optimizer = TrainSettings(batch=64, weight_decay=0.5, label_smoothing=0.3)
    settings = SETTINGS.model_copy(update={"epochs": 1, "gate_lr": 1e-9})
    found = grow(PLAIN, settings, optimizer, inputs(digits, 64))
    assert found.history[0]["train_loss"] == pytest.approx(expected, abs=1e-4)
