"""Binary networks: one stored bit per weight, binary inputs; deployed, and as they are trained.

The layers are those of RBNN (Lin et al., Rotated Binary Neural Network, NeurIPS 2020) without its
rotation, which RA-BNN (Rakin et al., 2021) builds on. A weight is `alpha_c b` with b in {-1, 1} and
one alpha_c > 0 per output channel; the input of a convolution is standardized over the whole sample
and replaced by its sign, but that of the first, which sees the image. Batch-norm and a Hardtanh
follow.

In training a filter of float weights is standardized and its bits are its signs. The gradient
passes both signs, of weights and of inputs, by `slope`. `freeze` keeps the bits alone.
"""

import copy
from collections.abc import Callable
from math import log10
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.errors import UserError
from advprune.models.backward import straight_through
from advprune.models.resnet import BasicBlock

EPS = 1e-10  # keeps the variance of a constant sample away from zero
# The slopes by which a deployed network is attacked, by rule: their half width is one standard
# deviation of the inputs, or two. The narrow one that training ends with would leave most inputs
# without a gradient, and the network would look robust.
SLOPES = {"own": 2**0.5, "wide": 2**0.5 / 2}
LEAST_T, MOST_T = 1e-2, 10.0  # of training's t, at first and after the last epoch, as published
LEAST_SCALE = 1e-12  # of a channel that has lost its scale


class _Sign(torch.autograd.Function):
    """The sign, with the derivative of `slope`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, t: float, k: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.t, ctx.k = t, k
        signs = torch.ge(x, 0, out=torch.empty_like(x))  # as numbers at once: six times quicker
        return signs.mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return grads[0] * slope(x, ctx.t, ctx.k), None, None


def binarize(x: torch.Tensor, t: float = SLOPES["own"], k: float = 1.0) -> torch.Tensor:
    """`sign(x)`, with sign(0) = 1, of any shape; its derivative is taken to be `slope(x, t, k)`."""
    return _Sign.apply(x, t, k)


def slope(x: torch.Tensor, t: float, k: float) -> torch.Tensor:
    """`max(0, k (2 sqrt(t^2 / 2) - |t^2 x|))`: a tent of height sqrt(2) k t and area 2 k, zero from
    |x| = sqrt(2) / t on."""
    return (k * (2**0.5 * t - (t * t * x).abs())).clamp_min(0)


def standardized(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Maps `[N, C, H, W]` minus their mean over their deviation, sample by sample, in one order
    whatever their layout in memory. mask: `[C]` of 0 and 1; channels at 0 do not count."""
    x = x.contiguous()
    if mask is None:
        return F.layer_norm(x, x.shape[1:], eps=EPS)
    kept = mask.view(1, -1, 1, 1) / (mask.sum() * x[0, 0].numel())
    centred = x - (x * kept).sum((1, 2, 3), keepdim=True)
    variance = (centred.square() * kept).sum((1, 2, 3), keepdim=True)
    return centred * (variance + EPS).rsqrt()


class BinaryConv2d(nn.Conv2d):
    """A convolution whose weight is `alpha_c b`, exactly; its input is standardized. binary_input:
    whether it is then replaced by its sign; such sums are the same in any order. backward: one of
    `SLOPES`, or straight (the identity)."""

    rules = ("wide", "straight")
    declares_rule = True

    def __init__(self, *size: Any, binary_input: bool, **options: Any) -> None:
        super().__init__(*size, **{"bias": False, **options})
        self.binary_input, self.backward = binary_input, "own"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = standardized(x)
        if self.binary_input and self.backward == "straight":
            x = straight_through(x, binarize(x.detach()))
        elif self.binary_input:
            x = binarize(x, SLOPES[self.backward])
        scale = self.weight.detach().abs().amax((1, 2, 3), keepdim=True)  # [out, 1, 1, 1]
        return self._conv_forward(x, self.weight / scale, None) * scale.view(1, -1, 1, 1)


class BinaryLinear(nn.Linear):
    """A classifier whose weight is `s b`, exactly, with one s > 0; input and bias are real."""

    declares_rule = True


