"""Projected gradient descent, fast and without side effects.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018), section
2.1: from a random point of the eps-ball, step along the sign (Linf) or the direction (L2) of the
loss gradient and project back.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advprune.attacks.checks import check_choice, check_numbers
from advprune.attacks.losses import LOSSES
from advprune.attacks.opening import Opened, Options, opened, options, wide
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import AttackSettings
from advprune.models.border import check_images, refuse
from advprune.models.stochastic import is_randomized

BETAS = 0.9, 0.999  # of Adam (Kingma and Ba, 2015), as published


@dataclass(frozen=True)
class PGDOptions(Options):
    """How `pgd` searches; more in `Options`.

    loss: `ce`, `margin` or `dlr`. keep: `last` iterate (as published), or the `best`, of highest
    loss. restarts: starts, of which the result of highest loss is returned; or `start`: images to
    begin from. drop: return a sample's first misclassified iterate and work on it no more. Much
    faster, right where only accuracy counts; not of a model that draws at random, whose next draw
    may be right. momentum: steps follow `v = momentum * v + g / mean|g|` (Dong et al., Boosting
    Adversarial Attacks with Momentum, 2018). adam: steps are Adam's on the gradient's sign, and
    `random_start: false` is the darkest corner of the Linf ball, as in the attack of Athalye et al.
    (2018) on SAP. progress: of `N * steps * restarts`.
    """

    loss: str = "ce"
    restarts: int = 1
    random_start: bool = True
    start: Tensor | None = None
    keep: str = "last"
    drop: bool = False
    momentum: float = 0.0
    adam: bool = False


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    steps: int,
    **changes: Any,
) -> Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    eps, step: budget and step size in units of the pixel range, in the given norm (`Linf`, `L2`).
    steps: gradient steps; 0 gives the starting points. changes: fields of PGDOptions.
    Raises ValueError on shapes, ranges or options that make no sense.
    """
    how = PGDOptions(**changes)
    check_numbers("pgd", 0, step=step, steps=steps)
    check_numbers("pgd", 1, restarts=how.restarts)
    check_choice("pgd", "loss", how.loss, tuple(LOSSES))
    check_choice("pgd", "keep", how.keep, ("last", "best"))
    check_numbers("pgd", 0, momentum=how.momentum)
    if how.start is not None:
        check_images("pgd: start", how.start)
    faults = {
        f"momentum is {how.momentum}; it lies in [0, 1]": how.momentum > 1,
        "adam has a momentum of its own, and Linf alone": how.adam
        and (how.momentum > 0 or how.norm != "Linf"),
        "start must have the images' shape and type": how.start is not None
        and (how.start.shape, how.start.dtype) != (images.shape, images.dtype),
        "with a given start there is one restart": how.start is not None and how.restarts > 1,
    }
    refuse("pgd", faults)
    with opened("pgd", model, (images, labels), eps, how) as at:
        drawn = (
            "drop decides a sample by one misclassification, and this model draws at random: most "
            "of those are undone by the next draws; leave drop out"
        )
        refuse("pgd", {drawn: how.drop and at.randomized})
        best_images = images.clone()
        best_loss = images.new_full((len(images),), -torch.inf)
        for _ in range(how.restarts):
            points = images if how.start is None else how.start
            if how.start is None and how.random_start:
                points = random_point(images, eps, how.norm, at.generator)
            elif how.start is None and how.adam:
                points = (images - eps).clamp(0, 1)
            rows = (best_loss < torch.inf).nonzero()[:, 0]
            found, losses = at.run(partial(_search, at, step, steps), rows, points)
            better = losses > best_loss[rows]
            best_images[rows[better]] = found[better]
            best_loss[rows[better]] = losses[better]
    return best_images


@method("pgd", AttackSettings)
def _pgd(
    model: nn.Module, images: Tensor, labels: Tensor, s: AttackSettings, how: Context
) -> Tensor:
    """A randomized model is attacked to the end, and its last iterate is taken: leaving a sample at
    its first misclassified draw, or choosing its best iterate, would reward a lucky draw."""
    own = {"drop": False, "keep": "last"} if is_randomized(model) else {}
    chosen = vars(options(PGDOptions, s, how, **own))
    return pgd(model, images, labels, s.eps, s.step, s.steps, **chosen)


