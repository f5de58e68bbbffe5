"""Weights of convolutions that meet nothing but padding, whatever the image of a size shows.

On a map of 1x1, only the middle of a 3x3 filter meets a value: the rest has no effect, and a
gradient of exactly zero. Where such weights are many, sparsity and counts of bits mean little.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.device import device_of
from advprune.models.stochastic import undisturbed


@contextmanager
def watched(layers: Mapping[str, nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Inside, `look(name, layer, inputs, output)` is called after every pass of a layer."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(look, name)))
        yield


@torch.no_grad()
def met(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """By name of a convolution, which places of its filters, `[kh, kw]`, ever meet a value on
    images `[C, H, W]`."""
    found: dict[str, torch.Tensor] = {}

    def look(
        name: str, layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], out: torch.Tensor
    ) -> None:
        """Of an image of ones, the derivative by a weight counts the values that it meets."""
        weight = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, requires_grad=True)
        ones = torch.ones(1, 1, *inputs[0].shape[2:], dtype=torch.float64)
        with torch.enable_grad():
            out = F.conv2d(ones, weight, None, layer.stride, layer.padding, layer.dilation)
            (counts,) = torch.autograd.grad(out.sum(), weight)
        places = counts[0, 0] > 0.5
        found[name] = places | found.get(name, places)

    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
    }
    with watched(layers, look), undisturbed():
        model(torch.zeros(1, *image_shape, device=device_of(model)))
    return found


def inert_of(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Share of the weights and biases of `model` that are inert on images `[C, H, W]`."""
    idle = 0
    for name, places in met(model, image_shape).items():
        idle += int((~places).sum()) * model.get_parameter(f"{name}.weight")[:, :, 0, 0].numel()
    return idle / max(sum(p.numel() for p in model.parameters()), 1)
