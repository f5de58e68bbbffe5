"""Auto-PGD: projected gradient ascent that chooses its own step size.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020), Algorithm 1. The step starts at `2 eps` and is halved, and the
search goes back to the best point so far, where the loss has stopped rising. The attack works on a
private copy of the model (engine.py). Samples of a deterministic model leave the batch as soon as
they are broken and waiting ones take their places: every sample has a step counter of its own.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.apgd_state import APGDSettings, Pool, Queue
from advprune.attacks.checks import (
    check_budget,
    check_choice,
    check_images,
    check_model,
    check_numbers,
    refuse,
)
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Mixed, Progress, attack_copy, by_batch, no_progress
from advprune.attacks.losses import Loss, cross_entropy, dlr
from advprune.attacks.pgd import ascend, expected_gradient, project
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack, Backward
from advprune.core.device import device_of, full_precision
from advprune.models.stochastic import RULES, is_randomized, mean_logits, set_backward

TOGETHER = 16  # batches' worth of images that share a queue: however many processes there are


def apgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: APGDSettings,
    cost: Cost | None = None,
    progress: Progress = no_progress,
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    A broken sample comes back as its first misclassified iterate (one that is wrong from the start:
    unchanged); any other as its iterate of highest loss. Without `drop`, all come back so.
    cost: counts images passed forward and gradients taken. progress: called with the number of
    image-steps done, of `N * steps * restarts`, for `targeted` times `targets`.
    Raises ValueError on shapes, ranges or options that make no sense.
    """
    _check(images, labels, settings)
    check_model("apgd", model, images, labels)
    device, private = device_of(model), attack_copy(model, device_of(model), settings.fold)
    randomized = is_randomized(private)
    cost = Cost() if cost is None else cost
    cost.watch(private)
    if settings.backward is not None:
        set_backward(private, settings.backward)
    if randomized and settings.drop:
        settings = replace(settings, drop=False)
    search = _Search(private, settings, device, progress)
    found = images.clone()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(settings.seed)
        pieces = torch.arange(len(images)).split(TOGETHER * settings.batch)

        def searched(rows: torch.Tensor) -> torch.Tensor:
            return search(rows, images[rows], labels[rows])

        for rows, answer in zip(pieces, by_batch(private, pieces, searched, cost), strict=True):
            found[rows] = answer
    return found


class APGDMethod(Attack):
    """Settings of `method: apgd`: those of `APGDSettings` that a suite may choose."""

    method: Literal["apgd"]
    steps: int = Field(default=100, ge=1, le=100000)
    loss: Literal["ce", "dlr", "targeted"] = "ce"
    restarts: int = Field(default=1, ge=1, le=1000)
    drop: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    draws: int = Field(default=1, ge=1, le=10000)
    backward: Backward | None = None
    note: str = ""


@method("apgd", APGDMethod)
def _apgd(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: APGDMethod, how: Context
) -> torch.Tensor:
    own = s.model_dump(exclude={"method", "note", "after"})
    settings = APGDSettings(**own, pixels=True, seed=how.seed, batch=how.batch)
    return apgd(model, images, labels, settings, how.cost, how.progress)


