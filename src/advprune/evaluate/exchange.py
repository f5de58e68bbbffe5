"""Exchange: a model's predictions on images crafted on other models."""

from collections.abc import Mapping

import pandas as pd
import torch
from torch import nn

from advprune.core.params import Params
from advprune.evaluate.craft import Work
from advprune.evaluate.records import all_logits, label_margin

SOURCE = ("source", "attack")  # what a set of crafted images is known by


def received(
    target: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    crafted: Mapping[tuple[str, str], torch.Tensor],
    work: Work,
) -> pd.DataFrame:
    """A target's answers to images crafted elsewhere: one row per image and (source, attack).

    images: float `[N, C, H, W]` in [0, 1], the clean ones. crafted: uint8 images of the same shape
    by (source, attack). Columns: source, attack, index, label, clean_pred, adv_pred, adv_margin.
    ValueError where logits are not finite.

    The clean images are scored once, so the cost is (1 + crafted) * N forward passes, times the
    draws of a randomized target.
    """

    def said(x: torch.Tensor) -> torch.Tensor:
        logits = all_logits(target, x, work.scoring).mean(0)
        if not logits.isfinite().all():
            raise ValueError("received: the model gives logits that are NaN or infinite")
        return logits

    same = {
        "index": range(len(labels)),
        "label": labels.numpy(),
        "clean_pred": said(images).argmax(1).numpy(),
    }
    tables = []
    for key, pixels in crafted.items():
        logits = said(pixels / 255)
        answers = {
            "adv_pred": logits.argmax(1).numpy(),
            "adv_margin": label_margin(logits, labels).numpy(),
        }
        tables.append(pd.DataFrame(dict(zip(SOURCE, key, strict=True)) | same | answers))
        work.progress(1)
    return pd.concat(tables, ignore_index=True)


def exchanged(
    params: Params, target: str, crafted: Mapping[tuple[str, str], torch.Tensor]
) -> dict[tuple[str, str], torch.Tensor]:
    """Those of all crafted images, by (source, attack), that a target is tried on.

    The main attack's images of every other model; all that were kept of its own dense network; the
    exchanged ones of attackers' own networks. Such a network is tried on its own images alone.
    """
    main, attackers, transferred = (
        params.attack.main,
        params.attackers(),
        params.active().exchanged(),
    )

    def wanted(source: str, attack: str) -> bool:
        if target in attackers or source in attackers:
            return attack in transferred and (source == target or target not in attackers)
        return source != target and (attack == main or source == params.root(target))

    return {key: pixels for key, pixels in crafted.items() if wanted(*key)}