def form_of(layer: nn.Conv2d) -> dict[str, Any]:
    """What a convolution without bias is built from."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {name: getattr(layer, name) for name in names}


def convert(
    model: nn.Module,
    convolution: Callable[[nn.Conv2d, bool], nn.Module],
    linear: Callable[[nn.Linear], nn.Module],
) -> nn.Module:
    """A dense network, in place, with other layers, and a Hardtanh for every ReLU. convolution: is
    told whether the input becomes binary, which that of the first does not."""
    first = True
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d):
            model.set_submodule(name, convolution(module, not first))
            first = False
        elif isinstance(module, nn.Linear):
            model.set_submodule(name, linear(module))
        elif isinstance(module, nn.ReLU):
            model.set_submodule(name, nn.Hardtanh(inplace=True))
    return model


def skeleton(model: nn.Module) -> nn.Module:
    """The binary form of a dense network, in place, its weights not set."""
    return convert(
        model,
        lambda layer, binary_input: BinaryConv2d(**form_of(layer), binary_input=binary_input),
        lambda layer: BinaryLinear(layer.in_features, layer.out_features),
    )


def binary_layers(model: nn.Module) -> dict[str, BinaryConv2d | BinaryLinear]:
    """The layers of a deployed binary network by name."""
    kinds = (BinaryConv2d, BinaryLinear)
    return {name: m for name, m in model.named_modules() if isinstance(m, kinds)}


def is_binary(model: nn.Module) -> bool:
    """Whether a model is a deployed binary network."""
    return bool(binary_layers(model))


def check_binary(model: nn.Module, where: str) -> None:
    """UserError where a weight is not one positive scale per channel times -1 or 1."""
    for name, layer in binary_layers(model).items():
        sizes = layer.weight.detach().abs().flatten(1)
        if not (sizes > 0).all() or not (sizes == sizes[:, :1]).all():
            raise UserError(
                f"{where}: the weights of {name} are not -a or a with one a > 0 per output "
                "channel, as those of a binary network are; make it anew"
            )


def schedule(epoch: int, epochs: int, last: float = MOST_T) -> tuple[float, float]:
    """t and k of the slope in an epoch, counted from 0: log t grows evenly from that of `LEAST_T`
    to that of `last`, and k = max(1 / t, 1)."""
    t = 10 ** (log10(LEAST_T) + (log10(last) - log10(LEAST_T)) * epoch / epochs)
    return t, max(1 / t, 1.0)


class LatentConv2d(nn.Module):
    """A binary convolution in training, made from a dense one, whose weight becomes the latent one.

    alpha: the scale of each output channel, which may turn negative. t, k: of `schedule`; inputs
    take max(t, 1) and 1. mask: `[in]` of 0 and 1, or null: input channels at 0 do not exist.
    """

    def __init__(self, layer: nn.Conv2d, binary_input: bool) -> None:
        super().__init__()
        self.form, self.binary_input = form_of(layer), binary_input
        self.weight = layer.weight
        self.alpha = nn.Parameter(layer.weight.detach().abs().mean((1, 2, 3)))
        self.t, self.k = schedule(0, 1)
        self.mask: torch.Tensor | None = None

    def bits(self) -> torch.Tensor:
        """-1 or 1 for each weight, by its standardized filter; differentiable by the slope."""
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
    """The classifier in training: `s b` with `b = 1 where W >= mean(W), else -1`, with the gradient
    of W itself. s is the mean of |W| over the weights that are not between -mean(W) and mean(W).
    mask: as in LatentConv2d."""

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
    2017)."""
    for block in model.modules():
        if isinstance(block, BasicBlock):
            nn.init.zeros_(block.bn2.weight)
    return convert(model, LatentConv2d, LatentLinear)


def latent_layers(model: nn.Module) -> dict[str, Latent]:
    """The layers of a training form by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Latent)}


def begin_epoch(model: nn.Module, epoch: int, epochs: int, last: float = MOST_T) -> None:
    """Set the slopes of an epoch, counted from 0, in place; last: what t ends with."""
    for layer in latent_layers(model).values():
        if isinstance(layer, LatentConv2d):
            layer.t, layer.k = schedule(epoch, epochs, last)


def freeze(model: nn.Module) -> nn.Module:
    """The deployed form of a trained binary network, as a copy: the same logits as in evaluation
    mode."""
    copied = copy.deepcopy(model)
    for name, layer in latent_layers(copied).items():
        copied.set_submodule(name, layer.frozen())
    return copied.eval()
