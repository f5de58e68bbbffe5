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
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_numbers
from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, Options, opened, options, wide
from advprune.attacks.pgd import ascend, project, random_point
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import GradientAttack
from advprune.core.device import full_precision
from advprune.models.quantized import is_quantized
from advprune.models.stochastic import drawn_logits, silent_copy

CLEAR = 1e-4  # the least margin that fools, in units of the largest logit: above rounding noise
# Lengths at which a perturbation is tried that fools by a hair only, or in lucky draws.
LENGTHS = (1.0, 1.01, 1.03, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0)
SURE_DRAWS = 20  # the fewest that confirm that an image fools a model that draws at random


@dataclass(frozen=True)
class MinimumNormSettings(Options):
    """How to search; more in `Options`.

    steps: gradient steps. step: length of the first one, in radii of the ball; it falls to a
    hundredth by a cosine. rate: by which part the ball grows or shrinks in the first step; it falls
    to a fiftieth likewise. restarts: after the first search, which begins at the clean image, the
    others begin at random points of the ball found so far and can only improve it. halvings: of
    the way to the perturbation found, at the end. progress: of `N * steps * restarts`.
    """

    steps: int = 100
    step: float = 1.0
    rate: float = 0.05
    restarts: int = 1
    halvings: int = 10
    exact: ClassVar[bool] = True


At = Opened[MinimumNormSettings]
Found = tuple[torch.Tensor, torch.Tensor]  # images `[n, C, H, W]` and distances `[n]`


