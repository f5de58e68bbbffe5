"""Write a network as an ONNX file: plain, or with the integers of a quantized one (QDQ).

A quantized layer becomes QuantizeLinear and DequantizeLinear on its input, and int8 weights and
int32 biases behind DequantizeLinear, as ONNX runtimes read them: the same integers as in
`models.quantized`. Real numbers lie between layers there, too.
"""

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError, first_line
from advprune.core.files import atomic
from advprune.models.binary import is_binary
from advprune.models.onnx_file import FIT, NORMALIZES, package
from advprune.models.quantized import QuantizedLayer
from advprune.models.spec import spec_of
from advprune.models.stochastic import is_randomized

OPSET = 17
MOST = 255  # of an 8-bit input; narrower ones are cut before they are rounded
USUAL = 32  # height and width of the image that a network for images of any size is traced on


def export_onnx(model: nn.Module, path: Path, size: tuple[int, int] | None = None) -> None:
    """Write a model to `path`, for batches of any size of float32 images in [0, 1].

    size: height and width of an image; None: any, for networks of this library. The input is
    called `images`, the output `scores`. UserError where the package onnx is missing, and where
    the model draws at random, is binary, or does what torch cannot write as ONNX.
    """
    onnx = package("onnx")
    spec, axes = spec_of(model), {0: "n"} if size else {0: "n", 2: "height", 3: "width"}
    if is_randomized(model):
        raise UserError("the network draws at random, which an ONNX file cannot repeat")
    if is_binary(model):
        raise UserError("the network is binary, for which ONNX has no layers")
    if spec.outside and size is None:
        raise UserError(f"{spec.architecture}: give the size of its images, such as --size 224")
    copied = copy.deepcopy(model).eval().cpu().requires_grad_(False)
    for name, layer in list(copied.named_modules()):
        if isinstance(layer, QuantizedLayer):
            copied.set_submodule(name, _Layer(layer))
    image = torch.zeros(2, spec.channels, *(size or (USUAL, USUAL)))
    known: dict[str, Any] = {"input_names": ["images"], "output_names": ["scores"]}
    known |= {"dynamic_axes": {"images": axes, "scores": {0: "n"}}, "opset_version": OPSET}
    with warnings.catch_warnings(), atomic(path) as temporary, _unprinted():
        warnings.simplefilter("ignore")  # on torch's newer exporter, which needs more packages
        try:
            torch.onnx.export(copied, (image,), str(temporary), dynamo=False, **known)
            written = onnx.load(str(temporary))
            facts = {NORMALIZES: "true"}
            facts |= {FIT: spec.fit.model_dump_json()} if spec.fit else {}
            onnx.helper.set_model_props(written, facts)
            onnx.save(written, str(temporary))
        except Exception as error:  # of operations that have no counterpart
            raise UserError(
                f"the network cannot be written as ONNX: {first_line(error)}"
            ) from error


@contextmanager
def _unprinted() -> Iterator[None]:
    """Without what is printed below Python: where torch fails it prints the whole graph."""
    sys.stdout.flush()
    before = os.dup(1)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(before, 1)
            os.close(before)


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
