"""The integer model against whole-number arithmetic and torchao's, its twin, and training."""

import copy

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch import nn

from advprune.attacks import pgd
from advprune.core.errors import UserError
from advprune.core.train_settings import (
    DataSettings,
    FineTuneSettings,
    QuantizeSettings,
    RecipeSettings,
    TrainSettings,
)
from advprune.data import prepare
from advprune.models.card import sparsity_of
from advprune.models.spec import spec_of
from advprune.pruning import Data, prune
from advprune.quantization.post_training import QuantizedLayer, quantize, twin, twin_agreement
from advprune.quantization.training import (
    TrainedLayer,
    integer_form,
    quantization_aware,
    training_form,
)
from advprune.training.standard import Trainer, finetune
from conftest import make_network, same_weights, same_when_stored, stored


def integers_of(model):
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]


def layer_of(layer, bits, low, high):
    """A quantized layer with a given input range."""
    quantized = QuantizedLayer(layer, bits)
    quantized.set_input_range(low, high)
    quantized.set_weights(layer)
    return quantized


def test_quantizer_by_hand():
    linear = nn.Linear(3, 1)
    linear.weight.data = torch.tensor([[1.0, -0.5, 0.26]])
    linear.bias.data = torch.tensor([0.1])
    layer = layer_of(linear, 8, -1.0, 1.55)  # scale 0.01, zero point 100
    assert abs(float(layer.input_scale) - 0.01) < 1e-9 and float(layer.input_zero) == 100
    assert layer.weight.tolist() == [[127, -64, 33]]  # scale 1/127: -63.5 rounds to even, 33.02
    x = torch.tensor([[0.5, -2.0, 0.014]])  # -2 is below the range: -1
    assert layer.integers(x).tolist() == [[50, -100, 1]]
    bias = round(0.1 / (0.01 / 127))
    total = 50 * 127 + 100 * 64 + 1 * 33 + bias
    assert abs(float(layer(x)) - total * 0.01 / 127) < 1e-5


