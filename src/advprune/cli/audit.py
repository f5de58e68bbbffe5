"""`advprune audit`: whether a checkpoint is sound, and how sparse it is."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.options import CheckpointArgument, Known, option_groups
from advprune.core.errors import UserError, one_line

if TYPE_CHECKING:
    from advprune.models.audit import Audit


@option_groups
def audit(
    file: CheckpointArgument,
    known: Known,
    mask_tolerance: Annotated[
        float, typer.Option(help="Weights of at most this magnitude count as zeros.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Is this checkpoint the network that it is said to be, and how sparse is it?

    Compares the tensors with the architecture, name by name: missing, left over, misshapen, of a
    wrong type, NaN or infinite, or under two names. Counts zeros by layer, over all prunable
    weights (convolutions and linear layers) and over all weights and biases. Masks beside their
    weights are applied first (those of torch.nn.utils.prune, any `X_mask` beside `X`, HYDRA's
    `popup_scores`). No code in the file is ever run.

    Exit status: 0 sound, 1 with one line per fault, 2 where the file cannot be read.
    """
    from advprune.core.files import sha256_of
    from advprune.models.audit import audit as audit_tensors
    from advprune.models.weights import SCORES

    read, factory = known.read(file), known.factory
    if known.keep is not None and not any(name.endswith(SCORES) for name in read.tensors):
        raise UserError(f"--keep goes with {SCORES}, of which {file} holds none")
    how: dict[str, Any] = {"tolerance": mask_tolerance, "keep": known.keep, "factory": factory}
    found = audit_tensors(read.tensors, read.header, given=read.said, **how)
    if read.theirs:
        found = replace(found, notes=(*read.theirs.notes, *found.notes))
    facts = {"file": str(file), "bytes": file.stat().st_size, "sha256": sha256_of(file)}
    if as_json:
        print(json.dumps(facts | described(found), indent=2))
    else:
        _print(found, facts)
    if not found.sound:
        raise typer.Exit(1)


def described(found: "Audit") -> dict[str, Any]:
    """An audit as plain values, the same keys for each."""
    zeros, count = found.prunable
    keys = ("name", "shape", "dtype", "zeros", "count", "sparsity")
    return {
        "sound": found.sound,
        "architecture": found.spec.model_dump(mode="json") if found.spec else None,
        "source": found.source,
        "prunable": {"zeros": zeros, "count": count, "sparsity": found.prunable_sparsity},
        "all": {"zeros": found.zeros, "count": found.count, "sparsity": found.sparsity},
        "without_first_and_last": found.remaining,
        "layers": [{key: getattr(layer, key) for key in keys} for layer in found.layers],
        "faults": found.faults,
        "notes": found.notes,
    }


def _print(found: "Audit", facts: dict[str, Any]) -> None:
    """The facts, the layers and what was found, for a terminal."""
    from advprune.cli.tables import show
    from advprune.report.formats import counted

    spec, (zeros, count), network = found.spec, found.prunable, "unknown"
    if spec:
        channels = counted(spec.channels, "channel")
        network = f"{spec.described}, {channels}, {spec.classes} classes"
        if spec.inner:
            network += f", {'-'.join(map(str, spec.inner))} filters inside the blocks"
        network += "".join(f", layers of kind {layer.kind}" for layer in spec.layers)
        network += f", {spec.quantization.bits} bits" if spec.quantization else ""
    print(f"file          {facts['file']} ({facts['bytes']:,} bytes)")
    print(f"sha256        {facts['sha256']}")
    print(f"architecture  {network} ({found.source})")
    print(f"sparsity      {found.prunable_sparsity:.4%} of {count:,} prunable weights ({zeros:,})")
    print(f"              {found.sparsity:.4%} of {found.count:,} weights and biases")
    if found.remaining is not None:
        outer = "of the prunable weights but first and last layer"
        print(f"              {found.remaining:.4%} {outer}")
    ends = {one.name: " (last)" for one in found.layers[-1:]}
    ends |= {one.name: " (first)" for one in found.layers[:1]}
    rows = []
    for layer in found.layers:
        name = layer.name.removesuffix(".weight") + (ends.get(layer.name, "") if spec else "")
        shape, none = "x".join(map(str, layer.shape)), f"{layer.zeros:,}"
        rows.append([name, shape, layer.dtype, none, f"{layer.sparsity:.2%}"])
    print()
    show(("layer", "shape", "type", "zeros", "sparsity"), rows, left=3)
    for kind, lines in (("note", found.notes), ("fault", found.faults)):
        for line in lines:
            print(f"{kind}: {one_line(line)}")
    print("sound" if found.sound else counted(len(found.faults), "fault"))
