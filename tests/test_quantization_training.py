"""Quantization-aware training against its own integers; the integers against torchao's."""

from pathlib import Path

import pytest
import torch
from torch import nn

from advprune.attacks import pgd
from advprune.core.train_settings import (
    DataSettings,
    FineTuneSettings,
    QuantizeSettings,
    RecipeSettings,
    TrainSettings,
)
from advprune.data import prepare
from advprune.models.card import sparsity_of
from advprune.models.checkpoint import load_model, save_model
from advprune.models.spec import spec_of
from advprune.pruning import Data, prune
from advprune.quantization.post_training import QuantizedLayer, agreement, quantize, twin
from advprune.quantization.training import (
    TrainedLayer,
    integer_form,
    quantization_aware,
    trained_layers,
    training_form,
)
from advprune.training.finetune import finetune
from advprune.training.standard import Trainer
from conftest import make_network, same_weights, stored

Pair = tuple[torch.Tensor, torch.Tensor]
TRAIN = TrainSettings(batch=64, lr=0.1, label_smoothing=0.1, eps=24 / 255)
CALIBRATION = 256


@pytest.fixture(scope="module")
def splits() -> dict[str, Pair]:
    """1146 real digits to train on and 449 to test with: float images in [0, 1], labels."""
    found = prepare(DataSettings(source="digits", val_fraction=0.15, test_fraction=0.25))
    return {name: (split.images / 255, split.labels) for name, split in found.items()}


@pytest.fixture(scope="module")
def trained(splits: dict[str, Pair]) -> nn.Module:
    """A narrow ResNet20, trained for six epochs; not to be changed."""
    images, labels = splits["train"]
    model = make_network(images[:64], "resnet20")
    pair = (images * 255).round().to(torch.uint8), labels
    Trainer(model, pair, None, TRAIN, RecipeSettings(epochs=6), 0, None).run()
    return model


def learned(
    model: nn.Module, pair: Pair, bits: int, state: Path | None = None, **setting: object
) -> nn.Module:
    """Quantization-aware training on a pair of images and labels."""
    chosen = FineTuneSettings(**{"epochs": 1, "lr": 0.01, **setting})
    few = pair[0][:CALIBRATION]
    how = QuantizeSettings(bits=bits, training=chosen)
    return quantization_aware(model, how, Data(*pair, TRAIN, state), 0, few)


@torch.no_grad()
def errors(model: nn.Module, pair: Pair) -> float:
    """Share of images that are misclassified."""
    return float((model(pair[0]).argmax(1) != pair[1]).float().mean())


def integers_of(model: nn.Module) -> list[QuantizedLayer]:
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]


def test_a_layer_in_training_by_hand() -> None:
    linear = nn.Linear(3, 2)
    linear.weight.data = torch.tensor([[1.0, -0.4, 0.3], [0.0, 0.5, -2.0]])
    linear.bias.data = torch.tensor([0.12, -0.3])
    integers = QuantizedLayer(linear, 3)
    integers.set_input_range(0.0, 1.4)  # scale 0.2, integers 0 to 7
    layer = TrainedLayer(linear, integers)
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


def test_gradients_reach_every_weight(trained: nn.Module, splits: dict[str, Pair]) -> None:
    images, labels = splits["train"]
    form = training_form(trained, images[:CALIBRATION], 4).train()
    nn.functional.cross_entropy(form(images[:64]), labels[:64]).backward()
    layers = trained_layers(form)
    assert len(layers) == 22 and len(list(form.parameters())) == 44
    for layer in layers.values():
        assert (layer.layer.weight.grad != 0).float().mean() > 0.3
        assert layer.layer.bias.grad.isfinite().all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_what_is_trained_is_what_the_integers_compute(
    trained: nn.Module, splits: dict[str, Pair], bits: int
) -> None:
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
    same_predictions, gap = agreement(model, test)
    assert same_predictions > 0.98 and gap < 0.1


@pytest.mark.parametrize("bits", [4, 3])
def test_training_undoes_much_of_the_harm_of_few_bits(
    trained: nn.Module, splits: dict[str, Pair], bits: int
) -> None:
    pair = splits["train"]
    rounded = errors(quantize(trained, pair[0][:CALIBRATION], bits), pair)
    assert rounded > 3 * errors(trained, pair)
    assert errors(learned(trained, pair, bits, epochs=4), pair) < 0.5 * rounded


def test_the_result_is_a_quantized_model_like_any(
    trained: nn.Module, splits: dict[str, Pair], tmp_path: Path
) -> None:
    before = {name: t.clone() for name, t in trained.state_dict().items()}
    model = learned(trained, splits["train"], 3)
    assert all(torch.equal(t, before[name]) for name, t in trained.state_dict().items())
    assert not list(model.parameters()) and not model.training
    rounded = quantize(trained, splits["train"][0][:CALIBRATION], 3)
    assert spec_of(model) == spec_of(rounded) and spec_of(model).quantization.bits == 3
    shapes = [{n: (t.shape, t.dtype) for n, t in m.state_dict().items()} for m in (model, rounded)]
    assert shapes[0] == shapes[1]
    assert all(layer.weight.abs().max() == 3 for layer in integers_of(model))
    save_model(model, tmp_path / "model.safetensors")
    images = splits["test"][0]
    assert torch.equal(load_model(tmp_path / "model.safetensors")(images), model(images))


def test_pruned_weights_stay_zero(trained: nn.Module, splits: dict[str, Pair]) -> None:
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


def test_training_on_attacked_images_withstands_more(
    trained: nn.Module, splits: dict[str, Pair]
) -> None:
    pair = splits["train"]
    images, labels = (t[:256] for t in pair)
    found = {}
    for method in ("standard", "pgd"):
        model = learned(trained, pair, 4, method=method, epochs=2, steps=2)
        adv = pgd(twin(model), images, labels, TRAIN.eps, TRAIN.eps / 2, 5)
        found[method] = errors(model, (adv, labels))
    assert found["pgd"] < found["standard"] - 0.1


def test_a_killed_run_ends_with_the_integers_of_an_unbroken_one(
    trained: nn.Module, splits: dict[str, Pair], tmp_path: Path
) -> None:
    pair = tuple(t[:192] for t in splits["train"])
    with stored(kill_after=1):
        learned(trained, pair, 4, tmp_path / "state.pt", epochs=3)
    resumed = learned(trained, pair, 4, tmp_path / "state.pt", epochs=3)
    assert same_weights(resumed, learned(trained, pair, 4, epochs=3))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_eight_bits_against_torchao(trained: nn.Module, splits: dict[str, Pair]) -> None:
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
