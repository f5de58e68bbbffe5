"""The integer model against whole-number arithmetic, and its twin."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import correlate
from torch import nn

from advprune.attacks import pgd
from advprune.core.errors import UserError
from advprune.models.checkpoint import load_model, save_model
from advprune.models.spec import spec_of
from advprune.pruning import prune
from advprune.quantization.post_training import QuantizedLayer, agreement, quantize, twin

Pair = tuple[torch.Tensor, torch.Tensor]


def layer_of(layer: nn.Conv2d | nn.Linear, bits: int, low: float, high: float) -> QuantizedLayer:
    """A quantized layer with a given input range."""
    quantized = QuantizedLayer(layer, bits)
    quantized.set_input_range(low, high)
    quantized.set_weights(layer)
    return quantized


def test_quantizer_by_hand() -> None:
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


@pytest.mark.parametrize(("fan_in", "sums"), [(2, torch.float32), (600, torch.float64)])
def test_convolution_is_exact_integer_arithmetic(fan_in: int, sums: torch.dtype) -> None:
    conv = nn.Conv2d(fan_in, 3, 3, padding=1, stride=2)
    conv.weight.data = conv.weight.data.abs()  # so that sums become large
    layer = layer_of(conv, 8, -0.7, 1.1)
    x = torch.rand(1, fan_in, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 0.8
    q = np.pad(layer.integers(x)[0].long().numpy(), ((0, 0), (1, 1), (1, 1)))
    whole = np.stack([correlate(q, w, "valid", "direct")[0] for w in layer.weight.long().numpy()])
    assert whole.dtype == np.int64 and whole.shape == (3, 5, 5)
    total = torch.from_numpy(whole[:, ::2, ::2]) + layer.bias.view(-1, 1, 1)
    scale = (layer.weight_scale * layer.input_scale).view(-1, 1, 1)
    assert torch.equal(layer(x)[0], (total * scale).float())
    assert layer._exact_type(x) == sums  # float32 where no sum can reach 2^24


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_stored_integers_fit_their_bits(network: nn.Module, digits: Pair, bits: int) -> None:
    before = {name: t.clone() for name, t in network.state_dict().items()}
    model = quantize(network, digits[0], bits)
    layers = [m for m in model.modules() if isinstance(m, QuantizedLayer)]
    assert len(layers) == 21  # 20 convolutions and the classifier
    for layer in layers:
        assert layer.weight.dtype == torch.int8
        assert int(layer.weight.abs().max()) == 2 ** (bits - 1) - 1  # some weight sets the scale
        assert 0 <= float(layer.input_zero) <= 2**bits - 1
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert spec_of(network).quantization is None  # the float model is as it was


def test_the_bias_of_a_channel_without_weights_fits_32_bits() -> None:
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


def test_what_integers_cannot_do_is_refused(network: nn.Module, digits: Pair) -> None:
    with pytest.raises(UserError, match="has another layer behind it"):
        quantize(prune("SAP", network, {"fraction": 1.0, "where": "conv"}).model, digits[0])
    for bits in (1, 9):
        with pytest.raises(ValueError, match="bits"):
            quantize(network, digits[0], bits)


def test_eight_bits_stay_near_the_float_model_and_fewer_bits_do_not(
    network: nn.Module, digits: Pair
) -> None:
    expected = network(digits[0]).detach()
    errors = []
    for bits in (8, 4, 2):
        model = quantize(network, digits[0], bits)
        errors.append(float((model(digits[0]) - expected).norm() / expected.norm()))
        same, gap = agreement(model, digits[0])  # of the twin
        assert same >= 0.95 and gap < 0.05
    assert errors[0] < 0.1 < errors[1] < errors[2]


def test_the_twin_has_a_gradient_that_leads_to_images_which_fool_the_integers(
    network: nn.Module, digits: Pair
) -> None:
    model = quantize(network, digits[0])
    x, smooth = (digits[0].clone().requires_grad_() for _ in range(2))
    twin(model)(x).sum().backward()
    network(smooth).sum().backward()
    cosine = torch.cosine_similarity(x.grad.flatten(1), smooth.grad.flatten(1))
    assert cosine.mean() > 0.8  # it points where that of the float network does
    labels = model(digits[0]).argmax(1)
    adv = pgd(twin(model), digits[0], labels, 0.2, 0.05, 10)
    assert (model(adv).argmax(1) != labels).float().mean() > 0.9


def test_agreement_notices_a_twin_that_differs(
    network: nn.Module, digits: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, coarse = quantize(network, digits[0]), quantize(network, digits[0], bits=2)
    monkeypatch.setattr("advprune.quantization.post_training.twin", lambda _: coarse)
    same, gap = agreement(model, digits[0])
    predictions = [m(digits[0]).argmax(1) for m in (model, coarse)]
    assert same == float((predictions[0] == predictions[1]).float().mean()) < 0.9
    assert gap > 0.1


@pytest.mark.parametrize(("family", "bits"), [(None, 4), ("clamp", 6)])
def test_quantized_models_survive_save_and_load(
    network: nn.Module, digits: Pair, tmp_path: Path, family: str | None, bits: int
) -> None:
    dense = prune(family, network, 3, digits).model if family else network
    model = quantize(dense, digits[0], bits)
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert torch.equal(loaded(digits[0]), model(digits[0]))
    assert spec_of(loaded) == spec_of(model) and spec_of(loaded).quantization.bits == bits


def test_a_range_is_the_whole_one(network: nn.Module) -> None:
    images = torch.linspace(0, 1, 64).view(1, 1, 8, 8).repeat(128, 1, 1, 1)
    images[64:] /= 2  # the second batch
    layer = quantize(network, images, 8).conv1  # what it sees is divided by 0.4
    assert float(255 * layer.input_scale) == pytest.approx(1 / 0.4, rel=1e-5)
