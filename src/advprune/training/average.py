"""Weight averaging: a second copy of the network that follows the trained one."""

import copy

import torch
from torch import nn


class Average:
    """Exponential moving average of a model's parameters and batch-norm statistics.

    After step t = 1, 2, ...: `a <- d a + (1 - d) w` with `d = min(decay, (1 + t) / (10 + t))`; a
    starts at the initial weights, which the smaller d of the first steps soon forgets.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        current = model.state_dict()
        for name, mean in self.model.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(current[name], 1 - decay)
            else:  # batch-norm's count of batches
                mean.copy_(current[name])
