"""Post-training quantization to b bits: an integer-valued model and its differentiable twin.

Nagel et al., A White Paper on Neural Network Quantization (2021), sections 2 and 3. Batch-norm is
folded; weights are symmetric per output channel, `W ~ s_w q_w`; the input of every convolution and
linear layer is affine per tensor, `x ~ s_x (q_x - z)`. Biases are 32-bit integers on the scale
`s_x s_w`. The integer model multiplies and adds whole numbers only (carried in float64, in which
sums below 2^53 are exact, or in float32 where they stay below 2^24, so every machine gets the same
ones); between layers (residual sums,
ReLU, pooling) values are real, as in a dequantize-quantize graph.

The twin computes the same map in float32 with straight-through gradients: rounding and clipping
have derivative one (BPDA, Athalye et al. 2018). Attacks run on the twin and are scored on the
integer model; `agreement` says how far the two are the same. Training through the same map is in
quantization_training.py.
"""

import copy
from collections.abc import Callable, Container, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.device import device_of
from advprune.core.errors import UserError
from advprune.models.binary import is_binary
from advprune.models.fold import fold_batchnorm
from advprune.models.insert import WrappedConv2d, WrappedLinear
from advprune.models.spec import ModelSpec, QuantizationSpec, attach, spec_of

MOST_BIAS = 2**30  # far enough below 2^31 for the rounding of float32


