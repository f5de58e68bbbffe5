"""Quantized networks as they are deployed: integer layers, and their differentiable twin."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.errors import UserError
from advprune.models.backward import straight_through
from advprune.models.binary import is_binary
from advprune.models.fold import fold_batchnorm
from advprune.models.insert import WrappedConv2d
from advprune.models.spec import QuantizationSpec
from advprune.models.target import Target

MOST_BIAS = 2**30  # far enough below 2^31 for the rounding of float32


class QuantizedLayer(nn.Module):
    """A convolution or linear layer on integers. Buffers: weight int8 `[out, ...]`, weight_scale
    `[out]`, bias int32 `[out]` (in float64), input_scale and input_zero (scalars). Integer inputs
    lie in [0, 2^bits - 1]."""

    declares_rule = True  # that of its twin
    weight: torch.Tensor
    weight_scale: torch.Tensor
    bias: torch.Tensor
    input_scale: torch.Tensor
    input_zero: torch.Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        self.levels, self.differentiable = 2**bits - 1, False
        names = ("stride", "padding", "dilation", "groups")
        convolves = isinstance(layer, nn.Conv2d)
        self.conv = {name: getattr(layer, name) for name in names} if convolves else None
        for name in layer.__constants__:  # sizes, which the network's own code may ask for
            setattr(self, name, getattr(layer, name))
        out, device = layer.weight.shape[0], layer.weight.device
        self.register_buffer("weight", torch.zeros_like(layer.weight, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(out, device=device))
        self.register_buffer("bias", torch.zeros(out, dtype=torch.float64, device=device))
        self.register_buffer("input_scale", torch.tensor(1.0, device=device))
        self.register_buffer("input_zero", torch.tensor(0.0, device=device))

    def set_weights(self, layer: nn.Conv2d | nn.Linear) -> None:
        """Quantize a layer's weight and bias, once the input range is set. `s_w = max |w| /
        (2^(bits-1) - 1)` for each output channel, or more where the bias would not fit 32 bits."""
        most = self.levels // 2  # 127 for 8 bits: symmetric, so -128 is not used
        w = layer.weight.detach()
        self.weight_scale = (w.flatten(1).abs().amax(1) / most).clamp_min(1e-12)
        if layer.bias is not None:
            least = layer.bias.detach().abs() / self.input_scale / MOST_BIAS
            self.weight_scale = torch.maximum(self.weight_scale, least)
            scale = self.weight_scale.double() * self.input_scale.double()
            self.bias = (layer.bias.detach().double() / scale).round()
        q = (w / self._spread(self.weight_scale, 1)).round()
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

    def _spread(self, values: torch.Tensor, behind: int) -> torch.Tensor:
        """Values `[out]` in a shape that broadcasts over weights (behind 1) or outputs (0)."""
        return values.view(-1, *[1] * (self.weight.ndim - 2 + behind))

    def _apply_weights(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self.conv is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, **self.conv)

    def simulate(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The layer on real numbers: `x` rounded to the input's grid, with derivative one."""
        real = straight_through(x, self.integers(x.detach()) * self.input_scale)
        return self._apply_weights(real, weight) + self._spread(bias, 0)

    def real(self, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
        """The weight `s_w q_w` and the bias `s_w s_x q_b` that the integers stand for."""
        weight = self.weight.to(dtype) * self._spread(self.weight_scale, 1)
        return weight, self.bias.to(dtype) * (self.weight_scale * self.input_scale)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        x = input
        if self.differentiable:
            return self.simulate(x, *self.real(x.dtype))
        # float32 holds whole numbers exactly up to 2^24, if all sums stay below that. Off the CPU
        # convolutions may go through transforms that are not whole.
        sums = self.weight.flatten(1).abs().sum(1, dtype=torch.int64)
        most = int(sums.max()) * int((self.levels - self.input_zero).abs().max(self.input_zero))
        exact = torch.float32 if x.device.type == "cpu" and most < 2**24 else torch.float64
        total = self._apply_weights(self.integers(x).to(exact), self.weight.to(exact)).double()
        scale = self._spread(self.weight_scale * self.input_scale, 0)
        return ((total + self._spread(self.bias, 0)) * scale).to(x.dtype)


def float_layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers by name; UserError where integers cannot do the same."""
    if is_binary(model):
        raise UserError(
            "quantize: the network is binary: its weights are stored in one bit as it is"
        )
    kinds = nn.Conv2d, nn.Linear
    found = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    for name, layer in found.items():
        if isinstance(layer, WrappedConv2d):
            raise UserError(
                f"quantize: {name} has another layer behind it, which integers have no place for; "
                "quantize the dense network or another family"
            )
    return found


def skeleton(model: nn.Module, spec: QuantizationSpec) -> nn.Module:
    """The quantized form of a dense model with empty weights, for loading a checkpoint."""
    folded = fold_batchnorm(model)
    for name, layer in float_layers(folded).items():
        if name not in spec.left:
            folded.set_submodule(name, QuantizedLayer(layer, spec.bits))
    return folded.eval()


def twin(model: nn.Module) -> nn.Module:
    """The differentiable copy of a quantized model (float32, straight-through gradients)."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        if isinstance(module, QuantizedLayer):
            module.differentiable = True
    return copied


def needs_twin(model: nn.Module) -> bool:
    """Whether a model's gradients are its twin's: it has quantized layers, or is a target."""
    return any(isinstance(module, QuantizedLayer | Target) for module in model.modules())


def differentiable(model: nn.Module) -> nn.Module:
    """What can be differentiated: the model, or the twin of a quantized one or of a target."""
    if isinstance(model, Target):
        return model if model.twin is None else differentiable(model.twin)
    return twin(model) if needs_twin(model) else model
