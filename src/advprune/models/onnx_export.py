"""Write a network as an ONNX file: plain, or with the integers of a quantized one (QDQ).

A quantized layer becomes QuantizeLinear and DequantizeLinear on its input, and int8 weights and
int32 biases behind DequantizeLinear, as ONNX runtimes read them: the same integers as in
`models.quantized`. Real numbers lie between layers there, too.
"""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError, first_line
from advprune.core.files import atomic
from advprune.models.quantized import QuantizedLayer
from advprune.models.stochastic import is_randomized

OPSET = 17
MOST = 255  # of an 8-bit input; narrower ones are cut before they are rounded


def export_onnx(model: nn.Module, path: Path, shape: tuple[int, int, int]) -> None:
    """Write `model` to `path`, for batches of any size of images of `shape`, float32 in [0, 1].

    Its input is called `images`, its output `scores`. UserError where the package onnx is missing,
    where the model draws at random, and where torch cannot write one of its operations.
    """
    if is_randomized(model):
        raise UserError("the network draws at random, which an ONNX file cannot repeat")
    copied = copy.deepcopy(model).eval().cpu().requires_grad_(False)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, QuantizedLayer):
            copied.set_submodule(name, _Layer(layer))
    axes = {name: {0: "n"} for name in ("images", "scores")}
    with warnings.catch_warnings(), atomic(path) as temporary:
        warnings.simplefilter("ignore")  # on torch's newer exporter, which needs more packages
        try:
            torch.onnx.export(
                copied,
                (torch.rand(2, *shape),),
                str(temporary),
                input_names=["images"],
                output_names=["scores"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except Exception as error:  # of operations that have no counterpart, and of missing packages
            raise UserError(f"the network cannot be written as ONNX: {first_line(error)}") from error


class _Quantize(torch.autograd.Function):
    """`s (clamp(round(x / s) + z, 0, levels) - z)`, in ONNX a pair of its operators."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> torch.Tensor:
        return (((x / scale).round() + zero).clamp(0, MOST) - zero) * scale

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero: Any) -> Any:
        quantized = g.op("QuantizeLinear", x, scale, zero)
        return g.op("DequantizeLinear", quantized, scale, zero).setType(x.type())


class _Dequantize(torch.autograd.Function):
    """Integers `[out, ...]` as real numbers, by one scale for each output channel."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return q * scale.view(-1, *[1] * (q.ndim - 1))

    @staticmethod
    def symbolic(g: Any, q: Any, scale: Any) -> Any:
        shape = q.type().sizes()
        real = g.op("DequantizeLinear", q, scale, axis_i=0)
        return real.setType(q.type().with_dtype(torch.float32).with_sizes(shape))


class _Layer(nn.Module):
    """A quantized layer in the operators of ONNX."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("zero", layer.input_zero.to(torch.uint8))
        self.register_buffer("bias", layer.bias.to(torch.int32))
        self.register_buffer("bias_scale", layer.weight_scale * layer.input_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if layer.levels < MOST:
            ends = ((end - layer.input_zero) * layer.input_scale for end in (0, layer.levels))
            x = x.clamp(*map(float, ends))
        x = _Quantize.apply(x, layer.input_scale, self.zero)
        weight = _Dequantize.apply(layer.weight, layer.weight_scale)
        bias = _Dequantize.apply(self.bias, self.bias_scale)
        if layer.conv is None:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, **layer.conv)
