"""Projected gradient descent, fast and without side effects.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018), section
2.1: from a random point of the eps-ball, step along the sign (Linf) or the direction (L2) of the
loss gradient and project back.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advprune.attacks.losses import LOSSES
from advprune.attacks.opening import Opened, opened, wide
from advprune.attacks.registry import Context, attack, method
from advprune.core.attack_settings import AttackSettings
from advprune.models.border import refuse

BETAS = 0.9, 0.999  # of Adam (Kingma and Ba, 2015), as published


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: float,
    step: float,
    steps: int,
    **options: Any,
) -> Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    eps, step: budget and step size in units of the pixel range, in the given norm (`Linf`, `L2`).
    steps: gradient steps; 0 gives the starting points. options: more of AttackSettings, which says
    what they mean, and of Context. ValueError on shapes, ranges or options that make no sense.
    """
    return attack("pgd", model, images, labels, eps=eps, step=step, steps=steps, **options)


@method("pgd", AttackSettings)
def _pgd(
    model: nn.Module, images: Tensor, labels: Tensor, s: AttackSettings, how: Context
) -> Tensor:
    """Of a model that draws at random, the last iterate is taken: leaving a sample at its first
    misclassified draw, or choosing its best iterate, would reward a lucky draw."""
    # Settings of runs in L2 hold SAP's published attack as well, which is then not run.
    refuse("pgd", {"adam is of Linf alone": s.adam and s.norm != "Linf"})
    with opened(model, images, labels, s, how) as at:
        if at.randomized:
            at = replace(at, setting=s.model_copy(update={"drop": False, "keep": "last"}))
        best_images = images.clone()
        best_loss = images.new_full((len(images),), -torch.inf)
        for turn in range(s.restarts):
            if turn == 0 and how.start is not None:
                points = how.start
            elif s.random_start:
                points = random_point(images, s.eps, s.norm, at.generator)
            else:
                points = (images - s.eps).clamp(0, 1) if s.adam else images
            rows = (best_loss < torch.inf).nonzero()[:, 0]
            found, losses = at.run(partial(_search, at), rows, points)
            better = losses > best_loss[rows]
            best_images[rows[better]] = found[better]
            best_loss[rows[better]] = losses[better]
    return best_images


def _search(
    at: Opened[AttackSettings], clean: Tensor, labels: Tensor, start: Tensor
) -> tuple[Tensor, Tensor]:
    """One run from one start: images `[n, C, H, W]` and losses `[n]` (infinite: dropped)."""
    clean = clean.contiguous(memory_format=torch.channels_last)
    current = start.contiguous(memory_format=torch.channels_last)
    found, losses = current.clone(), clean.new_full((len(clean),), -torch.inf)
    rows = torch.arange(len(clean), device=clean.device)  # samples still worked on
    s, loss = at.setting, LOSSES[at.setting.loss]
    first, second = torch.zeros_like(clean), torch.zeros_like(clean)  # moments of the gradient
    for index in range(s.steps):
        gradient, logits = at.gradient(current, labels, loss)
        at.how.progress(len(clean))
        if s.momentum:
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
            gradient = first = s.momentum * first + gradient / size
        if s.keep == "best":
            _record(found, losses, rows, current, loss(logits, labels))
        if s.drop and (wrong := at.fooled(logits, current, clean, labels)).any():
            found[rows[wrong]], losses[rows[wrong]] = current[wrong], torch.inf
            stay = [t[~wrong] for t in (rows, labels, clean, current, gradient, first, second)]
            rows, labels, clean, current, gradient, first, second = stay
            if not len(rows):
                return found, losses
        if s.adam:
            sign = gradient.sign()
            first = BETAS[0] * first + (1 - BETAS[0]) * sign
            second = BETAS[1] * second + (1 - BETAS[1]) * sign.square()
            mean, size = (
                m / (1 - b ** (index + 1)) for m, b in zip((first, second), BETAS, strict=True)
            )
            moved = current + s.step * mean / (size.sqrt() + 1e-8)
        else:
            moved = ascend(current, gradient, s.step, s.norm)
        current = project(moved, clean, s.eps, s.norm)
    if s.keep == "best" or s.restarts > 1:
        now = loss(at.logits(current), labels)
    if s.keep == "best":
        _record(found, losses, rows, current, now)
    else:
        found[rows], losses[rows] = current, now if s.restarts > 1 else 0.0
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
