"""`advprune export`: a network in half precision, small enough for a repository."""

from pathlib import Path
from typing import Annotated

import typer

from advprune.core.errors import UserError


def export(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file of this library.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
) -> None:
    """Round a network's numbers to 16 bits and write it to a file of half the size.

    The file is read back exactly: commands and `load_model` compute in float32 with its numbers.
    Prints the largest change and how many weights became zero. Binary and quantized networks are
    stored in full, since rounding could invert signs and change integers.

    Exit status: 0, or 2 if nothing was written.
    """
    import torch

    from advprune.models.card import nonzero_of
    from advprune.models.checkpoint import load_model, save_model, stored
    from advprune.models.spec import spec_of

    if out.suffix != ".safetensors":
        raise UserError(f"--out ends in .safetensors (got {out})")
    model = load_model(checkpoint)
    spec = spec_of(model)
    in_full = spec.binary or spec.quantization is not None
    save_model(model, out, None if in_full else torch.float16)
    small = load_model(out)
    pairs = zip(stored(model).values(), stored(small).values(), strict=True)
    moved = max(float((a - b).abs().max()) for a, b in pairs if a.is_floating_point())
    zeros = nonzero_of(model) - nonzero_of(small)
    before, after = (path.stat().st_size for path in (checkpoint, out))
    print(f"{out}: {after:,} bytes {'in full' if in_full else f'instead of {before:,}'}")
    print(f"numbers moved by at most {moved:.2g}; {zeros} of the weights and biases became zero")
