"""Post-training quantization to b bits: an integer-valued model and its differentiable twin.

Nagel et al., A White Paper on Neural Network Quantization (2021), sections 2 and 3. Batch-norm is
folded; weights are symmetric per output channel, `W ~ s_w q_w`; the input of every convolution and
linear layer is affine per tensor, `x ~ s_x (q_x - z)`. Biases are integers on the scale
`s_x s_w`. The integer model multiplies and adds whole numbers only (carried in float64, in which
sums below 2^53 are exact, so every machine gets the same ones); between layers (residual sums,
ReLU, pooling) values are real, as in a dequantize-quantize graph.

The twin computes the same map in float32 with straight-through gradients: rounding and clipping
have derivative one (BPDA, Athalye et al. 2018). Attacks run on the twin and are scored on the
integer model; `agreement` says how far the two are the same.
"""

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from advprune.models.fold import fold_batchnorm
from advprune.models.spec import QuantizationSpec, attach, spec_of


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
        out = layer.weight.shape[0]
        self.levels, self.differentiable = 2**bits - 1, False
        self.conv = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else None
        self.register_buffer("weight", torch.zeros_like(layer.weight, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out))
        self.register_buffer("bias", torch.zeros(out, dtype=torch.float64))
        self.register_buffer("input_scale", torch.tensor(1.0))
        self.register_buffer("input_zero", torch.tensor(0.0))

    def set_weights(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Quantize a layer's weight and bias; the input range must be set before."""
        most = self.levels // 2  # 127 for 8 bits: symmetric, so -128 is not used
        w = layer.weight.detach()
        self.weight_scale = (w.flatten(1).abs().amax(1) / most).clamp_min(1e-12)
        shape = (-1,) + (1,) * (w.ndim - 1)
        self.weight = (w / self.weight_scale.view(shape)).round().clamp(-most, most).to(torch.int8)
        if layer.bias is not None:
            scale = self.weight_scale.double() * self.input_scale.double()
            self.bias = (layer.bias.detach().double() / scale).round()

    def set_input_range(self, low: float, high: float) -> None:
        """Choose scale and zero point so that [low, high], widened to hold 0, is covered."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / self.levels, 1e-12)
        self.input_scale = torch.tensor(scale, dtype=torch.float32)
        self.input_zero = torch.tensor(float(round(-low / scale)))

    def integers(self, x: torch.Tensor) -> torch.Tensor:
        """`q_x - z`: whole numbers, as float of the input's type."""
        q = (x / self.input_scale).round() + self.input_zero
        return q.clamp(0, self.levels) - self.input_zero

    def _apply_weights(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.conv is None:
            return F.linear(x, weight)
        stride, padding = self.conv
        return F.conv2d(x, weight, stride=stride, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1) if self.conv is None else (1, -1, 1, 1)
        scale = (self.weight_scale * self.input_scale).view(shape)
        q = self.integers(x)
        if self.differentiable:
            real = x + (q * self.input_scale - x).detach()
            weight = self.weight.to(x.dtype) * self.weight_scale.view(
                (-1,) + (1,) * (self.weight.ndim - 1)
            )
            return self._apply_weights(real, weight) + self.bias.to(x.dtype).view(shape) * scale
        total = self._apply_weights(q.double(), self.weight.double()) + self.bias.view(shape)
        return (total * scale).to(x.dtype)


def _replace_layers(model: nn.Module, bits: int) -> dict[str, QuantizedLayer]:
    """Put a QuantizedLayer where each convolution and linear layer is; returns them by name."""
    replaced = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            parent, _, leaf = name.rpartition(".")
            replaced[name] = QuantizedLayer(module, bits)
            setattr(model.get_submodule(parent), leaf, replaced[name])
    return replaced


def skeleton(model: nn.Module, spec: QuantizationSpec) -> nn.Module:
    """The quantized form of a dense model with empty weights, for loading a checkpoint."""
    folded = fold_batchnorm(model)
    _replace_layers(folded, spec.bits)
    return folded.eval()


def quantize(
    model: nn.Module, images: torch.Tensor, bits: int = 8, percentile: float = 100.0
) -> nn.Module:
    """Quantize a dense model; input ranges come from `images` `[N, C, H, W]` in [0, 1].

    percentile: the part of each layer's inputs that the range covers; 100 is minimum to maximum.
    The given model stays as it was.
    """
    spec = spec_of(model)
    folded = fold_batchnorm(model)
    layers = {n: m for n, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    ranges = _input_ranges(folded, layers, images, percentile)
    for name, quantized in _replace_layers(folded, bits).items():
        quantized.set_input_range(*ranges[name])
        quantized.set_weights(layers[name])
    attach(folded, spec.model_copy(update={"quantization": QuantizationSpec(bits=bits)}))
    return folded.eval()


def _input_ranges(
    model: nn.Module,
    layers: dict[str, nn.Conv2d | nn.Linear],
    images: torch.Tensor,
    percentile: float,
    batch: int = 64,
) -> dict[str, tuple[float, float]]:
    """Per layer, the low and high ends of what it receives on `images`."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def record(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name].append(_ends(inputs[0], percentile))

        return record

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for part in images.split(batch):
                model(part)
    finally:
        for handle in handles:
            handle.remove()
    return {name: _widest(ends, percentile) for name, ends in seen.items()}


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
