"""Minimum-norm attack: per image, the smallest perturbation found that fools the model.

Pintor, Roli, Brendel and Biggio, Fast Minimum-norm Adversarial Attacks through Adaptive Norm
Constraints (NeurIPS 2021), Algorithm 1: gradient steps on the margin inside a ball whose radius
shrinks while the image fools and grows while it does not. Added here: Linf steps follow the
gradient's sign and are measured in radii; only what float32 confirms counts as fooling; at the end
the perturbation found is shortened by bisection towards the clean image.

Of a model that draws at random, the mean logits decide, and each step sees few draws: the smallest
radius at which one seemed to fool means nothing. There the radius follows those decisions in ever
smaller steps (Robbins and Monro, A Stochastic Approximation Method, 1951). The length is decided by
bisection, all lengths on the same draws, and confirmed in fresh ones.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, is_low, opened, wide
from advprune.attacks.pgd import ascend, project, random_point, sizes
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import GradientAttack
from advprune.core.device import full_precision
from advprune.models.quantized import needs_twin
from advprune.models.stochastic import mean_logits, silent_copy

CLEAR = 1e-4  # the least margin that fools, in units of the largest logit: above rounding noise
# Factors by which a perturbation is stretched that fools by a hair only, or in lucky draws.
FACTORS = (1.0, 1.01, 1.03, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0)
FAR = (5.0, 10.0, 30.0)  # more of them for a random model, whose radius may rest on luck
HALVINGS = 10  # of the way to the perturbation found, at the end
SURE_DRAWS = 20  # the fewest that decide a length for a model that draws at random
# The search on a random model: its rate and step beside the usual ones, how much of the last
# gradients and logits remains from step to step, and after which part of the steps the changes are
# averaged. Chosen on validation images of the digits.
RATE, STEP, MOMENTUM, MEMORY, LATE = 2.0, 0.7, 0.75, 0.5, 0.7


class MinimumNormSettings(GradientAttack):
    """Settings of `method: minimum_norm`; eps: the budget that its images fill.

    steps: gradient steps. restarts: after the first search, from the clean image, others begin at
    random points of the ball found so far and can only improve it; a random model has one search of
    `steps * restarts` steps. Progress is of `N * steps * restarts`.
    """

    method: Literal["minimum_norm"]
    steps: int = Field(default=100, ge=1, le=100000)
    restarts: int = Field(default=1, ge=1, le=1000)


At = Opened[MinimumNormSettings]
Found = tuple[Tensor, Tensor]  # images `[n, C, H, W]` and distances `[n]`


@method("minimum_norm", MinimumNormSettings, distances=True)
def minimum_norm(
    model: nn.Module, images: Tensor, labels: Tensor, s: MinimumNormSettings, how: Context
) -> Found:
    """Images and distances, which are in units of the pixel range, upper bounds, and of float
    images: 0 where the clean image is misclassified, infinite, with the clean image, where nothing
    was found."""
    with opened(model, images, labels, s, how, exact=True) as at:
        middle = torch.full_like(images, 0.5).repeat_interleave(s.restarts - 1, 0)
        noise = random_point(middle, 0.5, s.norm, at.generator) - 0.5
        noise = 2 * noise.unflatten(0, (len(images), s.restarts - 1))  # [N, R - 1, C, H, W]
        found, distances = at.run(partial(_search, at), torch.arange(len(images)), noise)
    return found, distances


def _search(at: At, clean: Tensor, labels: Tensor, noise: Tensor) -> Found:
    """Images `[n, C, H, W]` and distances `[n]`; noise: points of the unit ball `[n, R - 1, …]`."""
    found, distances = clean.clone(), clean.new_full((len(clean),), torch.inf)
    already = _mean(at, clean).argmax(1) != labels
    distances[already] = 0.0
    at.how.progress(int(already.sum()) * at.setting.steps)
    rows = (~already).nonzero()[:, 0]
    if len(rows):
        it = clean[rows], labels[rows]
        best = _of_the_mean(at, *it) if at.randomized else _descend(at, *it)
        for start in () if at.randomized else noise[rows].unbind(1):
            usual = best[1][best[1].isfinite()].mean().nan_to_num(0.1)
            size = best[1].where(best[1].isfinite(), usual)
            best = _descend(at, *it, best, (it[0] + wide(size) * start).clamp(0, 1))
        found[rows], distances[rows] = best
        rows = rows[distances[rows].isfinite()]
    if len(rows):
        # The shortest changes along the way that surely fool.
        near, own, way = clean[rows], labels[rows], found[rows] - clean[rows]
        outer = _first(at, near, way, own).clamp_max(FAR[-1] if at.randomized else FACTORS[-1])
        inner = torch.zeros_like(outer)
        for _ in range(HALVINGS):
            middle = (inner + outer) / 2
            fools = _fools(at, (near + wide(middle) * way).clamp(0, 1), own)
            outer, inner = torch.where(fools, middle, outer), torch.where(fools, inner, middle)
        change = (near + wide(outer) * way).clamp(0, 1) - near
        length = _first(at, near, change, own, fresh=True)
        fools = length.isfinite()
        found[rows] = (near + wide(length.where(fools, 0.0)) * change).clamp(0, 1)
        size = sizes(found[rows] - near, at.setting.norm)
        distances[rows] = torch.where(fools, size, torch.inf)
    return found, distances


def _descend(
    at: At, clean: Tensor, labels: Tensor, known: Found | None = None, start: Tensor | None = None
) -> Found:
    """Algorithm 1: the nearest fooling iterates and their distances (infinite: none).

    known: images that fool and their distances, to be improved. start: where to begin; the clean
    images.
    """
    s = at.setting
    surely = is_low(s) or needs_twin(at.exact)
    best, nearest = known or (clean, clean.new_full((len(clean),), torch.inf))
    current = (clean if start is None else start).contiguous(memory_format=torch.channels_last)
    radius = sizes(current - clean, s.norm)
    for rate, step in _schedule(s.steps):
        gradient, logits = at.gradient(current, labels, margin)
        at.how.progress(len(clean))
        gap, size = margin(logits, labels), sizes(current - clean, s.norm)
        fooled, closer = gap > 0, size < nearest
        if surely and (asked := fooled & closer).any():  # other arithmetic errs
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


def _of_the_mean(at: At, clean: Tensor, labels: Tensor) -> Found:
    """Of a model that draws at random: images near the border of its mean logits, and distances.

    The search begins at what fools the model without its random layers, where that can be asked.
    Of three ways to fool it, the one of largest mean margin at the same length is taken.
    """
    s, tried, start = at.setting, [], clean

    def lead(logits: Tensor, pair: Tensor) -> Tensor:
        """By how much a class leads the label, `[n]`, of labels and classes `[n, 2]`."""
        return logits.gather(1, pair).diff(dim=1)[:, 0]

    if (silent := silent_copy(at.quick)) is not None:
        still = replace(at, quick=silent, exact=silent, randomized=False, draws=1)
        start, _ = _descend(still, clean, labels)
        tried.append(start - clean)
    current, steps = start.contiguous(memory_format=torch.channels_last), s.steps * s.restarts
    radius, ever = sizes(current - clean, s.norm), torch.zeros_like(labels, dtype=torch.bool)
    slope, late, recent = torch.zeros_like(clean), torch.zeros_like(clean), at.logits(current)
    for index, (rate, step) in enumerate(_schedule(steps)):
        rival = recent.scatter(1, labels[:, None], -torch.inf).argmax(1)
        gradient, logits = at.gradient(current, torch.stack([labels, rival], 1), lead)
        at.how.progress(len(clean))
        recent = MEMORY * recent + (1 - MEMORY) * logits
        scale = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-12)
        slope = MOMENTUM * slope + (1 - MOMENTUM) * gradient / scale
        fooled = margin(logits, labels) > 0
        ever |= fooled
        outward = torch.where(ever, radius * (1 + RATE * rate), 1.1 * radius + 0.01)
        radius = torch.where(fooled, radius * (1 - RATE * rate), outward)
        moved = ascend(current, slope, STEP * step * wide(radius), s.norm)
        current = project(moved, clean, wide(radius), s.norm)
        late += (current - clean) * (index >= LATE * steps)
    best, reached = clean, torch.full_like(radius, -torch.inf)
    for change in (*tried, current - clean, late):
        scaled = change * wide(radius / sizes(change, s.norm).clamp_min(1e-12))
        points = (clean + scaled).clamp(0, 1)
        now = margin(_mean(at, points), labels)
        best, reached = torch.where(wide(now > reached), points, best), now.maximum(reached)
    return best, sizes(best - clean, s.norm)


def _schedule(steps: int) -> Iterator[tuple[float, float]]:
    """By which part the ball grows or shrinks in each step, and how long the step is, in radii."""
    for index in range(steps):
        fade = (1 + math.cos(math.pi * index / steps)) / 2  # 1 at first, 0 in the end
        yield 0.05 * (0.02 + 0.98 * fade), 0.01 + 0.99 * fade


def _first(at: At, clean: Tensor, change: Tensor, labels: Tensor, fresh: bool = False) -> Tensor:
    """The first of `FACTORS` (in units of `change`) that fools, `[n]`; infinite: none."""
    found = clean.new_full((len(clean),), torch.inf)
    for length in FACTORS + FAR * at.randomized:
        rows = found.isinf().nonzero()[:, 0]
        if len(rows):
            tried = (clean[rows] + length * change[rows]).clamp(0, 1)
            fools = _fools(at, tried, labels[rows], fresh)
            found[rows[fools]] = length
    return found


def _fools(at: At, images: Tensor, labels: Tensor, fresh: bool = False) -> Tensor:
    """Which images surely fool: by more than rounding."""
    logits = _mean(at, images, fresh)
    return margin(logits, labels) > CLEAR * logits.abs().amax(1)


@torch.no_grad()
def _mean(at: At, images: Tensor, fresh: bool = False) -> Tensor:
    """Logits `[n, K]`; of a random model, over draws that are the same in every call, or fresh."""
    draws = max(2 * at.draws, SURE_DRAWS) if at.randomized else 1
    devices = [at.device] if at.device.type == "cuda" else []
    with full_precision(), torch.random.fork_rng(devices, enabled=at.randomized and not fresh):
        if at.randomized and not fresh:
            torch.manual_seed(at.generator.initial_seed())
        return mean_logits(at.exact, images, draws, at.how.batch)
