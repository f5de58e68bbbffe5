"""E, S, R and ESR: small weights set to zero, weights clamped, noise added, all three in turn.

Claim (nn-prune). The project asks whether pruning removes adversarial weaknesses and concludes
"probably not": E is useless, and S costs accuracy. Its table lists 32.6 % remnant accuracy at S =
5 and 34.2 % at R = 1e-3, where the dense network has 0.2 %.

Formula. For every weight and bias of every module, batch-norm's affine parameters included
(running statistics are left alone): E sets `w = 0 where |w| < E`; S clamps each tensor to `mean ±
S std`, with the population standard deviation; R adds `u`, uniform on [-R, R], drawn once from the
run's seed and saved with the model; ESR applies the three in that order, so that R undoes E's
zeros. The mean, the deviation and the gate of its S are those of the tensor before E.

The gate of S. The published code clamps a tensor only where scipy's `normaltest` rejects normality
(p < 1e-5); its README says the opposite. `gate: non_normal` is the code and the default, `normal`
the README, `none` the rule without a gate. Tensors of fewer than 8 values, or of equal values,
count as not rejected. In a tensor of n values none lies further than sqrt(n - 1) sigma from the
mean, so a large S often changes nothing.

Published settings. E: 1e-5, 1e-4, 1e-3, 5e-3, 7e-3, 1e-2, 2e-2, 5e-2. S: 9, 7, 5, 3. R: 1e-3,
1e-2, 1e-1. E is an absolute threshold: what it removes depends on width and training.

Source. nn-prune (Kahsolt/adversarial-prune on GitHub, October 2022), its README and code.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.core.settings import Settings
from advprune.pruning.family import Data, Pruned, family

NORMALITY_P = 1e-5  # the published code's threshold
NORMALTEST_MINIMUM = 8  # scipy's normaltest is defined from 8 values on

Gate = Literal["non_normal", "normal", "none"]


class Threshold(Settings):
    """E: weights of magnitude below `threshold` become zero."""

    threshold: float = Field(ge=0, le=1e6)


class Clamp(Settings):
    """S: weights are clamped to `mean ± sigmas * std` of their tensor.

    gate: which tensors are clamped: `non_normal` (published code: normaltest p < 1e-5), `normal`
    (published README: p >= 1e-5), or `none` (every tensor).
    """

    sigmas: float = Field(gt=0, le=1e6)
    gate: Gate = "non_normal"


class Noise(Settings):
    """R: uniform noise of half-width `radius` is added to every weight."""

    radius: float = Field(ge=0, le=1e6)


class ESR(Settings):
    """E, then S, then R."""

    E: float = Field(ge=0, le=1e6)
    S: float = Field(gt=0, le=1e6)
    R: float = Field(ge=0, le=1e6)
    gate: Gate = "non_normal"


def zero_small(w: torch.Tensor, threshold: float) -> torch.Tensor:
    """`w` with every entry of magnitude below `threshold` set to zero."""
    return w.masked_fill(w.abs() < threshold, 0.0)


def clamp_sigmas(
    w: torch.Tensor, sigmas: float, gate: Gate = "non_normal", of: torch.Tensor | None = None
) -> torch.Tensor:
    """`w` clamped to the mean ± `sigmas` population standard deviations of `of` (itself if not
    given), if the gate lets it. Too few or constant values count as normal: their normality is not
    rejected."""
    of = w if of is None else of
    if gate != "none":
        from scipy.stats import normaltest

        values = of.detach().double().cpu().flatten().numpy()
        tested = len(values) >= NORMALTEST_MINIMUM and values.std() > 0
        rejected = tested and bool(normaltest(values).pvalue < NORMALITY_P)
        if rejected != (gate == "non_normal"):
            return w.clone()
    mean, reach = of.mean(), sigmas * of.std(correction=0)
    return w.clamp(mean - reach, mean + reach)


def add_noise(w: torch.Tensor, radius: float, generator: torch.Generator) -> torch.Tensor:
    """`w` plus independent uniform noise in [-radius, radius], drawn on the CPU."""
    noise = (torch.rand(w.shape, generator=generator) * 2 - 1) * radius
    return w + noise.to(w.device)


def apply(model: nn.Module, rule: Callable[[torch.Tensor], torch.Tensor]) -> Pruned:
    """Replace every parameter `w` of `model` by `rule(w)`, in place, and note what changed."""
    changed = {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            new = rule(parameter)
            changed[name] = new != parameter
            parameter.copy_(new)
    return Pruned(model, changed)


@family("E", Threshold)
def prune_e(model: nn.Module, setting: Threshold, data: Data) -> Pruned:
    """Small weights to zero."""
    return apply(model, lambda w: zero_small(w, setting.threshold))


@family("S", Clamp)
def prune_s(model: nn.Module, setting: Clamp, data: Data) -> Pruned:
    """Weights clamped to a multiple of sigma."""
    return apply(model, lambda w: clamp_sigmas(w, setting.sigmas, setting.gate))


@family("R", Noise)
def prune_r(model: nn.Module, setting: Noise, data: Data) -> Pruned:
    """Uniform noise on the weights."""
    return apply(model, lambda w: add_noise(w, setting.radius, data.generator))


@family("ESR", ESR)
def prune_esr(model: nn.Module, setting: ESR, data: Data) -> Pruned:
    """Small weights to zero, then the clamp, then the noise."""

    def rule(w: torch.Tensor) -> torch.Tensor:
        clamped = clamp_sigmas(zero_small(w, setting.E), setting.S, setting.gate, of=w)
        return add_noise(clamped, setting.R, data.generator)

    return apply(model, rule)
