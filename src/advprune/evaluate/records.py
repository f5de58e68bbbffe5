"""Records: one row a sample, clean and attacked, from which every metric is computed."""

from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from advprune.attacks.losses import margin
from advprune.device import device_of


@torch.no_grad()
def logits_of(model: nn.Module, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Logits `[N, K]` in float32 on the CPU, of float images `[N, C, H, W]` in [0, 1]."""
    device = device_of(model)
    parts = [model(part.to(device)).float().cpu() for part in images.split(batch)]
    return torch.cat(parts)


def predictions(model: nn.Module, images: torch.Tensor, batch: int = 128) -> torch.Tensor:
    """Predicted classes int64 `[N]`, on the CPU."""
    return logits_of(model, images, batch).argmax(1)


def score(
    model: nn.Module,
    images: torch.Tensor,
    adv: torch.Tensor,
    labels: torch.Tensor,
    *,
    batch: int = 128,
    **columns: Any,
) -> pd.DataFrame:
    """Score clean `images` and their attacked versions `adv`, float `[N, C, H, W]` in [0, 1].

    Returns a row a sample: index, label, the given constant `columns` (attack, eps, seed, …), and
    for clean and adv: pred, confidence (largest softmax), margin (label's logit minus the largest
    other), nll, brier; also linf and l2, the size of the change.
    Raises ValueError where shapes differ or logits are not finite.
    """
    if images.shape != adv.shape or len(labels) != len(images):
        raise ValueError(
            f"score: {list(images.shape)} images, {list(adv.shape)} attacked, {len(labels)} labels"
        )
    change = (adv - images).flatten(1)
    rows: dict[str, Any] = {"index": range(len(labels)), "label": labels.numpy(), **columns}
    for side, pictures in (("clean", images), ("adv", adv)):
        rows |= _columns(side, logits_of(model, pictures, batch), labels)
    rows["linf"] = change.abs().amax(1).numpy()
    rows["l2"] = change.norm(dim=1).numpy()
    return pd.DataFrame(rows)


def _columns(side: str, logits: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    if not torch.isfinite(logits).all():
        raise ValueError("score: the model gives logits that are NaN or infinite")
    probabilities = logits.softmax(1)
    truth = F.one_hot(labels, logits.shape[1])
    return {
        f"{side}_pred": logits.argmax(1).numpy(),
        f"{side}_confidence": probabilities.amax(1).numpy(),
        f"{side}_margin": (-margin(logits, labels)).numpy(),
        f"{side}_nll": F.cross_entropy(logits, labels, reduction="none").numpy(),
        f"{side}_brier": (probabilities - truth).square().sum(1).numpy(),
    }
