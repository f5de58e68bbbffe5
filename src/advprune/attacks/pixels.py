"""From float images to real ones, of 8 bits."""

import torch
from torch import Tensor

FLOAT_SLACK = 1e-4  # of one grey level: 8/255 in float32 times 255 may come out just below 8


def to_pixels(
    adversarial: Tensor, clean: Tensor, eps: float, norm: str = "Linf", rounding: str = "strict"
) -> Tensor:
    """Round adversarial images `[N, C, H, W]` in [0, 1] to uint8; `clean` must be 8-bit over 255.

    `strict` never leaves the budget: in Linf, round, then cut at the largest whole level within eps
    (0.03 is 7.65 levels, so 7); in L2, cut the change towards zero. `nearest` rounds as nn-prune
    saved its pictures: 7.65 levels become 8. Its published remnant accuracies are of such images.
    """
    original = (clean * 255).round()
    change = adversarial * 255 - original
    if rounding == "nearest":
        change = change.round()
    elif norm == "Linf":
        most = float(int(eps * 255 + FLOAT_SLACK))
        change = change.round().clamp(-most, most)
    else:
        change = (change.abs() + FLOAT_SLACK).floor() * change.sign()
    return (original + change).clamp(0, 255).to(torch.uint8)