@pytest.mark.parametrize(("fan_in", "low"), [(2, -0.8), (600, 0.2)])
def test_convolution_is_exact_integer_arithmetic(fan_in, low):
    """Sums of 600 maps go beyond the whole numbers that float32 holds."""
    conv = nn.Conv2d(fan_in, 3, 3, padding=1, stride=2)
    conv.weight.data = conv.weight.data.abs()  # so that sums become large
    layer = layer_of(conv, 8, -0.7, 1.1)
    x = torch.rand(1, fan_in, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 + low
    q = np.pad(layer.integers(x)[0].long().numpy(), ((0, 0), (1, 1), (1, 1)))
    whole = np.stack([correlate(q, w, "valid", "direct")[0] for w in layer.weight.long().numpy()])
    assert whole.dtype == np.int64 and whole.shape == (3, 5, 5)
    total = torch.from_numpy(whole[:, ::2, ::2]) + layer.bias.view(-1, 1, 1)
    scale = (layer.weight_scale * layer.input_scale).view(-1, 1, 1)
    assert torch.equal(layer(x)[0], (total * scale).float())


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stored_integers_fit_their_bits(network, digits, bits):
    before = copy.deepcopy(network)
    layers = integers_of(quantize(network, digits[0], bits))
    assert len(layers) == 21  # 20 convolutions and the classifier
    for layer in layers:
        assert layer.weight.dtype == torch.int8
        assert int(layer.weight.abs().max()) == 2 ** (bits - 1) - 1  # some weight sets the scale
        assert 0 <= float(layer.input_zero) <= 2**bits - 1
    assert same_weights(network, before) and spec_of(network).quantization is None


def test_the_bias_of_a_channel_without_weights_fits_32_bits():
    linear = nn.Linear(2, 3)
    linear.weight.data = torch.tensor([[0.0, 0.0], [1e-30, 0.0], [1.0, -0.5]])
    linear.bias.data = torch.tensor([0.3, -2.0, 0.25])
    layer = layer_of(linear, 8, 0.0, 2.55e-3)
    assert layer.weight.tolist() == [[0, 0], [0, 0], [127, -64]]
    assert layer.bias.abs().max() < 2**31
    x = torch.tensor([[1e-3, 2e-3]])
    for differentiable in (False, True):
        layer.differentiable = differentiable
        assert torch.allclose(layer(x), linear(x), atol=1e-5)


def test_eight_bits_stay_near_and_fewer_bits_do_not(network, digits):
    expected = network(digits[0]).detach()
    errors = []
    for bits in (8, 4, 2):
        model = quantize(network, digits[0], bits)
        errors.append(float((model(digits[0]) - expected).norm() / expected.norm()))
        same, gap = twin_agreement(model, digits[0])  # of the twin
        assert same >= 0.95 and gap < 0.05
    assert errors[0] < 0.1 < errors[1] < errors[2]


def test_the_gradient_of_the_twin_fools_the_integers(network, digits):
    model = quantize(network, digits[0])
    x, smooth = (digits[0].clone().requires_grad_() for _ in range(2))
    twin(model)(x).sum().backward()
    network(smooth).sum().backward()
    cosine = torch.cosine_similarity(x.grad.flatten(1), smooth.grad.flatten(1))
    assert cosine.mean() > 0.8  # it points where that of the float network does
    labels = model(digits[0]).argmax(1)
    adv = pgd(twin(model), digits[0], labels, 0.2, 0.05, 10)
    assert (model(adv).argmax(1) != labels).float().mean() > 0.9


def test_agreement_notices_a_twin_that_differs(network, digits, monkeypatch):
    model, coarse = quantize(network, digits[0]), quantize(network, digits[0], bits=2)
    monkeypatch.setattr("advprune.quantization.post_training.twin", lambda _: coarse)
    same, gap = twin_agreement(model, digits[0])
    predictions = [m(digits[0]).argmax(1) for m in (model, coarse)]
    assert same == float((predictions[0] == predictions[1]).float().mean()) < 0.9
    assert gap > 0.1


def test_the_twin_of_a_random_model_makes_the_same_draws(network, digits):
    model = quantize(prune("SAP", network, 1.0).model, digits[0])
    before = torch.get_rng_state()
    same, gap = twin_agreement(model, digits[0])
    assert same >= 0.95 and gap < 0.2 and torch.equal(before, torch.get_rng_state())


def test_an_inserted_layer_survives_save_and_load_or_is_refused(network, digits, tmp_path):
    model = quantize(prune("clamp", network, 3, digits).model, digits[0], 6)
    assert spec_of(same_when_stored(model, digits[0], tmp_path)).quantization.bits == 6
    with pytest.raises(UserError, match="has another layer behind it"):
        quantize(prune("SAP", network, {"fraction": 1.0, "where": "conv"}).model, digits[0])


def test_a_range_is_the_whole_one(network):
    images = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(128, 1, 1, 1)
    images[64:] /= 2  # the second batch
    layer = quantize(network, images, 8).conv1  # what it sees is divided by 0.4
    assert float(255 * layer.input_scale) == pytest.approx(1 / 0.4, rel=1e-5)


# --- training through integers --------------------------------------------------------------------
TRAIN = TrainSettings(batch=64, lr=0.1, label_smoothing=0.1, eps=24 / 255)
CALIBRATION = 256


@pytest.fixture(scope="module")
def splits():
    """1146 real digits to train on and 449 to test with: float images in [0, 1], labels."""
    found = prepare(DataSettings(source="digits", val_fraction=0.15, test_fraction=0.25))
    return {name: (split.images / 255, split.labels) for name, split in found.items()}


@pytest.fixture(scope="module")
def trained(splits):
    """A narrow ResNet20, trained for six epochs; not to be changed."""
    images, labels = splits["train"]
    model = make_network(images[:64], "resnet20")
    pair = (images * 255).round().to(torch.uint8), labels
    Trainer(model, pair, None, TRAIN, RecipeSettings(epochs=6), 0, None).run()
    return model


def learned(model, pair, bits, state=None, **setting):
    """Quantization-aware training on a pair of images and labels."""
    chosen = FineTuneSettings(**{"epochs": 1, "lr": 0.01, **setting})
    few = pair[0][:CALIBRATION]
    how = QuantizeSettings(bits=bits, training=chosen)
    return quantization_aware(model, how, Data(*pair, TRAIN, state), 0, few)


@torch.no_grad()
def errors(model, pair):
    """Share of images that are misclassified."""
    return float((model(pair[0]).argmax(1) != pair[1]).float().mean())


def test_a_layer_in_training_by_hand():
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[1.0, -0.4, 0.3], [0.0, 0.5, -2.0]])
    linear.bias.data = torch.tensor([0.12, -0.3])
    layer = TrainedLayer(linear, layer_of(linear, 3, 0.0, 1.4))  # scale 0.2, integers 0 to 7
    x = torch.tensor([[0.33, 1.0, 5.0]], requires_grad=True)  # 0.4, 1.0 and, clipped, 1.4
    weight = torch.tensor([[1.0, -1 / 3, 1 / 3], [0.0, 2 / 3, -2.0]])  # q in -3..3 over amax / 3
    bias = torch.tensor([2 / 15, -4 / 15])  # scales 0.2 / 3 and 0.4 / 3: 1.8 and -2.25
    expected = torch.tensor([[0.4, 1.0, 1.4]]) @ weight.T + bias
    for mode, beyond in ((True, 0.0), (False, 1.0)):
        x.grad = linear.weight.grad = None
        found = layer.train(mode)(x)
        assert torch.allclose(found, expected, atol=1e-6)
        found[0, 0].backward()
        passed = weight[0] * torch.tensor([1.0, 1.0, beyond])
        assert torch.allclose(x.grad[0], passed)  # in training nothing comes from beyond the range
        assert torch.allclose(linear.weight.grad[0], torch.tensor([0.4, 1.0, 1.4]))
        assert linear.weight.grad[1].eq(0).all()