def _search(
    at: Opened[PGDOptions], step: float, steps: int, clean: Tensor, labels: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """One run from one start: images `[n, C, H, W]` and losses `[n]` (infinite: dropped)."""
    clean = clean.contiguous(memory_format=torch.channels_last)
    current = start.contiguous(memory_format=torch.channels_last)
    found, losses = current.clone(), clean.new_full((len(clean),), -torch.inf)
    rows = torch.arange(len(clean), device=clean.device)  # samples still worked on
    how, loss = at.options, LOSSES[at.options.loss]
    first, second = torch.zeros_like(clean), torch.zeros_like(clean)  # moments of the gradient
    for index in range(steps):
        gradient, logits = at.gradient(current, labels, loss)
        how.progress(len(clean))
        if how.momentum:
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
            gradient = first = how.momentum * first + gradient / size
        if how.keep == "best":
            _record(found, losses, rows, current, loss(logits, labels))
        if how.drop and (wrong := at.fooled(logits, current, clean, labels)).any():
            found[rows[wrong]], losses[rows[wrong]] = current[wrong], torch.inf
            stay = [t[~wrong] for t in (rows, labels, clean, current, gradient, first, second)]
            rows, labels, clean, current, gradient, first, second = stay
            if not len(rows):
                return found, losses
        if how.adam:
            sign = gradient.sign()
            first = BETAS[0] * first + (1 - BETAS[0]) * sign
            second = BETAS[1] * second + (1 - BETAS[1]) * sign.square()
            mean, size = (
                m / (1 - b ** (index + 1)) for m, b in zip((first, second), BETAS, strict=True)
            )
            moved = current + step * mean / (size.sqrt() + 1e-8)
        else:
            moved = ascend(current, gradient, step, how.norm)
        current = project(moved, clean, at.eps, how.norm)
    if how.keep == "best" or how.restarts > 1:
        now = loss(at.logits(current), labels)
    if how.keep == "best":
        _record(found, losses, rows, current, now)
    else:
        found[rows], losses[rows] = current, now if how.restarts > 1 else 0.0
    return found, losses


def _record(found: Tensor, losses: Tensor, rows: Tensor, current: Tensor, now: Tensor) -> None:
    """Keep the current points of the samples whose loss rose, in place."""
    take = now > losses[rows]
    found[rows[take]] = current[take]
    losses[rows[take]] = now[take]


def ascend(x: Tensor, gradient: Tensor, step: float | Tensor, norm: str) -> Tensor:
    """One step of length `step` uphill: along the sign (Linf) or the unit direction (L2).

    step: one for all, or `[N, 1, 1, 1]`.
    """
    if norm == "Linf":
        return x + step * gradient.sign()
    return x + step * gradient / wide(sizes(gradient, "L2").clamp_min(1e-12))


def project(x: Tensor, clean: Tensor, eps: float | Tensor, norm: str) -> Tensor:
    """The nearest point to `x` in the eps-ball round `clean`, then cut to [0, 1].

    eps: one for all, or `[N, 1, 1, 1]`.
    Cutting to [0, 1] moves every pixel towards `clean`, so it never leaves the ball.
    """
    change = x - clean
    if norm == "Linf":
        change = change.clamp(-eps, eps)  # type: ignore[arg-type]  # both are of one kind
    else:
        change = change * (eps / wide(sizes(change, "L2").clamp_min(1e-12))).clamp_max(1.0)
    return (clean + change).clamp(0, 1)


def sizes(change: Tensor, norm: str) -> Tensor:
    """The norms of changes `[N, …]`, shape `[N]`."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)


def stretched(found: Tensor, clean: Tensor, distances: Tensor, eps: float) -> Tensor:
    """Images at the edge of the budget, in the direction found: a smaller change stretched, so that
    rounding does not undo it, a larger one shortened; the clean ones where nothing was found."""
    share = torch.where(distances.isfinite(), eps / distances.clamp_min(1e-12), 0.0)
    return (clean + wide(share) * (found - clean)).clamp(0, 1)


def random_point(images: Tensor, eps: float, norm: str, generator: torch.Generator) -> Tensor:
    """A uniform point of the eps-ball round each image, cut to [0, 1].

    Drawn where the generator is, on the CPU or on the images' GPU. L2: a Gaussian direction, and a
    radius `eps * u^(1/d)`, which is uniform in the ball.
    """
    there: dict[str, Any] = {"generator": generator, "device": generator.device}
    if norm == "Linf":
        noise = (torch.rand(images.shape, **there) * 2 - 1) * eps
        return (images + noise.to(images.device)).clamp(0, 1)
    noise = torch.randn(images.shape, **there)
    radius = eps * torch.rand(len(images), **there) ** (1 / noise.shape[1:].numel())
    noise = noise * wide(radius / sizes(noise, "L2").clamp_min(1e-12))
    return (images + noise.to(images.device)).clamp(0, 1)
