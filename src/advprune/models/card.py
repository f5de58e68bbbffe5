"""A model's card: the facts of the file that was saved, in JSON beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.files import sha256_of, write_json
from advprune.models.checkpoint import load_model
from advprune.models.inert import inert_of
from advprune.models.outside import WEIGHTED, code_files
from advprune.models.spec import ModelSpec, spec_of

BINS = 121
REACH = 4.0  # the histogram spans the dense weights' mean +- this many sigmas


def stored_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases by name: parameters, and the integers of quantized layers."""
    parameters: dict[str, torch.Tensor] = dict(model.named_parameters())
    if spec_of(model).quantization is None:
        return parameters
    buffers = model.named_buffers()
    integers = {name: b for name, b in buffers if name.rpartition(".")[2] in ("weight", "bias")}
    return integers | parameters


def sparsity_of(model: nn.Module) -> float:
    """Weights and biases that are exactly zero over all of them, in [0, 1]."""
    tensors = stored_weights(model).values()
    zeros = sum(int((t == 0).sum()) for t in tensors)
    return zeros / max(sum(t.numel() for t in tensors), 1)


def nonzero_of(model: nn.Module) -> int:
    """How many weights and biases are not zero."""
    return sum(int((t != 0).sum()) for t in stored_weights(model).values())


def bits_of(spec: ModelSpec) -> int:
    """In how many bits a weight is stored: 1 in binary networks, 32 in float ones."""
    if spec.quantization is not None:
        return spec.quantization.bits
    return 1 if spec.binary else 32


def stored_bits_of(model: nn.Module) -> int:
    """Bits of the weights of all convolutions and linear layers, without scales and biases.

    In a quantized model, weights that are left in floating point have 32.
    """
    spec, tensors = spec_of(model), stored_weights(model).items()
    weights = [t for name, t in tensors if name.endswith("weight") and t.ndim > 1]
    if spec.quantization is None:
        return bits_of(spec) * sum(t.numel() for t in weights)
    return sum(t.numel() * (32 if t.is_floating_point() else bits_of(spec)) for t in weights)


@torch.no_grad()
def macs_of(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates that one image `[C, H, W]` costs in convolutions and linear layers.

    An output value costs as many as a filter has weights. Zeros count: a mask saves nothing here, a
    smaller layer does. Biases, batch-norm and additions of shortcuts do not count. Of attention
    (nn.MultiheadAttention) what maps its input and output counts; other weights that a network
    reads without calling a layer do not.
    """
    counts: list[int] = []

    def count(module: Any, inputs: tuple[torch.Tensor, ...], out: Any) -> None:
        if isinstance(module, nn.MultiheadAttention):
            counts.append(4 * inputs[0].numel() * module.embed_dim)
        else:
            counts.append(out.numel() * module.weight[0].numel())

    layers = [m for m in model.modules() if _multiplies(m)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.random.fork_rng(devices=[]):  # layers that draw leave the global state alone
            model(torch.zeros(1, *image_shape))
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)


def _multiplies(module: nn.Module) -> bool:
    """Whether a layer multiplies its input by a matrix or filters, of floats or of integers."""
    integers = dict(module.named_buffers(recurse=False)).get("weight")
    layers = (*WEIGHTED, nn.MultiheadAttention)
    return isinstance(module, layers) or (integers is not None and integers.ndim > 1)


NO_FACTS: dict[str, Any] = {
    "setting": None,
    "prune_ratio": 0.0,
    "twin_agreement": None,
    "twin_logit_gap": None,
    "history": [],
    "growth": None,
    "ticket": None,
}


def card_of(
    path: Path,
    model: nn.Module,
    facts: Mapping[str, Any] = NO_FACTS,
    *,
    parent: nn.Module | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """The card of a model that was read from the file `path`.

    facts: what the file does not say, by the keys of NO_FACTS: setting, prune ratio, agreement of a
    quantized model's twin, history of its training, growth, a ticket's distance from the dense
    network. parent: for histograms of the weights before and after. image_shape: of an image `[C,
    H, W]`, for `macs` and `inert`, which are null without it. `code` is the sha256 of the file of a
    network of the user's own, so that a change of the code is noticed.
    """
    files = code_files(spec_of(model).factory)
    return {
        "parameters": sum(t.numel() for t in stored_weights(model).values()),
        "bits": bits_of(spec_of(model)),
        "stored_bits": stored_bits_of(model),
        "sparsity": round(sparsity_of(model), 4),
        "nonzero": nonzero_of(model),
        "macs": macs_of(model, image_shape) if image_shape else None,
        "inert": round(inert_of(model, image_shape), 4) if image_shape else None,
        "file_bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        **NO_FACTS,
        **facts,
        "histogram": histograms(parent, model) if parent is not None else None,
        **({"code": sha256_of(files[0])} if files else {}),
    }


def write_card(
    path: Path,
    facts: Mapping[str, Any] = NO_FACTS,
    *,
    parent: Path | nn.Module | None = None,
    image_shape: tuple[int, int, int] | None = None,
    factory: str | None = None,
) -> None:
    """Write `<stem>.json` beside the checkpoint `path`, from the file as it was saved.

    facts, image_shape: see `card_of`. parent: the parent or its checkpoint. factory: as in
    `load_model`.
    """
    before = load_model(parent, factory) if isinstance(parent, Path) else parent
    model = load_model(path, factory)
    card = card_of(path, model, facts, parent=before, image_shape=image_shape)
    write_json(path.with_suffix(".json"), card)


@torch.no_grad()
def histograms(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """Counts of all weights and biases before and after, on one common set of bins.

    The two outer bins take in everything beyond the range.
    """
    old, new = (torch.cat([p.flatten() for p in model.parameters()]) for model in (before, after))
    low = float(old.mean() - REACH * old.std())
    high = float(old.mean() + REACH * old.std())

    def count(values: torch.Tensor) -> list[int]:
        return [int(c) for c in torch.histc(values.clamp(low, high), BINS, low, high)]

    return {"low": low, "high": high, "before": count(old), "after": count(new)}
