"""Post-training quantization to b bits: an integer-valued model and its differentiable twin.

Nagel et al., A White Paper on Neural Network Quantization (2021), sections 2 and 3. Batch-norm is
folded; weights are symmetric per output channel, `W ~ s_w q_w`; the input of every convolution and
linear layer is affine per tensor, `x ~ s_x (q_x - z)`. Biases are 32-bit integers on the scale
`s_x s_w`. The integer model multiplies and adds whole numbers only (carried in float64, in which
sums below 2^53 are exact, or in float32 where they stay below 2^24, so every machine gets the same
ones); between layers (residual sums, ReLU, pooling) values are real, as in a dequantize-quantize
graph.

The twin computes the same map in float32 with straight-through gradients: rounding and clipping
have derivative one (BPDA, Athalye et al. 2018). Attacks run on the twin and are scored on the
integer model; `agreement` says how far the two are the same. Training through the same map is in
training.py.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.models.border import check_images, compressible, refuse
from advprune.models.draws import undisturbed
from advprune.models.fold import fold_batchnorm
from advprune.models.quantized import QuantizedLayer, every_layer, float_layers, replace, twin
from advprune.models.spec import ModelSpec, QuantizationSpec, attach, spec_of


def has_integers(layer: nn.Module) -> bool:
    """Whether integers can do what a layer does: it is nothing derived from nn.Conv2d or nn.Linear,
    and what it pads with are zeros."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros")


def quantize(
    model: nn.Module, images: torch.Tensor, bits: int = 8, percentile: float = 100.0
) -> nn.Module:
    """Quantize a dense model; input ranges come from `images` `[N, C, H, W]` in [0, 1].

    bits: 2 to 8. percentile: the part of each layer's inputs that the range covers; 100 is minimum
    to maximum. The given model stays as it was. In a foreign network, layers that are
    more than nn.Conv2d or nn.Linear, or whose weight is read without calling them, are left in
    floating point; the spec names them. Raises ValueError for other bits, and UserError for a
    binary network, where a family put a layer on a weight or behind a convolution, and where no
    layer is left to be quantized.
    """
    folded, integers = calibrated(model, images, bits, percentile)
    for name, layer in float_layers(folded).items():
        if name in integers:
            integers[name].set_weights(layer)
            replace(folded, name, integers[name])
    return folded.eval()


def quantized_spec(model: nn.Module, bits: int, left: Iterable[str] = ()) -> ModelSpec:
    """The spec of a model's quantized form; ValueError for bits outside 2 to 8."""
    refuse("quantize", {f"bits: {bits!r} is not from 2 to 8": bits not in range(2, 9)})
    quantization = QuantizationSpec(bits=bits, left=tuple(left))
    return spec_of(model).model_copy(update={"quantization": quantization})


def calibrated(
    model: nn.Module, images: torch.Tensor, bits: int, percentile: float
) -> tuple[nn.Module, dict[str, QuantizedLayer]]:
    """The folded float network, and by name the integer layers that are to replace its own.

    Their input ranges are set, from what the float layers receive on `images`; their weights are
    not. The network carries the quantized form's spec.
    """
    check_images("quantize", images)
    model = compressible("quantize", model, images)
    quantized_spec(model, bits)  # refuses bits that are out of range
    float_layers(model)  # before folding, which looks through wrapped layers
    folded = fold_batchnorm(model)
    layers = {name: m for name, m in float_layers(folded).items() if has_integers(m)}
    ranges = _input_ranges(folded, layers, images, percentile)
    if not ranges:
        raise UserError("quantize: the network calls no nn.Conv2d or nn.Linear")
    integers = {name: QuantizedLayer(layers[name], bits) for name in ranges}
    for name, ends in ranges.items():
        integers[name].set_input_range(*ends)
    attach(
        folded,
        quantized_spec(model, bits, left=[n for n in every_layer(folded) if n not in ranges]),
    )
    return folded, integers


def _input_ranges(
    model: nn.Module,
    layers: dict[str, nn.Conv2d | nn.Linear],
    images: torch.Tensor,
    percentile: float,
    batch: int = 64,
) -> dict[str, tuple[float, float]]:
    """Per layer that is called, the low and high ends of what it receives on `images`."""
    device = device_of(model)
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name].append(_ends(inputs[0], percentile))

        return record

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad(), undisturbed(device):
            for part in images.split(batch):
                model(part.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: _widest(ends, percentile) for name, ends in seen.items() if ends}


def _ends(x: torch.Tensor, percentile: float) -> tuple[float, float]:
    if percentile == 100.0:
        return float(x.min()), float(x.max())
    flat = x.flatten()
    rank = max(1, round(flat.numel() * (1 - percentile / 100)))
    return float(flat.kthvalue(rank).values), float(flat.kthvalue(flat.numel() - rank + 1).values)


def _widest(ends: list[tuple[float, float]], percentile: float) -> tuple[float, float]:
    """All of the range for minimum to maximum; the mean over batches for percentiles."""
    lows, highs = zip(*ends, strict=True)
    if percentile == 100.0:
        return min(lows), max(highs)
    return sum(lows) / len(lows), sum(highs) / len(highs)


@torch.no_grad()
def agreement(model: nn.Module, images: torch.Tensor, batch: int = 64) -> tuple[float, float]:
    """How far a quantized model and its twin are the same on `images`.

    Returns the share of equal predictions, and the largest logit difference over the largest
    absolute logit.
    """
    differentiable = twin(model)
    same, gap, size = 0, 0.0, 1e-12
    for part in images.split(batch):
        exact, smooth = model(part), differentiable(part)
        same += int((exact.argmax(1) == smooth.argmax(1)).sum())
        gap = max(gap, float((exact - smooth).abs().max()))
        size = max(size, float(exact.abs().max()))
    return same / max(len(images), 1), gap / size
