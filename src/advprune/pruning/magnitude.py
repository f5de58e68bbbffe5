"""random, magnitude_global and magnitude_layer: the plain masks that any other has to beat.

Han et al., Learning both Weights and Connections for Efficient Neural Networks (NeurIPS 2015), at
once instead of in rounds, as in Weiss et al. (2022). `random` is the control: what does removing so
many weights do by itself?
"""

import torch
from torch import nn

from advprune.pruning.family import Data, Pruned, family
from advprune.pruning.masks import (
    Amount,
    Scope,
    magnitudes,
    masked,
    prunable,
    random_scores,
    removals,
    select,
)


@family("random", Amount)
def random(
    model: nn.Module, setting: Amount, data: Data | None, generator: torch.Generator
) -> Pruned:
    """Any weights."""
    removed = select(random_scores(prunable(model), generator), removals(model, setting))
    return masked(model, removed, setting.finetune, data, generator)


@family("magnitude_global", Amount, scope="global")
@family("magnitude_layer", Amount, scope="layer")
def magnitude(
    model: nn.Module, setting: Amount, data: Data | None, generator: torch.Generator, scope: Scope
) -> Pruned:
    """The smallest weights, of all or of each tensor."""
    removed = select(magnitudes(prunable(model)), removals(model, setting), scope)
    return masked(model, removed, setting.finetune, data, generator)