class QuantizedLayer(nn.Module):
    """A convolution or linear layer on integers.

    Buffers: weight int8 `[out, ...]`, weight_scale `[out]`, bias int32 `[out]` (in float64),
    input_scale and input_zero (scalars). Integer inputs lie in [0, 2^bits - 1].
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor
    input_scale: torch.Tensor
    input_zero: torch.Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        out, device = layer.weight.shape[0], layer.weight.device
        self.levels, self.differentiable = 2**bits - 1, False
        names = ("stride", "padding", "dilation", "groups")
        convolves = isinstance(layer, nn.Conv2d)
        self.conv = {name: getattr(layer, name) for name in names} if convolves else None
        self.register_buffer("weight", torch.zeros_like(layer.weight, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out, device=device))
        self.register_buffer("bias", torch.zeros(out, dtype=torch.float64, device=device))
        self.register_buffer("input_scale", torch.tensor(1.0, device=device))
        self.register_buffer("input_zero", torch.tensor(0.0, device=device))

    def set_weights(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Quantize a layer's weight and bias; the input range must be set before.

        `s_w = max |w| / (2^(bits-1) - 1)` for each output channel, or more where the bias would
        not fit 32 bits: a channel whose weights are all zero may have a bias.
        """
        most = self.levels // 2  # 127 for 8 bits: symmetric, so -128 is not used
        w = layer.weight.detach()
        self.weight_scale = (w.flatten(1).abs().amax(1) / most).clamp_min(1e-12)
        if layer.bias is not None:
            least = layer.bias.detach().abs() / self.input_scale / MOST_BIAS
            self.weight_scale = torch.maximum(self.weight_scale, least)
            scale = self.weight_scale.double() * self.input_scale.double()
            self.bias = (layer.bias.detach().double() / scale).round()
        q = (w / _by_row(self.weight_scale, w)).round()
        self.weight = q.clamp(-most, most).to(torch.int8)

    def set_input_range(self, low: float, high: float) -> None:
        """Choose scale and zero point so that [low, high], widened to hold 0, is covered."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / self.levels, 1e-12)
        self.input_scale = torch.full_like(self.input_scale, scale)
        self.input_zero = torch.full_like(self.input_zero, round(-low / scale))

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """`q_x - z`: whole numbers, as float of the input's type."""
        q = (x / self.input_scale).round() + self.input_zero
        return q.clamp(0, self.levels) - self.input_zero

    def _apply_weights(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.conv is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, **self.conv)

    def _exact_type(self, x: torch.Tensor) -> torch.dtype:
        """float32 where no sum can reach 2^24, up to which it holds whole numbers exactly; else
        float64. Off the CPU convolutions may go through transforms that are not whole."""
        sums = self.weight.flatten(1).abs().sum(1, dtype=torch.int64)
        most = int(sums.max()) * int((self.levels - self.input_zero).abs().max(self.input_zero))
        return torch.float32 if x.device.type == "cpu" and most < 2**24 else torch.float64

    def _channels(self, values: torch.Tensor) -> torch.Tensor:
        """Values `[out]` in a shape that broadcasts over the layer's output."""
        return values.view((1, -1) if self.conv is None else (1, -1, 1, 1))

    def simulate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The layer on real numbers: `x` rounded to the input's grid, with derivative one."""
        real = straight_through(x, self.integers(x.detach()) * self.input_scale)
        return self._apply_weights(real, weight) + self._channels(bias)

    def real(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight `s_w q_w` and the bias `s_w s_x q_b` that the integers stand for."""
        weight = self.weight.to(dtype) * _by_row(self.weight_scale, self.weight)
        return weight, self.bias.to(dtype) * (self.weight_scale * self.input_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.differentiable:
            return self.simulate(x, *self.real(x.dtype))
        exact = self._exact_type(x)
        total = self._apply_weights(self.integers(x).to(exact), self.weight.to(exact)).double()
        scale = self._channels(self.weight_scale * self.input_scale)
        return ((total + self._channels(self.bias)) * scale).to(x.dtype)


def _by_row(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values `[out]` in a shape that broadcasts over a weight `[out, ...]`."""
    return values.view((-1,) + (1,) * (weight.ndim - 1))


def straight_through(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value`, exactly, with the derivative of `x`."""
    return value.detach() + (x - x.detach())


def float_layers(model: nn.Module, left: Container[str] = ()) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers of a float network that quantization replaces, by name; `left` stay."""
    if is_binary(model):
        raise UserError(
            "quantize: the network is binary: its weights are stored in one bit as it is"
        )
    found = {n: m for n, m in _layers(model).items() if n not in left}
    for name, layer in found.items():
        if isinstance(layer, WrappedConv2d | WrappedLinear):
            raise UserError(
                f"quantize: {name} has another layer on its weight or behind it, which integers "
                "have no place for; quantize the dense network or another family"
            )
    return found


def _layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    kinds = nn.Conv2d, nn.Linear
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def has_integers(layer: nn.Module) -> bool:
    """Whether integers can do what a layer does: it is nothing derived from nn.Conv2d or nn.Linear,
    and what it pads with are zeros."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.padding_mode == "zeros")


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where `name` is, in place."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def skeleton(model: nn.Module, spec: QuantizationSpec) -> nn.Module:
    """The quantized form of a dense model with empty weights, for loading a checkpoint."""
    folded = fold_batchnorm(model)
    for name, layer in float_layers(folded, spec.left).items():
        replace(folded, name, QuantizedLayer(layer, spec.bits))
    return folded.eval()


def quantize(
    model: nn.Module, images: torch.Tensor, bits: int = 8, percentile: float = 100.0
) -> nn.Module:
    """Quantize a dense model; input ranges come from `images` `[N, C, H, W]` in [0, 1].

    bits: 2 to 8. percentile: the part of each layer's inputs that the range covers; 100 is minimum
    to maximum. The given model stays as it was. In a network of another's making, layers that are
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
    quantization = QuantizationSpec(bits=bits, left=tuple(left))
    return spec_of(model).model_copy(update={"quantization": quantization})


def calibrated(
    model: nn.Module, images: torch.Tensor, bits: int, percentile: float
) -> tuple[nn.Module, dict[str, QuantizedLayer]]:
    """The folded float network, and by name the integer layers that are to replace its own.

    Their input ranges are set, from what the float layers receive on `images`; their weights are
    not. The network carries the quantized form's spec.
    """
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
        folded, quantized_spec(model, bits, left=[n for n in _layers(folded) if n not in ranges])
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
        with torch.no_grad():
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


def twin(model: nn.Module) -> nn.Module:
    """The differentiable copy of a quantized model (float32, straight-through gradients)."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, QuantizedLayer):
            module.differentiable = True
    return copied


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


def is_quantized(model: nn.Module) -> bool:
    """Whether a model has quantized layers, and so needs its twin to be differentiated."""
    return any(isinstance(module, QuantizedLayer) for module in model.modules())