@dataclass(frozen=True)
class _Search:
    """Works a queue off, on `device`."""

    model: nn.Module
    settings: APGDSettings
    device: torch.device
    progress: Progress

    def __call__(
        self, numbers: torch.Tensor, images: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The images found, where `images` are; `numbers` are theirs in the whole set."""
        s, clean = self.settings, images.to(self.device)
        labels, logits = labels.to(self.device), self._logits(clean)
        if logits.shape[1] < FEWEST_CLASSES[s.loss]:
            raise ValueError(f"apgd: {s.loss} needs at least {FEWEST_CLASSES[s.loss]} classes")
        count = s.targets if s.loss == "targeted" else 0
        targets = logits.argsort(1, descending=True)[:, 1 : count + 1]
        queue = Queue(numbers, clean, labels, targets, s)
        found, losses = clean.clone(), clean.new_full((len(clean),), -torch.inf)
        queue.decided |= s.drop & (logits.argmax(1) != labels)
        pool = queue.fill(None)
        while pool is not None:
            shown = pool.current
            broken, over = self._evaluate(pool), pool.done == s.steps
            self.progress(int((pool.done > 0).sum()))
            losses[pool.sample[broken]] = torch.inf
            found[pool.sample[broken]] = self._final(shown[broken], pool.clean[broken])
            queue.decided |= losses == torch.inf
            better = over & (pool.best_loss > losses[pool.sample])
            losses[pool.sample[better]] = pool.best_loss[better]
            found[pool.sample[better]] = pool.best[better]
            stays = ~over & ~queue.decided[pool.sample]
            pool = pool if stays.all() else pool.pick(stays)
            self._move(pool)
            pool = queue.fill(pool)
        return found.to(images.device)

    def _evaluate(self, pool: Pool) -> torch.Tensor:
        """Gradient and loss at the current points, and the step size from them (Algorithm 1, lines
        9 to 17), in place; returns which samples are broken."""
        s, moved = self.settings, pool.done > 0
        point = pool.current.contiguous(memory_format=torch.channels_last)
        model = Mixed(self.model) if s.precision == "bfloat16" else self.model
        pool.gradient, logits = expected_gradient(
            model, point, pool.aim, LOSSES[s.loss], s.draws, s.batch
        )
        broken = self._broken(pool, logits)
        now = LOSSES[s.loss](logits, pool.aim)
        better = now > pool.best_loss
        pool.best_loss = torch.where(better, now, pool.best_loss)
        pool.best = torch.where(_wide(better), pool.current, pool.best)
        pool.best_gradient = torch.where(_wide(better), pool.gradient, pool.best_gradient)
        pool.rises = pool.rises + (moved & (now > pool.last))
        pool.last = torch.where(moved, now, pool.last)
        pool.checked = torch.where(moved, pool.checked, now)
        pool.left = pool.left - moved.long()

        due = moved & (pool.left == 0)
        few, flat = pool.rises <= s.rho * pool.every, pool.checked >= pool.best_loss
        halve = due & (few | (flat & ~pool.halved))
        pool.step = torch.where(_wide(halve), pool.step / 2, pool.step)
        pool.current = torch.where(_wide(halve), pool.best, pool.current)
        pool.gradient = torch.where(_wide(halve), pool.best_gradient, pool.gradient)
        _, fewer, fewest = s.intervals
        pool.every = torch.where(due, (pool.every - fewer).clamp_min(fewest), pool.every)
        pool.left = torch.where(due, pool.every, pool.left)
        pool.rises = torch.where(due, 0.0, pool.rises)
        pool.halved = torch.where(due, halve, pool.halved)
        pool.checked = torch.where(due, pool.best_loss, pool.checked)
        return broken

    def _move(self, pool: Pool) -> None:
        """A step uphill, with a quarter of the one before but for the first, in place."""
        eps, norm = self.settings.eps, self.settings.norm
        goal = project(ascend(pool.current, pool.gradient, pool.step, norm), pool.clean, eps, norm)
        part = torch.where(_wide(pool.done > 0), 0.75, 1.0).to(goal)
        mixed = part * (goal - pool.current) + (1 - part) * (pool.current - pool.before)
        after = project(pool.current + mixed, pool.clean, eps, norm)
        pool.before, pool.current, pool.done = pool.current, after, pool.done + 1

    def _broken(self, pool: Pool, logits: torch.Tensor) -> torch.Tensor:
        """Which samples are fooled by their current points, as they are returned."""
        s, labels = self.settings, pool.aim if pool.aim.ndim == 1 else pool.aim[:, 0]
        wrong = (logits.argmax(1) != labels) & s.drop
        if (s.pixels or s.precision == "bfloat16") and wrong.any():
            shown = self._final(pool.current[wrong], pool.clean[wrong])
            wrong[wrong.clone()] = self._logits(shown).argmax(1) != labels[wrong]
        return wrong

    def _final(self, images: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Images as they are returned: of 8 bits where that is asked for."""
        s = self.settings
        return to_pixels(images, clean, s.eps, s.norm).to(clean) / 255 if s.pixels else images

    @torch.no_grad()
    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        s = self.settings
        with full_precision():
            parts = [mean_logits(self.model, p, s.draws, s.batch) for p in images.split(s.batch)]
        return torch.cat(parts)


def targeted_dlr(logits: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, shape `[N]`, of labels and targets `[N, 2]`.

    Croce and Hein (2020), section 4. Needs at least four classes.
    """
    top = logits.topk(4, dim=1).values
    own, target = logits.gather(1, aim).unbind(1)
    return (target - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "targeted": targeted_dlr}
FEWEST_CLASSES = {"ce": 2, "dlr": 3, "targeted": 4}


def _wide(values: torch.Tensor) -> torch.Tensor:
    """`[n]` as `[n, 1, 1, 1]`, to go with images."""
    return values.view(-1, 1, 1, 1)


def _check(images: torch.Tensor, labels: torch.Tensor, s: APGDSettings) -> None:
    check_images("apgd", images, labels)
    check_numbers("apgd", 1, steps=s.steps, restarts=s.restarts, targets=s.targets)
    check_numbers("apgd", 1, batch=s.batch, draws=s.draws)
    check_budget("apgd", s.eps, s.norm)
    for key, value, allowed in (
        ("norm", s.norm, ("Linf", "L2")),
        ("loss", s.loss, tuple(LOSSES)),
        ("precision", s.precision, ("float32", "bfloat16")),
        ("backward", s.backward, (None, *RULES)),
    ):
        check_choice("apgd", key, value, allowed)
    wrong = s.start is not None and s.start.shape != images.shape
    refuse("apgd", {"start must have the images' shape": wrong})
