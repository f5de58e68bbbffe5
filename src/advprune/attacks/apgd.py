"""Auto-PGD: projected gradient ascent that chooses its own step size.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020), Algorithm 1. The step starts at `2 eps` and is halved, and the
search goes back to the best point so far, where the loss has stopped rising. Samples of a
deterministic model leave the batch as soon as they are broken and waiting ones take their places:
every sample has a step counter of its own.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.apgd_state import APGDSettings, Pool, Queue
from advprune.attacks.checks import check_choice, check_numbers
from advprune.attacks.losses import Loss, cross_entropy, dlr
from advprune.attacks.opening import Opened, opened, options, wide
from advprune.attacks.pgd import ascend, project
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import GradientAttack
from advprune.models.border import refuse

TOGETHER = 16  # batches' worth of images that share a queue: however many processes there are
At = Opened[APGDSettings]


def apgd(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, settings: APGDSettings
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    A broken sample comes back as its first misclassified iterate (one that is wrong from the start:
    unchanged); any other as its iterate of highest loss. Without `drop`, all come back so.
    Raises ValueError on shapes, ranges or options that make no sense.
    """
    s = settings
    check_numbers("apgd", 1, steps=s.steps, restarts=s.restarts, targets=s.targets)
    check_choice("apgd", "loss", s.loss, tuple(LOSSES))
    wrong = s.start is not None and s.start.shape != images.shape
    refuse("apgd", {"start must have the images' shape": wrong})
    with opened("apgd", model, (images, labels), s.eps, s) as at:
        at = replace(at, options=replace(s, drop=s.drop and not at.randomized))
        every = torch.arange(len(images))
        (found,) = at.run(partial(_search, at), every, every, together=TOGETHER)
    return found


class APGDMethod(GradientAttack):
    """Settings of `method: apgd`: those of `APGDSettings` that a suite may choose."""

    method: Literal["apgd"]
    steps: int = Field(default=100, ge=1, le=100000)
    loss: Literal["ce", "dlr", "targeted"] = "ce"
    targets: int = Field(default=9, ge=1, le=1000)
    restarts: int = Field(default=1, ge=1, le=1000)
    drop: bool = True

    def runs(self, classes: int) -> int:
        """How often each image is attacked from every start."""
        return min(self.targets, classes - 1) if self.loss == "targeted" else 1


@method("apgd", APGDMethod)
def _apgd(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: APGDMethod, how: Context
) -> torch.Tensor:
    return apgd(model, images, labels, options(APGDSettings, s, how))


def _search(
    at: At, images: torch.Tensor, labels: torch.Tensor, numbers: torch.Tensor
) -> tuple[torch.Tensor]:
    """Work a queue off; the images found. `numbers` are theirs in the whole set."""
    s, logits = at.options, at.logits(images)
    if logits.shape[1] < FEWEST_CLASSES[s.loss]:
        raise ValueError(f"apgd: {s.loss} needs at least {FEWEST_CLASSES[s.loss]} classes")
    count = s.targets if s.loss == "targeted" else 0
    order = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
    targets = order[:, : min(count, logits.shape[1] - 1)]
    queue = Queue(numbers, images, labels, targets, s)
    found, losses = images.clone(), images.new_full((len(images),), -torch.inf)
    queue.decided |= s.drop & (logits.argmax(1) != labels)
    pool = queue.fill(None)
    while pool is not None:
        shown = pool.current
        broken, over = _evaluate(at, pool), pool.done == s.steps
        s.progress(int((pool.done > 0).sum()))
        losses[pool.sample[broken]] = torch.inf
        found[pool.sample[broken]] = at.shown(shown[broken], pool.clean[broken])
        queue.decided |= losses == torch.inf
        better = over & (pool.best_loss > losses[pool.sample])
        losses[pool.sample[better]] = pool.best_loss[better]
        found[pool.sample[better]] = pool.best[better]
        stays = ~over & ~queue.decided[pool.sample]
        pool = pool if stays.all() else pool.pick(stays)
        # A step uphill, with a quarter of the one before but for the first.
        goal = ascend(pool.current, pool.gradient, pool.step, s.norm)
        goal = project(goal, pool.clean, s.eps, s.norm)
        part = torch.where(wide(pool.done > 0), 0.75, 1.0).to(goal)
        mixed = part * (goal - pool.current) + (1 - part) * (pool.current - pool.before)
        after = project(pool.current + mixed, pool.clean, s.eps, s.norm)
        pool.before, pool.current, pool.done = pool.current, after, pool.done + 1
        pool = queue.fill(pool)
    return (found,)


def _evaluate(at: At, pool: Pool) -> torch.Tensor:
    """Gradient and loss at the current points, and the step size from them (Algorithm 1, lines
    9 to 17), in place; returns which samples are broken."""
    s, moved = at.options, pool.done > 0
    pool.gradient, logits = at.gradient(pool.current, pool.aim, LOSSES[s.loss])
    labels = pool.aim if pool.aim.ndim == 1 else pool.aim[:, 0]
    broken = torch.zeros_like(moved)
    if s.drop:
        broken = at.fooled(logits, pool.current, pool.clean, labels)
    now = LOSSES[s.loss](logits, pool.aim)
    better = now > pool.best_loss
    pool.best_loss = torch.where(better, now, pool.best_loss)
    pool.best = torch.where(wide(better), pool.current, pool.best)
    pool.best_gradient = torch.where(wide(better), pool.gradient, pool.best_gradient)
    pool.rises = pool.rises + (moved & (now > pool.last))
    pool.last = torch.where(moved, now, pool.last)
    pool.checked = torch.where(moved, pool.checked, now)
    pool.left = pool.left - moved.long()

    due = moved & (pool.left == 0)
    few, flat = pool.rises <= s.rho * pool.every, pool.checked >= pool.best_loss
    halve = due & (few | (flat & ~pool.halved))
    pool.step = torch.where(wide(halve), pool.step / 2, pool.step)
    pool.current = torch.where(wide(halve), pool.best, pool.current)
    pool.gradient = torch.where(wide(halve), pool.best_gradient, pool.gradient)
    _, fewer, fewest = s.intervals
    pool.every = torch.where(due, (pool.every - fewer).clamp_min(fewest), pool.every)
    pool.left = torch.where(due, pool.every, pool.left)
    pool.rises = torch.where(due, 0.0, pool.rises)
    pool.halved = torch.where(due, halve, pool.halved)
    pool.checked = torch.where(due, pool.best_loss, pool.checked)
    return broken


def targeted_dlr(logits: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, shape `[N]`, of labels and targets `[N, 2]`.

    Croce and Hein (2020), section 4. Of fewer than four classes: the difference alone.
    """
    own, target = logits.gather(1, aim).unbind(1)
    if logits.shape[1] < 4:
        return target - own
    top = logits.topk(4, dim=1).values
    return (target - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "targeted": targeted_dlr}
FEWEST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 2}
