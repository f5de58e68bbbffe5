"""Piecewise weight clustering: training that makes flips of stored bits less harmful."""

import torch
from torch import nn

LAYERS = (nn.Conv2d, nn.Linear)


def clustering(model: nn.Module) -> torch.Tensor:
    """`sum_l |W_l+ - mean W_l+|^2 + |W_l- - mean W_l-|^2` over the weights of all convolutions and
    linear layers l, where W+ are those of at least 0 and W- those of at most 0.

    He et al., Defending and Harnessing the Bit-Flip based Adversarial Weight Attack (CVPR 2020).
    Sums over weights, not means, so large layers count more. Two values a layer are
    what a binary layer has, whose bits are all worth the same. The gradient by a weight is twice
    its distance to the mean on its side. Returns a scalar.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, LAYERS)]
    spreads = [_spread(w, w >= 0) + _spread(w, w <= 0) for w in weights]
    return torch.stack(spreads).sum() if spreads else torch.zeros(())


def _spread(weight: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Sum of squared distances of the chosen weights to their mean; 0 where there are none."""
    mean = (weight * chosen).sum() / chosen.sum().clamp(min=1)
    return ((weight - mean) * chosen).square().sum()
