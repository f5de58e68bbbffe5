"""A model's card: the facts of the file that was saved, in JSON beside it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.files import sha256_of, write_json
from advprune.models.checkpoint import load_model
from advprune.models.spec import spec_of

BINS = 121
REACH = 4.0  # the histogram spans the dense weights' mean +- so many sigmas


def stored_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases by name: parameters, or the integers of quantized layers."""
    if spec_of(model).quantization is None:
        return dict(model.named_parameters())
    buffers = model.named_buffers()
    return {name: b for name, b in buffers if name.rpartition(".")[2] in ("weight", "bias")}


def sparsity_of(model: nn.Module) -> float:
    """Weights and biases that are exactly zero over all of them, in [0, 1]."""
    tensors = stored_weights(model).values()
    zeros = sum(int((t == 0).sum()) for t in tensors)
    return zeros / max(sum(t.numel() for t in tensors), 1)


def write_card(
    path: Path,
    *,
    parent: Path | None = None,
    setting: Any = None,
    prune_ratio: float = 0.0,
    twin_agreement: float | None = None,
    twin_logit_gap: float | None = None,
) -> None:
    """Write `model.json` beside the checkpoint `path`, from the file as it was saved.

    parent: the dense checkpoint, for histograms of the weights before and after.
    """
    model = load_model(path)
    quantization = spec_of(model).quantization
    card = {
        "parameters": sum(t.numel() for t in stored_weights(model).values()),
        "bits": quantization.bits if quantization else 32,
        "setting": setting,
        "prune_ratio": prune_ratio,
        "sparsity": round(sparsity_of(model), 4),
        "twin_agreement": twin_agreement,
        "twin_logit_gap": twin_logit_gap,
        "sha256": sha256_of(path),
        "histogram": histograms(load_model(parent), model) if parent else None,
    }
    write_json(path.with_name("model.json"), card)


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
