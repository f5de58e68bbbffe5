"""Binary networks as they are trained: float weights, from which the bits are computed.

After RBNN (Lin et al., 2020) without its rotation, as RA-BNN uses it. A filter is standardized,
`w = (v - mean) / std`, and the bit is its sign. The gradient passes both signs, of weights and of
inputs, by `slope`, which narrows over the epochs. `freeze` keeps the bits alone.
"""

import copy
from math import log10

import torch
import torch.nn.functional as F
from torch import nn

from advprune.models.backward import straight_through
from advprune.models.binary import (
    BinaryConv2d,
    BinaryLinear,
    binarize,
    convert,
    form_of,
    standardized,
)
from advprune.models.resnet import BasicBlock

LEAST_T, MOST_T = 1e-2, 10.0  # of the slope's t, at first and after the last epoch, as published
LEAST_SCALE = 1e-12  # of a channel that has lost its scale


def schedule(epoch: int, epochs: int, last: float = MOST_T) -> tuple[float, float]:
    """t and k of the slope in an epoch, counted from 0: log t grows evenly from that of `LEAST_T`
    to that of `last`, and k = max(1 / t, 1)."""
    t = 10 ** (log10(LEAST_T) + (log10(last) - log10(LEAST_T)) * epoch / epochs)
    return t, max(1 / t, 1.0)


class LatentConv2d(nn.Module):
    """A binary convolution in training, made from a dense one, whose weight becomes the latent one.

    alpha: the scale of each output channel, which may turn negative. t, k: the slope's, see
    `schedule`; inputs take max(t, 1) and 1. mask: `[in]` of 0 and 1, or null: input channels at 0
    are as if they were not there.
    """

    def __init__(self, layer: nn.Conv2d, binary_input: bool) -> None:
        super().__init__()
        self.form, self.binary_input = form_of(layer), binary_input
        self.weight = layer.weight
        self.alpha = nn.Parameter(layer.weight.detach().abs().mean((1, 2, 3)))
        self.t, self.k = schedule(0, 1)
        self.mask: torch.Tensor | None = None

    def bits(self) -> torch.Tensor:
        """-1 or 1 for each weight, the sign of its standardized filter; differentiable by the
        slope."""
        flat = self.weight.flatten(1)[:, :, None, None]  # each filter as a sample of n channels
        mask = self.mask
        if mask is not None:  # whole filters: each input channel has as many weights
            mask = mask.detach().repeat_interleave(self.weight[0, 0].numel())
        return binarize(standardized(flat, mask), self.t, self.k).view_as(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Mixed precision has too few digits for sums of many signs.
        with torch.autocast(x.device.type, enabled=False):
            x = standardized(x, None if self.mask is None else self.mask.detach())
            if self.binary_input:
                x = binarize(x, max(self.t, 1.0), 1.0)
            if self.mask is not None:
                x = x * self.mask.view(1, -1, 1, 1)
            stride, padding = self.form["stride"], self.form["padding"]
            out = F.conv2d(x, self.bits(), None, stride, padding)
            return out * self.alpha.view(1, -1, 1, 1)

    @torch.no_grad()
    def frozen(self) -> BinaryConv2d:
        """The layer that is deployed; where a channel's scale is negative, its bits are flipped."""
        layer = BinaryConv2d(**self.form, binary_input=self.binary_input, device="meta")
        sign = torch.where(self.alpha >= 0, 1.0, -1.0).to(self.alpha)
        scale = sign * self.alpha.abs().clamp_min(LEAST_SCALE)
        layer.weight = nn.Parameter(self.bits() * scale.view(-1, 1, 1, 1))
        return layer


class LatentLinear(nn.Module):
    """The classifier in training: `s b` with `b = 1 where W >= mean(W), else -1`; the gradient
    passes as if W itself were used.

    s is the mean of |W| over the weights that are not between -mean(W) and mean(W). mask: `[in]` of
    0 and 1, or null: inputs at 0 are as if they were not there.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.mask: torch.Tensor | None = None

    @torch.no_grad()
    def value(self) -> torch.Tensor:
        """The weight that is computed with."""
        known = self.weight if self.mask is None else self.weight[:, self.mask > 0]
        threshold = known.mean()
        scale = known[(known >= threshold) | (known <= -threshold)].abs().mean()
        return torch.where(self.weight >= threshold, scale, -scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.mask is None else x * self.mask
        return F.linear(x, straight_through(self.weight, self.value()), self.bias)

    def frozen(self) -> BinaryLinear:
        """The layer that is deployed."""
        layer = BinaryLinear(self.weight.shape[1], self.weight.shape[0], device="meta")
        layer.weight, layer.bias = nn.Parameter(self.value()), self.bias
        return layer


Latent = LatentConv2d | LatentLinear


def latent(model: nn.Module) -> nn.Module:
    """The training form of a dense network with initialized weights, in place. The last batch-norm
    of each residual branch starts at a scale of zero (Goyal et al., Accurate, Large Minibatch SGD,
    2017): a deep network of signs learns little before its branches are quiet."""
    for block in model.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
    return convert(model, LatentConv2d, LatentLinear)


def latent_layers(model: nn.Module) -> dict[str, Latent]:
    """The layers of a training form by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Latent)}


def begin_epoch(model: nn.Module, epoch: int, epochs: int, last: float = MOST_T) -> None:
    """Set the slopes of an epoch, counted from 0, in place; last: what t has grown to after all
    epochs."""
    for layer in latent_layers(model).values():
        if isinstance(layer, LatentConv2d):
            layer.t, layer.k = schedule(epoch, epochs, last)


def freeze(model: nn.Module) -> nn.Module:
    """The deployed form of a trained binary network: the same logits as in evaluation mode, each
    weight one bit and its channel's scale, and no float weight behind it. The given model stays as
    it was."""
    copied = copy.deepcopy(model)
    for name, layer in latent_layers(copied).items():
        copied.set_submodule(name, layer.frozen())
    return copied.eval()
