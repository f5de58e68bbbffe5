"""Batch-norm whose batch is spread over processes.

torch's SyncBatchNorm needs GPUs and another kind of layer; this needs neither.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from advprune.core.distributed import add_up


@contextmanager
def shared_batchnorm(when: bool = True) -> Iterator[None]:
    """Inside, batch-norm in training mode takes mean and variance of all processes' images.

    All processes must make the same calls. Gradients are those of the loss of all: summed, or
    averaged, over the processes they are what one process has for the whole batch.
    """
    if not when:
        yield
        return
    with _Shared():
        yield


class _Shared(TorchFunctionMode):
    """Puts `normalize` in the place of batch-norm in training mode, whichever layer calls it."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            called = signature(F.batch_norm).bind(*args, **kwargs).arguments
            if called.pop("training", False):
                return normalize(called.pop("input"), **called)
        return func(*args, **kwargs)


def normalize(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Batch-norm of `x` `[n, C, ...]` in training mode, over the images of all processes.

    `(x - mean) / sqrt(var + eps) * weight + bias` channel by channel, with the biased variance; the
    running ones move by `momentum` towards the mean and the unbiased variance. Sums are in float64.
    """
    channels = x.transpose(0, 1).flatten(1).double()  # [C, values]
    count = torch.full_like(channels[:, 0], channels.shape[1])
    sums = add_up(torch.stack([count, channels.sum(1), channels.square().sum(1)]))
    n, mean = sums[0].detach(), sums[1] / sums[0]
    variance = (sums[2] / sums[0] - mean.square()).clamp_min(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.detach().to(running_mean), momentum)
        unbiased = variance.detach() * n / (n - 1).clamp_min(1)
        running_var.lerp_(unbiased.to(running_var), momentum)
    shape = (1, -1, *[1] * (x.ndim - 2))
    scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    kind = torch.promote_types(x.dtype, torch.float32)
    return (x * scale.to(kind).view(shape) + shift.to(kind).view(shape)).to(x.dtype)
