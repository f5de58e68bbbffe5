"""From float images to real ones, of 8 bits."""

import torch
from torch import Tensor

FLOAT_SLACK = 1e-4  # of one grey level: 8/255 in float32 times 255 may come out just below 8
HALVINGS = 12  # of the bracket of an L2 change's factor
SPREAD = 0.1  # of one grey level, between the pixels that round up first and last
GOLDEN = 0.6180339887498949  # whose multiples spread evenly over [0, 1), modulo 1


def to_pixels(
    adversarial: Tensor, clean: Tensor, eps: float, norm: str = "Linf", rounding: str = "strict"
) -> Tensor:
    """Round adversarial images `[N, C, H, W]` in [0, 1] to uint8; `clean` must be 8-bit over 255.

    `strict` never leaves the budget: in Linf, round, then cut at the largest whole level within eps
    (0.03 is 7.65 levels, so 7); in L2, see `_whole_l2`. Below 1/255 nothing can change in either
    norm. In L2, with `d = C * H * W`, a budget far below `sqrt(d) / 255` is less than a level for
    each pixel, and 8-bit images can follow the float ones only in the pixels of largest change.
    `nearest` rounds as nn-prune saved its pictures: 7.65 levels become 8. Its published remnant
    accuracies are of such images.
    """
    original = (clean * 255).round()
    change = adversarial * 255 - original
    if rounding == "nearest":
        change = change.round()
    elif norm == "Linf":
        most = float(int(eps * 255 + FLOAT_SLACK))
        change = change.round().clamp(-most, most)
    else:
        change = _whole_l2(change, eps * 255)
    return (original + change).clamp(0, 255).to(torch.uint8)


def _whole_l2(change: Tensor, budget: float) -> Tensor:
    """Changes `[N, C, H, W]` in whole grey levels: `round(s * change)`, for each image of the
    largest s at which this is no longer than the change and the budget, which is in levels too.

    No whole-numbered change of at most its length goes farther along `change`: it minimizes
    `|q - s * change|`. A change of whole levels within the budget stays as it is. Thresholds of
    rounding differ a little from pixel to pixel, so that a change of equal size everywhere, too
    small to round up as a whole, is kept in a part of the pixels.
    """
    size = change.abs().flatten(1)  # [N, d]
    whole = size.round()
    size = torch.where((size - whole).abs() < FLOAT_SLACK, whole, size)
    order = torch.arange(size.shape[1], dtype=torch.float64, device=size.device) * GOLDEN % 1
    upwards = (0.5 - SPREAD * order).to(size)

    room = torch.empty_like(size)  # for all that follows: fresh memory takes longer to get

    def levels(factor: Tensor) -> Tensor:
        return torch.mul(size, factor[:, None], out=room).add_(upwards).floor_()

    own = size.square().sum(1)  # exact in float32 for whole numbers up to 2^24
    most, length = own.clamp_max(budget**2 + FLOAT_SLACK), own.sqrt().clamp_min(FLOAT_SLACK)
    # By how much rounding can change the factor at which a length is reached.
    rounding = (0.5 + SPREAD) * size.shape[1] ** 0.5 / length
    low, high = (most.sqrt() / length - rounding).clamp_min(0), most.sqrt() / length + rounding
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = levels(middle).square_().sum(1) <= most
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return levels(low).view_as(change) * change.sign()