@pytest.mark.parametrize("bits", [3, 8])  # at 2 the network may collapse, and its logits tie
def test_what_is_trained_is_what_the_integers_compute(trained, splits, bits):
    images, few = splits["train"][0], splits["train"][0][:CALIBRATION]
    untrained = integer_form(training_form(trained, few, bits))
    assert same_weights(untrained, quantize(trained, few, bits))
    form = training_form(trained, few, bits)
    setting = FineTuneSettings(epochs=1, lr=0.01)
    finetune(form, setting, Data(images, splits["train"][1], TRAIN), 0)
    test = splits["test"][0]
    with torch.no_grad():
        logits, in_training = form(test), form.train()(test)
    model = integer_form(form)
    assert torch.allclose(logits, twin(model)(test), rtol=1e-5, atol=1e-5)
    assert torch.allclose(logits, in_training, rtol=1e-5, atol=1e-5)
    same_predictions, gap = twin_agreement(model, test)
    assert same_predictions > 0.98 and gap < 0.1


def test_training_undoes_harm_of_few_bits(trained, splits):
    pair = splits["train"]
    rounded = errors(quantize(trained, pair[0][:CALIBRATION], 3), pair)
    assert rounded > 3 * errors(trained, pair)
    assert errors(learned(trained, pair, 3, epochs=4), pair) < 0.5 * rounded


def test_the_result_is_a_quantized_model_like_any(trained, splits, tmp_path):
    before = copy.deepcopy(trained)
    model = learned(trained, splits["train"], 3)
    assert same_weights(trained, before)
    assert not list(model.parameters()) and not model.training
    rounded = quantize(trained, splits["train"][0][:CALIBRATION], 3)
    assert spec_of(model) == spec_of(rounded) and spec_of(model).quantization.bits == 3
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (model, rounded)]
    assert shapes[0] == shapes[1]
    assert all(layer.weight.abs().max() == 3 for layer in integers_of(model))
    same_when_stored(model, splits["test"][0], tmp_path)


