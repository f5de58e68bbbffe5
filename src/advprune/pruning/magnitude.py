"""random, magnitude_global and magnitude_layer: the plain masks that any other has to beat.

Han et al., Learning both Weights and Connections for Efficient Neural Networks (NeurIPS 2015), at
once instead of in rounds, as in Weiss et al. (2022). `random` is the control: what does removing so
many weights do by itself?
"""

from functools import partial

import torch
from torch import nn

from advprune.pruning.family import Data, Pruned, family
from advprune.pruning.masks import Amount, Scores, prunable, prune_by


def random_scores(model: nn.Module, generator: torch.Generator) -> Scores:
    """Independent uniform numbers in [0, 1), drawn on the CPU, 53 bits each: hardly ever a tie."""
    return {
        name: torch.rand(p.shape, generator=generator, dtype=torch.float64)
        for name, p in prunable(model).items()
    }


def magnitudes(model: nn.Module) -> Scores:
    """`|w|`."""
    return {name: p.detach().abs() for name, p in prunable(model).items()}


@family("random", Amount)
def random(
    model: nn.Module, setting: Amount, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Any weights."""
    scores = partial(random_scores, model, generator)
    return prune_by("random", model, setting, data, generator, scores, "global")


@family("magnitude_global", Amount)
def magnitude_global(
    model: nn.Module, setting: Amount, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The smallest weights of all."""
    scores = partial(magnitudes, model)
    return prune_by("magnitude_global", model, setting, data, generator, scores, "global")


@family("magnitude_layer", Amount)
def magnitude_layer(
    model: nn.Module, setting: Amount, data: Data | None, generator: torch.Generator
) -> Pruned:
    """The same share of each tensor, its smallest weights."""
    scores = partial(magnitudes, model)
    return prune_by("magnitude_layer", model, setting, data, generator, scores, "layer")
