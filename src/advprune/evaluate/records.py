"""Records: one row per sample, clean and attacked, from which every metric is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advprune.attacks.checks import check_counts
from advprune.attacks.cost import Cost
from advprune.attacks.engine import by_batch
from advprune.attacks.losses import margin
from advprune.core.device import device_of, full_precision, salted
from advprune.core.resume import Parts
from advprune.models.border import admitted, check_images, refuse
from advprune.models.stochastic import drawn_logits, is_randomized

DRAWS = 20  # of a randomized model, for scoring


@dataclass(frozen=True)
class Work:
    """How a model is attacked and asked.

    draws: of a randomized model for scoring, from `seed`; its mean logits count, or where `average`
    is "probabilities" its mean softmax. A deterministic model is asked once. parts: where a long
    attack keeps its finished parts. clean: the answers to the clean images (`answers`), where they
    are known. parent: what the model was made from, for attacks through its gradients. start:
    images `[N, C, H, W]` that APGD begins from.
    """

    seed: int = 0
    batch: int = 128
    draws: int = DRAWS
    parts: Parts | None = None
    clean: dict[str, Any] | None = None
    parent: nn.Module | None = None
    start: Tensor | None = None
    average: str = "logits"


@torch.no_grad()
def all_logits(model: nn.Module, images: Tensor, work: Work = Work()) -> Tensor:
    """Logits `[D, N, K]` in float32 on the CPU: D is `draws` for a randomized model, else 1.

    images: float `[N, C, H, W]` in [0, 1]. The model passes `models.border.admitted`; it and the
    global random state stay as they were. InputError where logits are not finite.
    """
    model = admitted("score", model, images)
    device, count = device_of(model), work.draws if is_randomized(model) else 1

    def of(part: Tensor) -> Tensor:
        drawn = drawn_logits(model, part.to(device), count, work.batch)
        return torch.cat([logits.float().cpu() for logits in drawn])

    devices = [device] if device.type == "cuda" else []
    with full_precision(), torch.random.fork_rng(devices=devices):
        if count > 1:
            torch.manual_seed(salted(work.seed, "score"))
        parts = by_batch(model, images.split(work.batch), of, Cost())
    found = torch.cat(parts, dim=1)
    refuse("score", {"the model gives logits that are NaN or infinite": not found.isfinite().all()})
    return found


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes int64 `[N]`, of a randomized model by its mean logits; on the CPU."""
    return all_logits(model, images).mean(0).argmax(1)


def score(
    model: nn.Module,
    images: Tensor,
    adv: Tensor,
    labels: Tensor,
    *,
    batch: int = 128,
    passes: int = DRAWS,
    **columns: Any,
) -> pd.DataFrame:
    """Score clean `images` and their attacked versions `adv`, float `[N, C, H, W]` in [0, 1].

    One row per sample: index, label, the constant `columns` (attack, eps, seed, …), and for clean
    and adv: pred, confidence (largest softmax), margin (label's logit minus the largest other),
    nll, brier; also linf and l2, the size of the change. A randomized model is scored by its mean
    logits over `passes` draws from the column `seed`; single_pred is the first draw's prediction,
    wrong the share of draws that are wrong, and chosen_margin adv_margin over as many other draws,
    by which the worst of several attacks is chosen. ValueError where shapes differ, images are not
    in [0, 1], the model is not admitted (`models.border`) or logits are not finite.
    """
    check_images("score", images, labels)
    check_images("score: adv", adv)
    check_counts("score", batch=batch, passes=passes)
    shapes = f"{list(images.shape)} images, {list(adv.shape)} attacked"
    refuse("score", {shapes: images.shape != adv.shape})
    admitted("score", model, images, labels)
    work = Work(columns.get("seed", 0), batch, passes)
    return scored(model, images, adv, labels, columns, work)


def scored(
    model: nn.Module,
    images: Tensor,
    adv: Tensor,
    labels: Tensor,
    facts: Mapping[str, Any],
    work: Work,
) -> pd.DataFrame:
    """The columns of `score`, of images that were checked; `facts` follow index and label."""
    change = (adv - images).flatten(1)
    table = {"index": range(len(labels)), "label": labels.numpy(), **facts}
    table |= work.clean or answers("clean", model, images, labels, work)
    table |= answers("adv", model, adv, labels, work)
    table |= {"linf": change.abs().amax(1).numpy(), "l2": change.norm(dim=1).numpy()}
    return pd.DataFrame(table)


def answers(
    side: str, model: nn.Module, images: Tensor, labels: Tensor, work: Work
) -> dict[str, Any]:
    """The columns of one side (`clean` or `adv`) of records: see `score`."""
    twice = side == "adv" and is_randomized(model)
    asked = replace(work, draws=work.draws * (1 + twice))
    draws = all_logits(model, images, asked)  # [D, N, K]
    choosing, draws = draws.chunk(2) if twice else (draws, draws)
    logits = draws.mean(0)
    if work.average == "probabilities" and len(draws) > 1:
        logits = draws.softmax(2).mean(0).clamp_min(1e-38).log()
    probabilities, truth = logits.softmax(1), F.one_hot(labels, logits.shape[1])
    each = draws.argmax(2)  # [D, N]
    found = {
        f"{side}_pred": logits.argmax(1).numpy(),
        f"{side}_confidence": probabilities.amax(1).numpy(),
        f"{side}_margin": -margin(logits, labels).numpy(),
        f"{side}_nll": F.cross_entropy(logits, labels, reduction="none").numpy(),
        f"{side}_brier": (probabilities - truth).square().sum(1).numpy(),
        f"{side}_single_pred": each[0].numpy(),
        f"{side}_wrong": (each != labels).float().mean(0).numpy(),
    }
    if side == "adv":
        found["chosen_margin"] = -margin(choosing.mean(0), labels).numpy()
    return found
