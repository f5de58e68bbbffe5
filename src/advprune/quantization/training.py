"""Quantization-aware training: the weights learn while the network computes as its integers will.

Nagel et al., A White Paper on Neural Network Quantization (2021), section 4. Batch-norm is folded
and input ranges are calibrated first; both stay. In every pass a layer quantizes its current
weights, bias and input, and computes the twin's map. Rounding has derivative one; clipping an input
has derivative zero outside its range, but one in evaluation mode, in which training images are
attacked.
"""

from typing import Any

import torch
from torch import nn

from advprune.core.device import salted
from advprune.core.train_settings import FineTuneSettings, QuantizeSettings
from advprune.models.backward import straight_through
from advprune.models.quantized import QuantizedLayer
from advprune.quantization.post_training import quantized_form
from advprune.training.inputs import Data
from advprune.training.standard import finetune


class TrainedLayer(nn.Module):
    """A convolution or linear layer in training. layer: the float parameters. quantized: their
    integer form, whose input range is set; its weights are set anew in every forward pass."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, quantized: QuantizedLayer) -> None:
        super().__init__()
        self.layer, self.quantized = layer, quantized

    def __getattr__(self, name: str) -> Any:
        """Of what the network's own code may ask for, the float layer's."""
        own = name in ("layer", "quantized")
        return super().__getattr__(name) if own else getattr(self.layer, name)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  torch's name
        x = input
        # Mixed precision has too few digits to tell 8-bit integers apart.
        with torch.autocast(x.device.type, enabled=False):
            self.quantized.set_weights(self.layer)
            weight, bias = self.quantized.real()
            weight = straight_through(self.layer.weight, weight)
            if self.layer.bias is not None:
                bias = straight_through(self.layer.bias, bias)
            x = x.float()
            if self.training:  # clipped to the input's range, which changes the derivative alone
                scale, zero = self.quantized.input_scale, self.quantized.input_zero
                x = x.clamp(-zero * scale, (self.quantized.levels - zero) * scale)
            return self.quantized.simulate(x, weight, bias)


def quantization_aware(
    model: nn.Module, setting: QuantizeSettings, data: Data, seed: int, calibration: torch.Tensor
) -> nn.Module:
    """The quantized form of a copy of a dense model, its integers found by training.

    setting: `training` there says how, by its defaults where it is None. calibration: the images
    `[N, C, H, W]` that ranges are taken from. Weights that are exactly zero once batch-norm is
    folded stay zero; biases are free. Raises as `quantize` does, and UserError where the loss stops
    being a number.
    """
    training = setting.training or FineTuneSettings()
    with torch.random.fork_rng():  # for the layers that draw at random
        torch.manual_seed(salted(seed, "quantization"))
        form = training_form(model, calibration, setting.bits)
        zeros = {name: m.layer.weight == 0 for name, m in trained_layers(form).items()}

        @torch.no_grad()
        def hold(model: nn.Module) -> None:
            for name, trained in trained_layers(model).items():
                trained.layer.weight.masked_fill_(zeros[name], 0.0)

        finetune(form, training, data, seed, after_step=hold)
    return integer_form(form)


def training_form(model: nn.Module, images: torch.Tensor, bits: int) -> nn.Module:
    """A copy of a dense model with batch-norm folded that computes as its integers would. images:
    `[N, C, H, W]` in [0, 1], which input ranges are taken from."""
    return quantized_form(model, images, bits, TrainedLayer).requires_grad_()


def trained_layers(form: nn.Module) -> dict[str, TrainedLayer]:
    """The layers of a training form by name."""
    return {n: m for n, m in form.named_modules() if isinstance(m, TrainedLayer)}


def integer_form(form: nn.Module) -> nn.Module:
    """A training form turned, in place, into the quantized model that it computes as."""
    for name, trained in trained_layers(form).items():
        trained.quantized.set_weights(trained.layer)
        form.set_submodule(name, trained.quantized)
    return form.eval()
