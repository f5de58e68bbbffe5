"""Attack through gradients estimated from the model's answers near an image, and nothing else.

Ilyas et al., Black-box Adversarial Attacks with Limited Queries and Information (ICML 2018),
section 2.1: for Gaussian directions u, `g = mean of (L(x + sigma u) - L(x - sigma u)) u / (2
sigma)`, the gradient of the margin L smoothed over sigma; then a step as of PGD, with momentum.
"""

from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, opened
from advprune.attacks.pgd import ascend, project
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.device import salted
from advprune.core.settings import L2Budget

MOMENTUM = 0.9  # of the estimates, as published


class NESSettings(Attack):
    """Settings of `method: nes`.

    samples: directions of an estimate, two queries each. sigma: how far along them, in the norm of
    the budget: of each pixel, or of the whole image.
    """

    method: Literal["nes"]
    steps: int = Field(default=40, ge=1, le=100000)
    step: L2Budget
    samples: int = Field(default=32, ge=1, le=100000)
    sigma: L2Budget = Field(gt=0)
    draws: int = Field(default=1, ge=1, le=10000)


@method("nes", NESSettings, gradients=False)
def nes(model: nn.Module, images: Tensor, labels: Tensor, s: NESSettings, how: Context) -> Tensor:
    """A misclassified image gets no more queries and comes back so; any other at its highest
    margin, or where the model draws at random at its last iterate."""
    with opened(model, images, labels, s, how) as at, torch.no_grad():
        every = torch.arange(len(images))
        (found,) = at.run(partial(_search, at), every, every)
    return found


def _search(
    at: Opened[NESSettings], clean: Tensor, labels: Tensor, numbers: Tensor
) -> tuple[Tensor]:
    """The images found; directions depend on `numbers`, theirs in the whole set, alone."""
    s, seed = at.setting, at.generator.initial_seed()
    drawn = [torch.Generator().manual_seed(salted(seed, str(n))) for n in numbers.tolist()]
    found, best = clean.clone(), margin(at.logits(clean), labels)
    current, slope = clean.clone(), torch.zeros_like(clean)
    rows = torch.arange(len(clean), device=clean.device)  # images still worked on
    # A Gaussian direction of d numbers is about sqrt(d) long.
    shape = (s.samples, *clean.shape[1:])
    sigma = s.sigma if s.norm == "Linf" else s.sigma / clean.shape[1:].numel() ** 0.5
    for _ in range(s.steps):
        rows = rows if at.randomized else rows[best[rows] <= 0]
        if not len(rows):
            break
        x, y = current[rows], labels[rows]
        every = torch.stack([torch.randn(shape, generator=drawn[row]) for row in rows], 1).to(x)
        estimate = torch.zeros_like(x)
        for u in every.split(max(1, at.how.batch // (2 * len(x)))):  # [s, n, C, H, W]
            both = torch.stack([x + sigma * u, x - sigma * u]).clamp(0, 1)
            losses = margin(at.logits(both.flatten(0, 2)), y.repeat(2 * len(u)))
            rise = losses.view(2, len(u), len(x)).diff(dim=0)[0].neg()  # [s, n]
            estimate += (rise[:, :, None, None, None] * u).sum(0)
        estimate = estimate / (2 * sigma * s.samples)
        slope[rows] = MOMENTUM * slope[rows] + (1 - MOMENTUM) * estimate
        moved = ascend(current[rows], slope[rows], s.step, s.norm)
        current[rows] = project(moved, clean[rows], s.eps, s.norm)
        at.how.progress(len(rows))
        shown = at.shown(current[rows], clean[rows])
        now = margin(at.logits(shown), labels[rows])
        take = (now > best[rows]) | at.randomized
        found[rows[take]], best[rows[take]] = shown[take], now[take]
    return (found,)
