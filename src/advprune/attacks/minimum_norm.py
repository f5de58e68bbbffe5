"""Minimum-norm attack: per image, the smallest perturbation found that fools the model.

Pintor, Roli, Brendel and Biggio, Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints (NeurIPS 2021), Algorithm 1: gradient steps on the margin inside a ball whose radius
shrinks while the image fools and grows while it does not. Three things are added: Linf steps follow
the gradient's sign and are measured in radii, so that no pixel lags behind; only what float32
confirms counts as fooling; and at the end the perturbation found is shortened by bisection towards
the clean image. Of a model that draws at random, the mean logits of some draws decide; what looked
like fooling in lucky draws is asked again in fresh ones and, if need be, lengthened.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_choice, check_images, check_model, check_numbers
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Mixed, Progress, attack_copy, by_batch, no_progress
from advprune.attacks.losses import margin
from advprune.attacks.pgd import ascend, expected_gradient, project
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack, Backward
from advprune.core.device import device_of, full_precision, salted
from advprune.models.stochastic import drawn_logits, is_randomized, mean_logits, set_backward

CLEAR = 1e-4  # the least margin that fools, in units of the largest logit: above rounding noise
# Lengths at which a perturbation is tried that fools by a hair only, or in lucky draws.
LENGTHS = (1.0, 1.01, 1.03, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0)
SURE_DRAWS = 20  # the fewest that confirm that an image fools a model that draws at random


@dataclass(frozen=True)
class MinimumNormSettings:
    """How to search.

    norm: `Linf` or `L2`. steps: gradient steps. step: length of the first one, in radii of the
    ball; it falls to a hundredth by a cosine. rate: by which part the ball grows or shrinks in the
    first step; it falls to a fiftieth likewise. halvings: of the way to the perturbation found, at
    the end. precision: `bfloat16` computes gradients in mixed precision. draws, backward: for
    models with random layers, as in `pgd`; seed: of their draws.
    """

    norm: str = "Linf"
    steps: int = 100
    step: float = 1.0
    rate: float = 0.05
    halvings: int = 10
    precision: str = "float32"
    batch: int = 128
    draws: int = 1
    backward: str | None = None
    seed: int = 0


def minimum_norm(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    settings: MinimumNormSettings,
    cost: Cost | None = None,
    progress: Progress = no_progress,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack `images` `[N, C, H, W]` in [0, 1].

    Returns images of the same shape, in [0, 1], and distances `[N]` in units of the pixel range: 0
    where the clean image is misclassified, infinite (and the clean image) where nothing was found.
    Distances are upper bounds, of float images: rounding these to 8 bits changes them. Where the
    model draws at random, its mean logits over draws that chose nothing are wrong there.
    cost: counts images passed forward and gradients taken. progress: called with image-steps done,
    of `N * steps`. Raises ValueError on shapes, ranges or options that make no sense.
    """
    check_images("minimum_norm", images, labels)
    check_model("minimum_norm", model, images, labels)
    check_numbers("minimum_norm", 1, steps=settings.steps, batch=settings.batch)
    check_numbers("minimum_norm", 1, draws=settings.draws)
    check_choice("minimum_norm", "norm", settings.norm, ("Linf", "L2"))
    check_choice("minimum_norm", "precision", settings.precision, ("float32", "bfloat16"))
    device = device_of(model)
    cost = Cost() if cost is None else cost
    quick, exact = attack_copy(model, device), attack_copy(model, device, fold=False)
    for private in (quick, exact):
        cost.watch(private)
        if settings.backward is not None:
            set_backward(private, settings.backward)
    if not (randomized := is_randomized(model)):
        settings = replace(settings, draws=1)
    search = _Search(quick, exact, settings, progress)

    def attack(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found, distances = search(images[rows].to(device), labels[rows].to(device))
        return found.cpu(), distances.cpu()

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if randomized:
            torch.manual_seed(salted(settings.seed, "minimum_norm"))
        pieces = torch.arange(len(images)).split(settings.batch)
        answers = by_batch(quick, pieces, attack, cost)
    if not answers:
        return images.clone(), images.new_zeros(0)
    found, distances = (torch.cat(parts).to(images) for parts in zip(*answers, strict=True))
    return found, distances


class MinimumNormMethod(Attack):
    """Settings of `method: minimum_norm`; eps: the budget that its images are stretched to."""

    method: Literal["minimum_norm"]
    steps: int = Field(default=100, ge=1, le=100000)
    precision: Literal["float32", "bfloat16"] = "float32"
    draws: int = Field(default=1, ge=1, le=10000)
    backward: Backward | None = None
    note: str = ""


@method("minimum_norm", MinimumNormMethod)
def _minimum_norm(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: MinimumNormMethod, how: Context
) -> torch.Tensor:
    """Images that can be fooled within the budget, with the perturbation stretched to all of it, so
    that rounding does not undo it; the others unchanged. Notes the distances."""
    own = s.model_dump(exclude={"method", "after", "eps", "note"})
    settings = MinimumNormSettings(**own, batch=how.batch, seed=how.seed)
    found, distances = minimum_norm(model, images, labels, settings, how.cost, how.progress)
    how.found["distance"] = distances
    stretch = torch.where(distances <= s.eps, s.eps / distances.clamp_min(1e-12), 0.0)
    return (images + _wide(stretch) * (found - images)).clamp(0, 1)


@dataclass(frozen=True)
class _Search:
    """The search for one batch. `quick` is folded, for gradients; `exact` decides what fools."""

    quick: nn.Module
    exact: nn.Module
    settings: MinimumNormSettings
    progress: Progress

    @property
    def sure(self) -> int:
        """The draws that decide whether an image fools: others than those behind gradients."""
        return max(2 * self.settings.draws, SURE_DRAWS) if is_randomized(self.exact) else 1

    def __call__(
        self, clean: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Images `[n, C, H, W]` and distances `[n]`."""
        found, distances = clean.clone(), clean.new_full((len(clean),), torch.inf)
        with torch.no_grad(), full_precision():
            logits = mean_logits(self.exact, clean, self.sure, self.settings.batch)
        already = logits.argmax(1) != labels
        distances[already] = 0.0
        self.progress(int(already.sum()) * self.settings.steps)
        rows = (~already).nonzero()[:, 0]
        if len(rows):
            found[rows], distances[rows] = self._descend(clean[rows], labels[rows])
            rows = rows[distances[rows].isfinite()]
        if len(rows):
            change = self._halve(clean[rows], found[rows] - clean[rows], labels[rows])
            length = self._first(clean[rows], change, labels[rows])
            fools = length.isfinite()
            ends = (clean[rows] + _wide(length.where(fools, 0.0)) * change).clamp(0, 1)
            found[rows] = ends
            distances[rows] = torch.where(fools, self._size(ends - clean[rows]), torch.inf)
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
            gradient, logits = expected_gradient(model, current, labels, margin, s.draws, s.batch)
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
        self, clean: torch.Tensor, change: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The shortest changes along the way to `clean + change` that surely fool."""
        outer = self._first(clean, change, labels).clamp_max(LENGTHS[-1])
        inner = torch.zeros_like(outer)
        for _ in range(self.settings.halvings):
            middle = (inner + outer) / 2
            fools = self._fools((clean + _wide(middle) * change).clamp(0, 1), labels)
            outer, inner = torch.where(fools, middle, outer), torch.where(fools, inner, middle)
        return (clean + _wide(outer) * change).clamp(0, 1) - clean

    def _first(
        self, clean: torch.Tensor, change: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """The first of `LENGTHS` (in units of `change`) that fools, `[n]`; infinite: none."""
        found = clean.new_full((len(clean),), torch.inf)
        for length in LENGTHS:
            rows = found.isinf().nonzero()[:, 0]
            if len(rows):
                tried = (clean[rows] + length * change[rows]).clamp(0, 1)
                fools = self._fools(tried, labels[rows])
                found[rows[fools]] = length
        return found

    @torch.no_grad()
    def _fools(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which images surely fool: by more than rounding, and two standard errors of a mean."""
        draws = self.sure
        with full_precision():
            each = torch.cat(list(drawn_logits(self.exact, images, draws, self.settings.batch)))
        logits = each.mean(0)  # of [D, n, K]
        clear = CLEAR * logits.abs().amax(1)
        if draws > 1:
            other = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
            pair = each.gather(2, torch.stack([other, labels], 1).expand(draws, -1, -1))
            clear = clear.maximum(2 * (pair[:, :, 0] - pair[:, :, 1]).std(0) / draws**0.5)
        return margin(logits, labels) > clear

    def _size(self, change: torch.Tensor) -> torch.Tensor:
        flat = change.flatten(1)
        return flat.abs().amax(1) if self.settings.norm == "Linf" else flat.norm(dim=1)


def _wide(values: torch.Tensor) -> torch.Tensor:
    """`[n]` as `[n, 1, 1, 1]`, to go with images."""
    return values.view(-1, 1, 1, 1)
