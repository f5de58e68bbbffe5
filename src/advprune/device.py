"""Where to compute, and how to compute the same thing again."""

import torch
from torch import nn


def setup() -> torch.device:
    """The GPU if there is one, else the CPU; deterministic algorithms where torch has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        return torch.device("cuda")
    return torch.device("cpu")


def device_of(model: nn.Module) -> torch.device:
    """Where a model lives (the CPU for one without parameters)."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
