"""Projected gradient descent, fast and without side effects.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018), section
2.1: from a random point of the eps-ball, step along the sign (Linf) or the direction (L2) of the
loss gradient and project back. The attack works on a private copy of the model (engine.py), so the
model, its modes, its gradients and the global random state do not change.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

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
from advprune.attacks.losses import LOSSES, Loss
from advprune.core.device import device_of
from advprune.models.stochastic import RULES, drawn_logits, is_randomized, mean_logits, set_backward


@dataclass(frozen=True)
class PGDOptions:
    """How `pgd` searches.

    loss: `ce`, `margin` or `dlr`. keep: `last` iterate (as published), or the `best`, the one of
    highest loss. restarts: several starts; per sample, the result of highest loss is returned.
    start: images to start from instead of a random point (then one restart only).
    drop: stop working on a sample once an iterate of it is misclassified and return that iterate.
    Much faster on weak models, right where only accuracy counts; images are less adversarial.
    Not of a model that draws at random: one that is fooled in these draws is right in the next.
    generator: a CPU generator for the starts; a sample's start does not depend on the batch size.
    precision: `bfloat16` computes gradients in mixed precision, about twice as fast where the
    processor has it; the images differ a little, so score them in float32 as always.
    draws, backward: for models with random layers (models/stochastic.py). Gradients are averaged
    over `draws` draws (EOT, Athalye et al. 2018), loss and decisions are those of the mean logits,
    and gradients of the random factors follow the rule `constant`, `scale` or `identity` (BPDA);
    None leaves the model's own.
    momentum: the step follows `v = momentum * v + g / mean|g|` instead of the gradient g alone
    (Dong et al., Boosting Adversarial Attacks with Momentum, 2018); it averages over draws, too.
    cost: counts images passed forward and gradients taken.
    progress: called with the number of image-steps done (of `N * steps * restarts`).
    """

    norm: str = "Linf"
    loss: str = "ce"
    restarts: int = 1
    random_start: bool = True
    start: torch.Tensor | None = None
    keep: str = "last"
    drop: bool = False
    generator: torch.Generator | None = None
    batch: int = 128
    precision: str = "float32"
    draws: int = 1
    backward: str | None = None
    momentum: float = 0.0
    cost: Cost | None = None
    progress: Progress = no_progress


def pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    step: float,
    steps: int,
    options: PGDOptions | None = None,
    **changes: Any,
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    eps, step: budget and step size in units of the pixel range, in the given norm (`Linf`, `L2`).
    steps: gradient steps; 0 gives the starting points. options, changes: PGDOptions, and fields of
    it by name. Raises ValueError on shapes, ranges or options that make no sense.
    """
    how = replace(options or PGDOptions(), **changes)
    check_images("pgd", images, labels)
    check_numbers("pgd", 0, step=step, steps=steps)
    _check(how, images)
    check_budget("pgd", eps, how.norm)
    model = check_model("pgd", model, images, labels)
    generator = how.generator or torch.Generator().manual_seed(0)
    device, private = device_of(model), attack_copy(model, device_of(model))
    if how.backward is not None:
        set_backward(private, how.backward)
    if not (randomized := is_randomized(private)):
        how = replace(how, draws=1)
    elif how.drop:
        raise ValueError(
            "pgd: drop decides a sample by one misclassification, and this model draws at random: "
            "most of those are undone by the next draws; leave drop out"
        )
    cost = how.cost or Cost()
    cost.watch(private)
    search = _Search(private, eps, step, steps, how)
    best_images = images.clone()
    best_loss = images.new_full((len(images),), -torch.inf)

    def attack(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = images[rows].to(device), labels[rows].to(device), points[rows].to(device)
        found, losses = search(*at)
        return found.to(images.device), losses.to(images.device)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if randomized:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(how.restarts):
            points = how.start if how.start is not None else images
            if how.start is None and how.random_start:
                points = random_point(images, eps, how.norm, generator)
            batches = (best_loss < torch.inf).nonzero()[:, 0].split(how.batch)
            results = by_batch(private, batches, attack, cost)
            for rows, (found, losses) in zip(batches, results, strict=True):
                better = losses > best_loss[rows]
                best_images[rows[better]] = found[better]
                best_loss[rows[better]] = losses[better]
    return best_images


def _check(how: PGDOptions, images: torch.Tensor) -> None:
    check_numbers("pgd", 1, restarts=how.restarts, draws=how.draws, batch=how.batch)
    check_choice("pgd", "norm", how.norm, ("Linf", "L2"))
    check_choice("pgd", "loss", how.loss, tuple(LOSSES))
    check_choice("pgd", "keep", how.keep, ("last", "best"))
    check_choice("pgd", "precision", how.precision, ("float32", "bfloat16"))
    check_choice("pgd", "backward", how.backward, (None, *RULES))
    start = how.start
    faults = {
        f"momentum is {how.momentum}; it lies in [0, 1]": not 0 <= how.momentum <= 1,
        "start must have the images' shape": start is not None and start.shape != images.shape,
        "with a given start there is one restart": start is not None and how.restarts > 1,
    }
    refuse("pgd", faults)


@dataclass(frozen=True)
class _Search:
    """One run from one start for one batch."""

    model: nn.Module
    eps: float
    step: float
    steps: int
    how: PGDOptions

    def __call__(
        self, clean: torch.Tensor, labels: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images found `[n, C, H, W]` and their losses `[n]` (infinite: dropped, decided)."""
        clean = clean.contiguous(memory_format=torch.channels_last)
        current = start.contiguous(memory_format=torch.channels_last)
        found, losses = current.clone(), clean.new_full((len(clean),), -torch.inf)
        rows = torch.arange(len(clean), device=clean.device)  # samples still worked on
        how, loss, direction = self.how, LOSSES[self.how.loss], torch.zeros_like(clean)
        model = Mixed(self.model) if how.precision == "bfloat16" else self.model
        for _ in range(self.steps):
            gradient, logits = expected_gradient(model, current, labels, loss, how.draws, how.batch)
            now, wrong = loss(logits, labels), logits.argmax(1) != labels
            how.progress(len(clean))
            if how.momentum:
                size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
                gradient = how.momentum * direction + gradient / size
            direction = gradient
            if how.keep == "best":
                _record(found, losses, rows, current, now)
            if how.drop and wrong.any():
                found[rows[wrong]], losses[rows[wrong]] = current[wrong], torch.inf
                rows, labels, clean = rows[~wrong], labels[~wrong], clean[~wrong]
                current, direction = current[~wrong], direction[~wrong]
                if not len(rows):
                    return found, losses
            moved = ascend(current, direction, self.step, how.norm)
            current = project(moved, clean, self.eps, how.norm)
        if how.keep == "best":
            _record(found, losses, rows, current, self._loss(current, labels))
        else:
            found[rows] = current
            losses[rows] = self._loss(current, labels) if how.restarts > 1 else 0.0
        return found, losses

    def _loss(self, current: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits = mean_logits(self.model, current, self.how.draws, self.how.batch)
        return LOSSES[self.how.loss](logits, labels)


def expected_gradient(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    draws: int = 1,
    most: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the loss by the images, and the logits, both averaged over `draws` draws.

    labels: `[N]`, or `[N, …]` where the loss takes more. most: images a pass, as in
    `models.stochastic.drawn_logits`. Non-finite entries of a pass's
    gradient (a division by nearly nothing) count as 0.
    """
    point = images.detach().requires_grad_()
    gradient, total = torch.zeros_like(images), torch.zeros(())
    with torch.enable_grad():
        for logits in drawn_logits(model, point, draws, most):
            if logits.requires_grad:  # else the model has cut its graph: there is no gradient
                repeated = labels.repeat(len(logits), *[1] * (labels.ndim - 1))
                losses = loss(logits.flatten(0, 1), repeated)
                (one,) = torch.autograd.grad(losses.sum(), point)
                gradient += one.nan_to_num(0.0, 0.0, 0.0)
            total = total.to(logits) + logits.detach().sum(0)
    return gradient / draws, total / draws


def _record(
    found: torch.Tensor,
    losses: torch.Tensor,
    rows: torch.Tensor,
    current: torch.Tensor,
    now: torch.Tensor,
) -> None:
    """Keep the current points of the samples whose loss rose, in place."""
    take = now > losses[rows]
    found[rows[take]] = current[take]
    losses[rows[take]] = now[take]


def ascend(
    x: torch.Tensor, gradient: torch.Tensor, step: float | torch.Tensor, norm: str
) -> torch.Tensor:
    """One step of length `step` uphill: along the sign (Linf) or the unit direction (L2).

    step: one for all, or `[N, 1, 1, 1]`.
    """
    if norm == "Linf":
        return x + step * gradient.sign()
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return x + step * gradient / length


def project(
    x: torch.Tensor, clean: torch.Tensor, eps: float | torch.Tensor, norm: str
) -> torch.Tensor:
    """The nearest point to `x` in the eps-ball round `clean`, then cut to [0, 1].

    eps: one for all, or `[N, 1, 1, 1]`.
    Cutting to [0, 1] moves every pixel towards `clean`, so it never leaves the ball.
    """
    change = x - clean
    if norm == "Linf":
        change = change.clamp(-eps, eps)  # type: ignore[arg-type]  # both are of one kind
    else:
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        change = change * (eps / length).clamp_max(1.0)
    return (clean + change).clamp(0, 1)


def random_point(
    images: torch.Tensor, eps: float, norm: str, generator: torch.Generator
) -> torch.Tensor:
    """A uniform point of the eps-ball round each image, cut to [0, 1].

    Drawn where the generator is, on the CPU or on the images' GPU. L2: a Gaussian direction, and a
    radius `eps * u^(1/d)`, which is uniform in the ball.
    """
    there: dict[str, Any] = {"generator": generator, "device": generator.device}
    if norm == "Linf":
        noise = (torch.rand(images.shape, **there) * 2 - 1) * eps
        return (images + noise.to(images.device)).clamp(0, 1)
    noise = torch.randn(images.shape, **there)
    size = noise[0].numel()
    length = noise.flatten(1).norm(dim=1).clamp_min(1e-12)
    radius = eps * torch.rand(len(images), **there) ** (1 / size)
    noise = noise * (radius / length).view(-1, 1, 1, 1)
    return (images + noise.to(images.device)).clamp(0, 1)
