"""ONNX files: the answers of one, by onnxruntime on the CPU, and a network written as one. A
quantized layer is written as QuantizeLinear and DequantizeLinear on its input, and int8 weights and
int32 biases behind DequantizeLinear: the same integers as in `models.quantized`."""

import copy
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError, first_line
from advprune.core.files import atomic, plain_file
from advprune.core.fit import Fit
from advprune.core.memory import bounded_memory
from advprune.core.settings import parse
from advprune.models.binary import is_binary
from advprune.models.quantized import QuantizedLayer
from advprune.models.spec import Normalize, spec_of
from advprune.models.stochastic import is_randomized

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(uint8)": torch.uint8,
}
MOST_NUMBERS = 1 << 28  # of a batch of images
NORMALIZES = "advprune.normalizes"  # what a file's properties hold where it takes [0, 1]
FIT = "advprune.fit"  # and where pictures are resized or cut for it
OPSET = 17
MOST = 255  # of an 8-bit input; narrower ones are cut before they are rounded
USUAL = 32  # height and width of the image that a network for images of any size is traced on
BITS = {"INT4": 4, "UINT4": 4, "INT8": 8, "UINT8": 8, "FLOAT16": 16, "BFLOAT16": 16}


def package(name: str) -> Any:
    """An optional package; UserError that says how to install it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"ONNX files need the package {name}; pip install 'advprune[onnx]'"
        ) from error


class OnnxFile:
    """Images `[N, C, H, W]` in [0, 1], float32, to what the file's network answers.

    Images are given in the file's own order (NCHW or NHWC) and type (of uint8: in grey levels), and
    in batches of its size where that is fixed. normalize: what the file leaves to its caller, if it
    does not say that it normalizes. Of several outputs the scores are taken, or where there are
    none the labels. UserError where the file cannot be run on such images.
    """

    @bounded_memory()
    def __init__(
        self, path: Path, shape: tuple[int, int, int], normalize: Normalize | None = None
    ) -> None:
        runtime, _ = package("onnxruntime"), plain_file(path)
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        how: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "enable_fallback": 0}
        try:
            self.session = runtime.InferenceSession(str(path), options, **how)
        except Exception as error:  # of many kinds
            raise UserError(f"{path}: {_said(error)}") from error
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise UserError(f"{path} takes {len(inputs)} inputs; it should take images alone")
        self.name, given, (channels, height, width) = inputs[0].name, inputs[0].shape, shape
        if inputs[0].type not in TYPES:
            known = ", ".join(TYPES)
            raise UserError(f"{path} takes {inputs[0].type}; known: {known}")
        self.type = TYPES[inputs[0].type]
        facts = self.session.get_modelmeta().custom_metadata_map  # what it says of itself
        inside = self.type == torch.uint8 or NORMALIZES in facts
        self.normalize = nn.Identity() if inside or normalize is None else normalize

        def takes(*sizes: int) -> bool:
            fixed = zip(given[1:], sizes, strict=True) if len(given) == 4 else [(0, 1)]
            return all(have == need for have, need in fixed if isinstance(have, int))

        first = takes(*shape)
        self.channels_last = not first and takes(height, width, channels)
        if not (first or self.channels_last):
            raise UserError(f"{path} takes {given}; channels, height, width are {list(shape)}")
        self.batch = given[0] if isinstance(given[0], int) else 0
        if self.batch * prod(shape) > MOST_NUMBERS:
            raise UserError(f"{path} takes {self.batch} images at once; export it for fewer")
        outputs = self.session.get_outputs()
        scores = [one for one in outputs if len(one.shape or ()) == 2 and "float" in one.type]
        labels = [one for one in outputs if "tensor(int" in one.type]
        if len(chosen := scores or labels or outputs) != 1:
            names = ", ".join(one.name for one in outputs)
            raise UserError(f"{path} gives {names}; which of them are the scores is not clear")
        self.output = chosen[0].name

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        images = self.normalize(images)
        x = images.permute(0, 2, 3, 1) if self.channels_last else images
        x = ((255 * x).round() if self.type == torch.uint8 else x).to(self.type)
        answers = []
        for part in x.split(self.batch or max(len(x), 1)):
            missing = max(self.batch - len(part), 0)
            filled = torch.cat([part, part[:1].expand(missing, *part.shape[1:])])
            try:
                (said,) = self.session.run([self.output], {self.name: filled.numpy()})
            except Exception as error:  # of many kinds
                raise UserError(
                    f"the file fails on images {list(part.shape)}: {_said(error)}"
                ) from error
            answers.append(torch.as_tensor(said)[: len(part)])
        return torch.cat(answers)


def _said(error: Exception) -> str:
    """What onnxruntime says, without its prefix of codes."""
    return first_line(error).rpartition("] : ")[2]


def fit_of(path: Path) -> Fit | None:
    """How pictures become images of a file, where `advprune export` wrote that into it."""
    try:
        held = package("onnx").load(str(plain_file(path)), load_external_data=False).metadata_props
    except (OSError, ValueError, import_module("google.protobuf.message").DecodeError):
        return None  # what is wrong with the file says onnxruntime
    said = [one.value for one in held if one.key == FIT]
    return parse(Fit, said[0], str(path), as_json=True) if said else None


def files_of(path: Path) -> list[Path]:
    """The file, and those beside it that hold some of its weights."""
    held = package("onnx").load(str(path), load_external_data=False).graph.initializer
    named = {e.value for one in held for e in one.external_data if e.key == "location"}
    return [path, *(path.parent / name for name in sorted(named))]


def weight_facts(path: Path) -> dict[str, Any]:
    """What the card says of a file's weights, its arrays of two dimensions or more: how many, how
    many are not zero, and the fewest bits that one of them is stored in."""
    onnx, arrays = package("onnx"), import_module("onnx.numpy_helper")
    held = [one for one in onnx.load(str(path)).graph.initializer if len(one.dims) > 1]
    bits = [BITS.get(onnx.TensorProto.DataType.Name(one.data_type), 32) for one in held]
    counts = [prod(one.dims) for one in held]
    nonzero = sum(int((arrays.to_array(one) != 0).sum()) for one in held)
    return {
        "parameters": sum(counts),
        "nonzero": nonzero,
        "sparsity": round(1 - nonzero / max(sum(counts), 1), 4),
        "bits": min(bits, default=32),
        "stored_bits": sum(count * width for count, width in zip(counts, bits, strict=True)),
        "file_bytes": sum(part.stat().st_size for part in files_of(path)),
    }


def export_onnx(model: nn.Module, path: Path, size: tuple[int, int] | None = None) -> None:
    """Write a model to `path`, for batches of any size of float32 `images` in [0, 1] to `scores`.
    size: height and width of an image; None: any, for networks of this library. UserError where the
    package onnx is missing, and where the network has no counterpart in ONNX."""
    onnx = package("onnx")
    spec, axes = spec_of(model), {0: "n"} if size else {0: "n", 2: "height", 3: "width"}
    if is_randomized(model):
        raise UserError("the network draws at random, which an ONNX file cannot repeat")
    if is_binary(model):
        raise UserError("the network is binary, for which ONNX has no layers")
    if spec.is_foreign and size is None:
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

    zero: torch.Tensor

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("zero", layer.input_zero.to(torch.int32))
        self.register_buffer("bias", layer.bias.to(torch.int32))
        self.register_buffer("bias_scale", layer.weight_scale * layer.input_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = self.layer
        if layer.levels < MOST:
            ends = ((end - layer.input_zero) * layer.input_scale for end in (0, layer.levels))
            x = x.clamp(*map(float, ends))
        x = torch.fake_quantize_per_tensor_affine(x, layer.input_scale, self.zero, 0, MOST)
        weight = _Dequantize.apply(layer.weight, layer.weight_scale)
        bias = _Dequantize.apply(self.bias, self.bias_scale)
        if layer.conv is None:
            return nn.functional.linear(x, weight, bias)
        return nn.functional.conv2d(x, weight, bias, **layer.conv)