def minimum_norm(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, settings: MinimumNormSettings
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attack `images` `[N, C, H, W]` in [0, 1].

    Returns images of the same shape, in [0, 1], and distances `[N]` in units of the pixel range: 0
    where the clean image is misclassified, infinite (and the clean image) where nothing was found.
    Distances are upper bounds, of float images: rounding these to 8 bits changes them. Where the
    model draws at random, its mean logits over draws that chose nothing are wrong there.
    Raises ValueError on shapes, ranges or options that make no sense.
    """
    check_numbers("minimum_norm", 1, steps=settings.steps, restarts=settings.restarts)
    with opened("minimum_norm", model, (images, labels), 0.0, settings) as at:
        middle = torch.full_like(images, 0.5).repeat_interleave(settings.restarts - 1, 0)
        noise = random_point(middle, 0.5, settings.norm, at.generator) - 0.5
        noise = 2 * noise.unflatten(0, (len(images), settings.restarts - 1))  # [N, R - 1, C, H, W]
        found, distances = at.run(partial(_search, at), torch.arange(len(images)), noise)
    return found, distances


class MinimumNormMethod(GradientAttack):
    """Settings of `method: minimum_norm`; eps: the budget that its images are stretched to."""

    method: Literal["minimum_norm"]
    steps: int = Field(default=100, ge=1, le=100000)
    restarts: int = Field(default=1, ge=1, le=1000)


@method("minimum_norm", MinimumNormMethod)
def _minimum_norm(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: MinimumNormMethod, how: Context
) -> torch.Tensor:
    """Images that can be fooled within the budget, with the perturbation stretched to all of it, so
    that rounding does not undo it; the others unchanged. Notes the distances."""
    settings = options(MinimumNormSettings, s, how)
    found, distances = minimum_norm(model, images, labels, settings)
    how.found["distance"] = distances
    stretch = torch.where(distances <= s.eps, s.eps / distances.clamp_min(1e-12), 0.0)
    return (images + wide(stretch) * (found - images)).clamp(0, 1)


def _search(at: At, clean: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor) -> Found:
    """Images `[n, C, H, W]` and distances `[n]`; noise: points of the unit ball `[n, R - 1, …]`."""
    found, distances = clean.clone(), clean.new_full((len(clean),), torch.inf)
    already = _each(at, clean).mean(0).argmax(1) != labels
    distances[already] = 0.0
    at.options.progress(int(already.sum()) * at.options.steps)
    rows = (~already).nonzero()[:, 0]
    if len(rows):
        own = clean[rows], labels[rows]
        best = _silent_start(at, *own) if at.randomized else None
        best = _descend(at, *own, best, None if best is None else best[0])
        for start in noise[rows].unbind(1):
            usual = best[1][best[1].isfinite()].mean().nan_to_num(0.1)
            size = best[1].where(best[1].isfinite(), usual)
            best = _descend(at, *own, best, (own[0] + wide(size) * start).clamp(0, 1))
        found[rows], distances[rows] = best
        rows = rows[distances[rows].isfinite()]
    if len(rows):
        change = _halve(at, clean[rows], found[rows] - clean[rows], labels[rows])
        length = _first(at, clean[rows], change, labels[rows])
        fools = length.isfinite()
        found[rows] = (clean[rows] + wide(length.where(fools, 0.0)) * change).clamp(0, 1)
        size = _size(found[rows] - clean[rows], at.options.norm)
        distances[rows] = torch.where(fools, size, torch.inf)
    return found, distances


def _silent_start(at: At, clean: torch.Tensor, labels: torch.Tensor) -> Found | None:
    """What fools a random model, found on it without its random layers.

    Noisy gradients alone find perturbations that are too long by a third.
    """
    silent = silent_copy(at.quick)
    if silent is None:
        return None
    quiet = replace(at, quick=silent, exact=silent, randomized=False)
    found, _ = _descend(quiet, clean, labels)
    change = _halve(at, clean, found - clean, labels)
    length = _first(at, clean, change, labels)
    start = (clean + wide(length.where(length.isfinite(), 0.0)) * change).clamp(0, 1)
    size = _size(start - clean, at.options.norm)
    return start, torch.where(size > 0, size, torch.inf)


def _descend(
    at: At,
    clean: torch.Tensor,
    labels: torch.Tensor,
    known: Found | None = None,
    start: torch.Tensor | None = None,
) -> Found:
    """Algorithm 1: the nearest fooling iterates and their distances (infinite: none).

    known: images that fool and their distances, to be improved. start: where to begin; the clean
    images.
    """
    s = at.options
    surely = s.precision != "float32" or is_quantized(at.exact) or at.randomized
    best, nearest = known or (clean, clean.new_full((len(clean),), torch.inf))
    current = (clean if start is None else start).contiguous(memory_format=torch.channels_last)
    radius = _size(current - clean, s.norm)
    for index in range(s.steps):
        fade = (1 + math.cos(math.pi * index / s.steps)) / 2  # 1 at first, 0 in the end
        rate, step = s.rate * (0.02 + 0.98 * fade), s.step * (0.01 + 0.99 * fade)
        gradient, logits = at.gradient(current, labels, margin)
        s.progress(len(clean))
        gap, size = margin(logits, labels), _size(current - clean, s.norm)
        fooled, closer = gap > 0, size < nearest
        if surely and (asked := fooled & closer).any():  # other arithmetic and lucky draws err
            fooled[asked] = _fools(at, current[asked], labels[asked])
        nearer = fooled & closer
        best = torch.where(wide(nearer), current, best)
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
        moved = ascend(current, gradient, step * wide(radius), s.norm)
        current = project(moved, clean, wide(radius), s.norm)
    return best, nearest


def _halve(at: At, clean: torch.Tensor, change: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The shortest changes along the way to `clean + change` that surely fool."""
    outer = _first(at, clean, change, labels).clamp_max(LENGTHS[-1])
    inner = torch.zeros_like(outer)
    for _ in range(at.options.halvings):
        middle = (inner + outer) / 2
        fools = _fools(at, (clean + wide(middle) * change).clamp(0, 1), labels)
        outer, inner = torch.where(fools, middle, outer), torch.where(fools, inner, middle)
    return (clean + wide(outer) * change).clamp(0, 1) - clean


def _first(at: At, clean: torch.Tensor, change: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The first of `LENGTHS` (in units of `change`) that fools, `[n]`; infinite: none."""
    found = clean.new_full((len(clean),), torch.inf)
    for length in LENGTHS:
        rows = found.isinf().nonzero()[:, 0]
        if len(rows):
            tried = (clean[rows] + length * change[rows]).clamp(0, 1)
            fools = _fools(at, tried, labels[rows])
            found[rows[fools]] = length
    return found


def _fools(at: At, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which images surely fool: by more than rounding, and a mean by its standard error."""
    each = _each(at, images)
    logits, count = each.mean(0), len(each)
    clear = CLEAR * logits.abs().amax(1)
    if at.randomized:
        other = logits.scatter(1, labels[:, None], -torch.inf).argmax(1)
        pair = each.gather(2, torch.stack([other, labels], 1).expand(count, -1, -1))
        clear = clear.maximum((pair[:, :, 0] - pair[:, :, 1]).std(0) / count**0.5)
    return margin(logits, labels) > clear


@torch.no_grad()
def _each(at: At, images: torch.Tensor) -> torch.Tensor:
    """Logits `[D, n, K]`; of a random model, of more draws than are behind gradients."""
    draws = max(2 * at.draws, SURE_DRAWS) if at.randomized else 1
    with full_precision():
        return torch.cat(list(drawn_logits(at.exact, images, draws, at.options.batch)))


def _size(change: torch.Tensor, norm: str) -> torch.Tensor:
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "Linf" else flat.norm(dim=1)
