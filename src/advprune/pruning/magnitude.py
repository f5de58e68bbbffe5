"""random and magnitude masks: weights masked at random, or by small magnitude.

Claim (Han et al., 2015). Weights near zero can be removed, and a short training repairs the loss.
In the GAP study (Weiss et al., 2022) these are the schemes that GAP has to beat; random pruning
shows what removing that many weights does by itself.

Formula. Prunable weights and biases of convolutions and linear layers, without the classifier, are
ranked by `|w|` over the network (magnitude_global) or within each tensor (magnitude_layer), or by
uniform random numbers from the run's seed (random). The smallest become zero, all at once, of
equal ones the first. The count is exact to one parameter; the published code cuts at a quantile,
and keeps each weight with a probability where it prunes at random.

Compression. All parameters over those that remain, as published: batch-norm and classifier count,
so the share removed from the prunable ones is above `1 - 1/compression`. A compression beyond what
the prunable weights allow is refused. Fine-tuning holds the mask after every step and follows the
one-cycle schedule; the published code means a constant rate of 1e-3 and applies 1e-6. Zeros by
mask save neither time nor memory as stored here; filters can.

Source. Han et al., Learning both Weights and Connections for Efficient Neural Networks (NeurIPS
2015); Weiss et al., Hardening DNNs against Transfer Attacks during Network Compression using
Greedy Adversarial Pruning (AICAS 2022).
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
