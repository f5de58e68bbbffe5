"""Losses that an attack raises: per sample, on logits `[N, K]` and labels `[N]`, or labels and
targets `[N, 2]`."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """`-log softmax(z)_y`, shape `[N]`."""
    return F.cross_entropy(logits, labels, reduction="none")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """`max_{i != y} z_i - z_y`, shape `[N]`: positive exactly where the prediction is wrong.

    Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks (2017), f6.
    """
    own = logits.gather(1, labels[:, None])  # [N, 1]
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own[:, 0]


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, shape `[N]`: the margin over `z_(1) - z_(3)`.

    Invariant to shifts and scales of the logits. Croce and Hein, AutoAttack (2020), section 4.
    Of two classes: the margin alone.
    """
    if logits.shape[1] < 3:
        return margin(logits, labels)
    top = logits.topk(3, dim=1).values  # [N, 3]
    return margin(logits, labels) / (top[:, 0] - top[:, 2] + 1e-12)


def targeted_dlr(logits: Tensor, aim: Tensor) -> Tensor:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, shape `[N]`, of labels and targets `[N, 2]`.

    Croce and Hein (2020), section 4. Of fewer than four classes: the difference alone.
    """
    own, target = logits.gather(1, aim).unbind(1)
    if logits.shape[1] < 4:
        return target - own
    top = logits.topk(4, dim=1).values
    return (target - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
    "targeted": targeted_dlr,
}