def test_pruned_weights_stay_zero(trained, splits):
    sparse = prune("LWM", trained, 0.6).model
    sparse.layer1[0].bn1.weight.data[1] = 0.0  # a filter that batch-norm has switched off
    zeros = {n: m.weight == 0 for n, m in sparse.named_modules() if isinstance(m, nn.Conv2d)}
    zeros["layer1.0.conv1"][1] = True
    model = learned(sparse, splits["train"], 8, lr=0.02)
    rounded = quantize(sparse, splits["train"][0][:CALIBRATION], 8)
    for name, zero in zeros.items():
        found, before = model.get_submodule(name).weight, rounded.get_submodule(name).weight
        assert found[zero].eq(0).all()
        assert (found != before)[~zero].float().mean() > 0.1  # while the others learn
    assert sparsity_of(model) > 0.5


def test_adversarial_training_withstands_more(trained, splits):
    pair = splits["train"]
    images, labels = (t[:256] for t in pair)
    found = {}
    for method in ("standard", "pgd"):
        model = learned(trained, pair, 4, method=method, epochs=2, steps=2)
        adv = pgd(twin(model), images, labels, TRAIN.eps, TRAIN.eps / 2, 5)
        found[method] = errors(model, (adv, labels))
    assert found["pgd"] < found["standard"] - 0.1


def test_a_killed_run_ends_with_the_integers_of_an_unbroken_one(trained, splits, tmp_path):
    pair = tuple(t[:192] for t in splits["train"])
    with stored(kill_after=1):
        learned(trained, pair, 4, tmp_path / "state.pt", epochs=3)
    resumed = learned(trained, pair, 4, tmp_path / "state.pt", epochs=3)
    assert same_weights(resumed, learned(trained, pair, 4, epochs=3))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_eight_bits_against_torchao(trained, splits):
    """Weights, ranges, accuracy and predictions are those of PT2E with X86InductorQuantizer.

    Its weights span [-128, 127] and its scales are `amax / 127.5`, so integers differ by one at
    most. Its activations have all 8 bits (reduce_range is off) in ranges from histograms, a little
    tighter than minimum to maximum; the classifier shares the wider range before the pooling.
    """
    pt2e = "torchao.quantization.pt2e"
    peer = pytest.importorskip(f"{pt2e}.quantize_pt2e")
    inductor = pytest.importorskip(f"{pt2e}.quantizer.x86_inductor_quantizer")
    images, (test, labels) = splits["train"][0][:CALIBRATION], splits["test"]
    batch = {0: torch.export.Dim("n", min=2, max=4096)}
    graph = torch.export.export(trained, (images,), dynamic_shapes=(batch,)).module()
    quantizer = inductor.X86InductorQuantizer()
    quantizer.set_global(inductor.get_default_x86_inductor_quantization_config())
    prepared = peer.prepare_pt2e(graph, quantizer)
    prepared(images)
    theirs, ours = peer.convert_pt2e(prepared), quantize(trained, images)
    weights = [b for b in theirs.buffers() if b.dtype == torch.int8]
    layers = integers_of(ours)
    assert [w.shape for w in weights] == [layer.weight.shape for layer in layers]
    for weight, layer in zip(weights, layers, strict=True):
        assert int((weight.int() - layer.weight.int()).abs().max()) <= 1
    kinds = torch.ops.aten.conv2d.default, torch.ops.aten.linear.default
    calls = [node for node in theirs.graph.nodes if node.target in kinds]
    for call, layer in zip(calls, layers, strict=True):
        scale, zero = call.args[0].args[1:3]  # of the dequantization that feeds it
        assert (0.98 if layer.conv else 0.2) < float(layer.input_scale) / scale < 1.25
        assert abs(float(layer.input_zero) - zero) <= 1
    exact, found, expected = trained(test), ours(test), theirs(test)
    assert (found.argmax(1) == expected.argmax(1)).float().mean() > 0.98
    shares = [errors(m, (test, labels)) for m in (trained, ours, theirs)]
    assert max(shares) - min(shares) < 0.02 and max(shares) < 0.1
    ratio = (found - exact).norm() / (expected - exact).norm()
    assert 0.4 < ratio < 1.5  # we lose no more of the logits than they do


def test_ranges_of_a_network_that_draws_do_not_depend_on_the_random_state(network, digits):
    found = []
    for state in (1, 2):
        parent = prune("dropout", copy.deepcopy(network), 0.5).model
        torch.manual_seed(state)
        found.append(quantize(parent, digits[0]))
    assert same_weights(*found)
