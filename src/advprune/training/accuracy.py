"""Accuracy of a network on images."""

import torch
from torch import nn

from advprune.core import distributed


@torch.no_grad()
def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, batch: int = 256
) -> float:
    """Share of images `[N, C, H, W]`, uint8 or float in [0, 1], classified as their label, in
    evaluation mode."""
    mode = model.training
    model.eval()
    device = next(model.parameters()).device
    scale = 255 if images.dtype == torch.uint8 else 1

    def right(pair: tuple[torch.Tensor, torch.Tensor]) -> int:
        return int((model(pair[0].to(device) / scale).argmax(1).cpu() == pair[1]).sum())

    pairs = list(zip(images.split(batch), labels.split(batch), strict=True))
    found = sum(distributed.spread(pairs, right))
    model.train(mode)
    return found / max(len(labels), 1)
