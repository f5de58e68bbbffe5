"""Minimum-norm attack: per image, the smallest perturbation found that fools the model.

Pintor, Roli, Brendel and Biggio, Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints (NeurIPS 2021), Algorithm 1: gradient steps on the margin inside a ball whose radius
shrinks while the image fools and grows while it does not. Three things are added: Linf steps follow
the gradient's sign and are measured in radii, so that no pixel lags behind; only what float32
confirms counts as fooling; and at the end the perturbation found is shortened by bisection towards
the clean image.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import (
    check_choice,
    check_images,
    check_model,
    check_numbers,
    refuse,
)
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Mixed, Progress, attack_copy, by_batch, no_progress
from advprune.attacks.losses import margin
from advprune.attacks.pgd import ascend, expected_gradient, project
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.device import device_of, full_precision
from advprune.models.stochastic import is_randomized

CLEAR = 1e-4  # the least margin that fools, in units of the largest logit: above rounding noise


@dataclass(frozen=True)
class MinimumNormSettings:
    """How to search.

    norm: `Linf` or `L2`. steps: gradient steps. step: length of the first one, in radii of the
    ball; it falls to a hundredth by a cosine. rate: by which part the ball grows or shrinks in the
    first step; it falls to a fiftieth likewise. halvings: of the way to the perturbation found, at
    the end. precision: `bfloat16` computes gradients in mixed precision.
    """

    norm: str = "Linf"
    steps: int = 100
    step: float = 1.0
    rate: float = 0.05
    halvings: int = 10
    precision: str = "float32"
    batch: int = 128


def minimum_norm(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: MinimumNormSettings,
    cost: Cost | None = None,
    progress: Progress = no_progress,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack `images` `[N, C, H, W]` in [0, 1] of a deterministic model.

    Returns images of the same shape, in [0, 1], and distances `[N]` in units of the pixel range: 0
    where the clean image is misclassified, infinite (and the clean image) where nothing was found.
    Distances are upper bounds, of float images: rounding these to 8 bits changes them.
    cost: counts images passed forward and gradients taken. progress: called with image-steps done,
    of `N * steps`. Raises ValueError on shapes, ranges or options that make no sense.
    """
    check_images("minimum_norm", images, labels)
    model = check_model("minimum_norm", model, images, labels)
    drawn = "the model draws at random: a distance found in some draws says nothing of the next"
    refuse("minimum_norm", {drawn: is_randomized(model)})
    check_numbers("minimum_norm", 1, steps=settings.steps, batch=settings.batch)
    check_choice("minimum_norm", "norm", settings.norm, ("Linf", "L2"))
    check_choice("minimum_norm", "precision", settings.precision, ("float32", "bfloat16"))
    device = device_of(model)
    cost = Cost() if cost is None else cost
    quick, exact = attack_copy(model, device), attack_copy(model, device, fold=False)
    for private in (quick, exact):
        cost.watch(private)
    search = _Search(quick, exact, settings, progress)

    def attack(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, distances = search(images[rows].to(device), labels[rows].to(device))
        return found.cpu(), distances.cpu()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        pieces = torch.arange(len(images)).split(settings.batch)
        answers = by_batch(quick, pieces, attack, cost)
    if not answers:
        return images.clone(), images.new_zeros(0)
    found, distances = (torch.cat(parts).to(images) for parts in zip(*answers, strict=True))
    return found, distances


class MinimumNormMethod(Attack):
    """Settings of `method: minimum_norm`: for deterministic models, at one budget."""

    method: Literal["minimum_norm"]
    steps: int = Field(default=100, ge=1, le=100000)
    note: str = ""


@method("minimum_norm", MinimumNormMethod)
def _minimum_norm(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: MinimumNormMethod, how: Context
) -> torch.Tensor:
    """Images that can be fooled within the budget, with the perturbation stretched to all of it, so
    that rounding does not undo it; the others unchanged."""
    settings = MinimumNormSettings(s.norm, s.steps, batch=how.batch)
    found, distances = minimum_norm(model, images, labels, settings, how.cost, how.progress)
    stretch = torch.where(distances <= s.eps, s.eps / distances.clamp_min(1e-12), 0.0)
    return (images + _wide(stretch) * (found - images)).clamp(0, 1)


@dataclass(frozen=True)
class _Search:
    """The search for one batch. `quick` is folded, for gradients; `exact` decides what fools."""

    quick: nn.Module
    exact: nn.Module
    settings: MinimumNormSettings
    progress: Progress

    def __call__(
        self, clean: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[n, C, H, W]` and distances `[n]`."""
        found, distances = clean.clone(), clean.new_full((len(clean),), torch.inf)
        already = self._logits(clean).argmax(1) != labels
        distances[already] = 0.0
        self.progress(int(already.sum()) * self.settings.steps)
        rows = (~already).nonzero()[:, 0]
        if len(rows):
            found[rows], distances[rows] = self._descend(clean[rows], labels[rows])
            rows = rows[distances[rows].isfinite()]
        if len(rows):
            ends = self._halve(clean[rows], found[rows], labels[rows])
            fools = self._fools(ends, labels[rows])
            found[rows] = torch.where(_wide(fools), ends, clean[rows])
            size = self._size(ends - clean[rows])
            distances[rows] = torch.where(fools, size, torch.inf)
        return found, distances

    def _descend(
        self, clean: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Algorithm 1: the nearest fooling iterates and their distances (infinite: none)."""
        s = self.settings
        current, best = clean.contiguous(memory_format=torch.channels_last), clean.clone()
        nearest = clean.new_full((len(clean),), torch.inf)
        radius = torch.zeros_like(nearest)
        model = Mixed(self.quick) if s.precision == "bfloat16" else self.quick
        for index in range(s.steps):
            fade = (1 + math.cos(math.pi * index / s.steps)) / 2  # 1 at first, 0 in the end
            rate, step = s.rate * (0.02 + 0.98 * fade), s.step * (0.01 + 0.99 * fade)
            gradient, logits = expected_gradient(model, current, labels, margin)
            self.progress(len(clean))
            gap, size = margin(logits, labels), self._size(current - clean)
            fooled = self._confirmed(gap > 0, current, labels)
            nearer = fooled & (size < nearest)
            best = torch.where(_wide(nearer), current, best)
            nearest = torch.where(nearer, size, nearest)

            # Where nothing has fooled yet, the radius at which the linearized margin is zero.
            order = 1 if s.norm == "Linf" else 2
            slope = gradient.flatten(1).norm(order, dim=1).clamp_min(1e-12)
            # A tenth and a bit more: near a tie, the margin's sign is not to be relied on.
            guess = 1.1 * size + gap.abs() / slope + 1e-6
            guess = torch.where(nearest.isfinite(), 0.0, guess)
            outward = torch.maximum(radius * (1 + rate), guess)
            inward = torch.minimum(radius, nearest) * (1 - rate)
            radius = torch.where(fooled, inward, torch.minimum(outward, nearest))
            current = self._step(current, gradient, clean, radius, step)
        return best, nearest

    def _step(
        self,
        current: torch.Tensor,
        gradient: torch.Tensor,
        clean: torch.Tensor,
        radius: torch.Tensor,
        step: float,
    ) -> torch.Tensor:
        """A step of that many radii uphill, then back into the ball of that radius and [0, 1]."""
        norm, radius = self.settings.norm, _wide(radius)
        return project(ascend(current, gradient, step * radius, norm), clean, radius, norm)

    def _confirmed(
        self, looks: torch.Tensor, current: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Which images fool, of those that look so: gradients in mixed precision err too often."""
        if self.settings.precision == "bfloat16" and looks.any():
            looks[looks.clone()] = self._fools(current[looks], labels[looks])
        return looks

    def _halve(
        self, clean: torch.Tensor, found: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The images between `clean` and `found` that are nearest to clean and surely fool.

        Where `found` itself does so by a hair only, a little further out.
        """
        change, parts = found - clean, (1.0, 1.01, 1.03, 1.1)
        inner, outer = clean.new_zeros(len(clean)), clean.new_full((len(clean),), torch.inf)
        for part in parts:
            fools = self._fools((clean + part * change).clamp(0, 1), labels)
            outer = torch.where(fools & outer.isinf(), part, outer)
        outer = torch.where(outer.isinf(), parts[-1], outer)
        for _ in range(self.settings.halvings):
            middle = (inner + outer) / 2
            fools = self._fools((clean + _wide(middle) * change).clamp(0, 1), labels)
            outer, inner = torch.where(fools, middle, outer), torch.where(fools, inner, middle)
        return (clean + _wide(outer) * change).clamp(0, 1)

    def _fools(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self._logits(images)
        return margin(logits, labels) > CLEAR * logits.abs().amax(1)

    @torch.no_grad()
    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        with full_precision():
            return self.exact(images)

    def _size(self, change: torch.Tensor) -> torch.Tensor:
        flat = change.flatten(1)
        return flat.abs().amax(1) if self.settings.norm == "Linf" else flat.norm(dim=1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """`[n]` as `[n, 1, 1, 1]`, to go with images."""
    return values.view(-1, 1, 1, 1)
