"""`advprune export`: a network in half precision, or as an ONNX file."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advprune.cli.options import FactoryOption
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

TRIED = 64  # random images that an ONNX file is compared with its network on
MOST_PIXELS = 4096**2  # of an image; on so many in all they are compared


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file of this library.")],
    out: Annotated[
        Path | None, typer.Option(help="The .safetensors file to write, in 16 bits.")
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(help="The .onnx file to write; integers of a quantized network as QDQ."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="With --onnx, the images' size: 32, or height x width (32x48). By default any."
        ),
    ] = None,
    factory: FactoryOption = None,
) -> None:
    """Write a network in half precision (--out), or as an ONNX file (--onnx).

    In half precision, numbers are rounded to 16 bits and the file has half the size. It is read
    back exactly: commands and `load_model` compute in float32 with its numbers. Prints the largest
    change and how many weights became zero. Binary and quantized networks are stored in full, since
    rounding could invert signs and change integers.

    An ONNX file takes images in [0, 1] and gives logits. Prints on how many of 64 random images it
    gives the network's class. `advprune evaluate net.onnx` attacks the file itself.

    Exit status: 0, or 2 if nothing was written.
    """
    from advprune.core.files import check_writable
    from advprune.models.checkpoint import load_model

    if (out is None) == (onnx is None):
        raise UserError("give either --out FILE.safetensors or --onnx FILE.onnx")
    if size is not None and onnx is None:
        raise UserError("--size goes with --onnx")
    parts = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", size or "1", re.ASCII)
    if parts is None:
        raise UserError(f"--size is a number of pixels, or height x width: 32x48 (got {size!r})")
    sides = (int(parts[1]), int(parts[2] or parts[1])) if size else None
    for path, suffix in ((out, ".safetensors"), (onnx, ".onnx")):
        if path is not None:
            check_writable(path, [checkpoint], suffix)
    model = load_model(checkpoint, factory)
    if onnx is not None:
        _as_onnx(model, checkpoint, onnx, sides)
    elif out is not None:
        _in_half(model, checkpoint, out)


def _as_onnx(model: "nn.Module", checkpoint: Path, out: Path, size: tuple[int, int] | None) -> None:
    import torch

    from advprune.models.onnx_file import USUAL, OnnxFile, export_onnx
    from advprune.models.spec import spec_of

    shape = (spec_of(model).channels, *(size or (USUAL, USUAL)))
    if (pixels := shape[1] * shape[2]) > MOST_PIXELS:
        raise UserError(f"--size {shape[1]}x{shape[2]}: an image has at most 4096x4096 pixels")
    export_onnx(model, out, size)
    tried = max(min(TRIED, MOST_PIXELS // pixels), 1)
    images = torch.rand(tried, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = int((OnnxFile(out, shape)(images).argmax(1) == model(images).argmax(1)).sum())
    before, after = (path.stat().st_size for path in (checkpoint, out))
    print(f"{out}: {after:,} bytes, the checkpoint {before:,}")
    print(f"the network's class on {same} of {tried} random images of {shape[1]}x{shape[2]}")


def _in_half(model: "nn.Module", checkpoint: Path, out: Path) -> None:
    import torch

    from advprune.models.card import nonzero_of
    from advprune.models.checkpoint import load_model, save_model, stored
    from advprune.models.spec import spec_of

    spec = spec_of(model)
    in_full = spec.binary or spec.quantization is not None
    save_model(model, out, None if in_full else torch.float16)
    small = load_model(out, spec.factory)
    pairs = zip(stored(model).values(), stored(small).values(), strict=True)
    moved = max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())
    zeros = nonzero_of(model) - nonzero_of(small)
    before, after = (path.stat().st_size for path in (checkpoint, out))
    print(f"{out}: {after:,} bytes {'in full' if in_full else f'instead of {before:,}'}")
    print(f"numbers moved by at most {moved:.2g}; {zeros} of the weights and biases became zero")
