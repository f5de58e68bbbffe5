"""A network whose passes a GPU replays from a recording.

A small network's passes are dozens of short kernels, which the GPU finishes sooner than Python can
start them; as a CUDA graph they are started together.
"""

from typing import Any

import torch
from torch import nn
from torch.cuda import make_graphed_callables


class Replayed(nn.Module):
    """Forward and backward passes of `network` on batches like `sample`, recorded once; others,
    and those without a gradient, are run as usual.

    network: in evaluation mode, its weights without gradients; they may change in place. Logits and
    gradients are overwritten by the next pass. Records in the precision that is on when it is made.
    """

    def __init__(self, network: nn.Module, sample: torch.Tensor) -> None:
        super().__init__()
        self.network, self.shape = network, sample.shape
        device, kind = sample.device.type, torch.get_autocast_dtype(sample.device.type)
        on = torch.is_autocast_enabled(device)
        with torch.autocast(device, kind, enabled=on, cache_enabled=False):
            example = sample.detach().clone().requires_grad_()
            self.eval()
            self.recorded: Any = make_graphed_callables(lambda x: network(x), (example,))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        alike = x.shape == self.shape and x.requires_grad and torch.is_grad_enabled()
        logits: torch.Tensor = (self.recorded if alike else self.network)(x)
        return logits
