"""Binary networks as they are deployed: one stored bit per weight, binary inputs.

The layers are those of RBNN (Lin et al., Rotated Binary Neural Network, NeurIPS 2020), which RA-BNN
(Rakin et al., RA-BNN, 2021) builds on. A weight is `alpha_c b` with b in {-1, 1} and one alpha_c >
0 per output channel; the input of a convolution is standardized over the whole sample and replaced
by its sign. Batch-norm and a Hardtanh follow: after a ReLU nothing would be negative. The layer
that sees the image and the classifier take real inputs. Training is in latent.py.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.errors import UserError
from advprune.models.backward import straight_through

EPS = 1e-10  # keeps the variance of a constant sample away from zero
# The slopes by which a deployed network is attacked, by rule: their half width is one standard
# deviation of the inputs, or two. The narrow one that training ends with would leave most inputs
# without a gradient, and the network would look robust.
SLOPES = {"own": 2**0.5, "wide": 2**0.5 / 2}


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
    """`max(0, k (2 sqrt(t^2 / 2) - |t^2 x|))`: a tent of height sqrt(2) k t, zero from
    |x| = sqrt(2) / t on. Its area is 2 k whatever t is."""
    return (k * (2**0.5 * t - (t * t * x).abs())).clamp_min(0)


def standardized(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Maps `[N, C, H, W]` minus their mean over their deviation, sample by sample.

    mask: `[C]` of 0 and 1; channels at 0 do not count. Values are taken in one order whatever their
    layout in memory, so that the sign of what comes out does not hang on it.
    """
    x = x.contiguous()
    if mask is None:
        return F.layer_norm(x, x.shape[1:], eps=EPS)
    kept = mask.view(1, -1, 1, 1) / (mask.sum() * x[0, 0].numel())
    centred = x - (x * kept).sum((1, 2, 3), keepdim=True)
    variance = (centred.square() * kept).sum((1, 2, 3), keepdim=True)
    return centred * (variance + EPS).rsqrt()


class BinaryConv2d(nn.Conv2d):
    """A convolution whose weight is `alpha_c b`, exactly; its input is standardized.

    binary_input: whether the input is then replaced by its sign. Sums of signs times signs are
    whole numbers, the same in whatever order they are taken. backward: one of `SLOPES`, or the
    identity.
    """

    rules = ("wide", "straight")

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
    told whether the input becomes binary, which that of the first does not: it is the image."""
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
