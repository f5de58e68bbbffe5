"""Weights of convolutions that meet nothing but padding, whatever the image of a size shows.

On a map of 1x1, only the middle of a 3x3 filter meets a value: the rest has no effect, and a
gradient of exactly zero. Where such weights are many, sparsity and counts of bits mean little.
"""

from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of


@torch.no_grad()
def met(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """By name of a convolution, which places of its filters, `[kh, kw]`, ever meet a value on
    images `[C, H, W]`."""
    found: dict[str, torch.Tensor] = {}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    }
    names = {module: name for name, module in layers.items()}

    def look(module: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        rows, columns = (
            _met(int(inputs[0].shape[axis]), int(out.shape[axis]), module, axis - 2)
            for axis in (2, 3)
        )
        places, name = rows[:, None] & columns, names[module]
        found[name] = places | found[name] if name in found else places

    handles = [layer.register_forward_hook(look) for layer in layers.values()]
    try:
        with torch.random.fork_rng(devices=[]):  # layers that draw leave the global state alone
            model(torch.zeros(1, *image_shape, device=device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return found


def inert_of(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Share of the weights and biases of `model` that are inert on images `[C, H, W]`."""
    idle = 0
    for name, places in met(model, image_shape).items():
        idle += int((~places).sum()) * model.get_parameter(f"{name}.weight")[:, :, 0, 0].numel()
    return idle / max(sum(p.numel() for p in model.parameters()), 1)


def _met(size: int, steps: int, layer: nn.Conv2d, axis: int) -> torch.Tensor:
    """Which rows (or columns) of a filter ever meet one of the map's `size`."""
    stride, dilation = layer.stride[axis], layer.dilation[axis]
    first = dilation * torch.arange(layer.kernel_size[axis]) - _padding(layer, axis)
    at = first[:, None] + stride * torch.arange(steps)  # [k, steps]
    return ((at >= 0) & (at < size)).any(1)


def _padding(layer: nn.Conv2d, axis: int) -> int:
    """How many rows (or columns) of zeros stand before a map; `same` puts the fewer ones first."""
    if not isinstance(layer.padding, str):
        return int(layer.padding[axis])
    whole = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
    return whole // 2 if layer.padding == "same" else 0
