"""Post-training quantization to b bits: an integer-valued model and its differentiable twin.

Nagel et al., A White Paper on Neural Network Quantization (2021), sections 2 and 3. Batch-norm is
folded; weights are symmetric per output channel, `W ~ s_w q_w`, inputs affine per tensor, `x ~ s_x
(q_x - z)`, biases 32-bit integers on the scale `s_x s_w`. Whole numbers are carried in floats that
hold them exactly; between layers values are real. The twin computes the same map in float32, where
rounding and clipping have derivative one (BPDA, Athalye et al. 2018).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from advprune.core.device import device_of, full_precision
from advprune.core.errors import InputError, UserError
from advprune.models.border import check_images, compressible, logits_of
from advprune.models.fold import fold_batchnorm
from advprune.models.insert import Calls, watched
from advprune.models.quantized import QuantizedLayer, float_layers, twin
from advprune.models.spec import QuantizationSpec, attach, spec_of
from advprune.models.stochastic import undisturbed

BATCH = 64  # images in a pass
SEED = 0  # of a randomized network's draws while ranges are observed, or twins compared

# What a layer of integers answers as the layer that it stands for does.
ASKS = {
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel),
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "ndim", "device")),
}


def quantize(model: nn.Module, images: torch.Tensor, bits: int = 8) -> nn.Module:
    """Quantize a copy of a dense model; input ranges are those on `images` `[N, C, H, W]` in [0,
    1].

    bits: 2 to 8. In a foreign network, layers that are more than nn.Conv2d or nn.Linear, or whose
    weight or bias is read by more than their own passes, are left in floating point; the spec names
    them. InputError for other bits and where the network does not run on such layers; UserError for
    a binary network, where a family put a layer on a weight or behind a convolution, and where
    there is nothing to quantize.
    """

    def integer(layer: nn.Conv2d | nn.Linear, quantized: QuantizedLayer) -> nn.Module:
        quantized.set_weights(layer)
        return quantized

    return quantized_form(model, images, bits, integer)


def quantized_form(
    model: nn.Module,
    images: torch.Tensor,
    bits: int,
    made: Callable[[nn.Conv2d | nn.Linear, QuantizedLayer], nn.Module],
) -> nn.Module:
    """A copy of a dense model with batch-norm folded, whose layers are those that are `made` of its
    own and of their integer layers, whose input ranges are set, from what the float layers receive
    on `images`, and their weights are not. Raises as `quantize` does."""
    if bits not in range(2, 9):
        raise InputError(f"quantize: bits: {bits!r} is not from 2 to 8")
    check_images("quantize", images)
    model = compressible("quantize", model, images)
    float_layers(model)  # before folding, which looks through wrapped layers
    folded, device = fold_batchnorm(model), device_of(model)
    layers = float_layers(folded)
    ends: dict[str, list[tuple[float, float]]] = {}

    def look(name: str, layer: nn.Module, inputs: tuple[torch.Tensor, ...], out: object) -> None:
        ends.setdefault(name, []).append((float(inputs[0].min()), float(inputs[0].max())))

    # Integers can neither do what is derived from these layers, nor pad with anything but zeros.
    plain = {
        name: layer
        for name, layer in layers.items()
        if type(layer) in (nn.Conv2d, nn.Linear)
        if getattr(layer, "padding_mode", "zeros") == "zeros"
    }
    owners = {id(p): name for name, layer in plain.items() for p in layer.parameters()}
    elsewhere = {""}  # layers whose weights are read by more than their own passes

    def read(passing: str, function: Any, given: Any) -> None:
        if function not in ASKS:
            elsewhere.update({owners.get(id(one), "") for one in tree_leaves(given)} - {passing})

    quiet, calls = undisturbed(device, SEED), Calls(plain, read)
    with torch.no_grad(), full_precision(), quiet, watched(plain, look), calls:
        for part in images.split(BATCH):
            folded(part.to(device))
    alone = [name for name in plain if name in ends and name not in elsewhere]
    if not alone:
        raise UserError(
            "quantize: the network calls no nn.Conv2d or nn.Linear whose weight it reads by that "
            "alone"
        )
    for name in alone:
        quantized = QuantizedLayer(plain[name], bits)
        low, high = zip(*ends[name], strict=True)  # of each batch
        quantized.set_input_range(min(low), max(high))
        folded.set_submodule(name, made(plain[name], quantized))
    left = tuple(name for name in layers if name not in alone)
    quantization = QuantizationSpec(bits=bits, left=left)
    attach(folded, spec_of(model).model_copy(update={"quantization": quantization}))
    with torch.no_grad(), full_precision(), undisturbed(device, SEED):
        first = images[:1].to(device)
        logits_of("quantize: in its quantized form", folded.eval(), first)  # its code may not run
    return folded


@torch.no_grad()
def twin_agreement(model: nn.Module, images: torch.Tensor) -> tuple[float, float]:
    """How far a quantized model and its twin are the same on `images`: the share of equal
    predictions, and the largest difference of logits over the largest absolute logit. Of a model
    that draws, both make the same draws."""
    differentiable, device = twin(model), device_of(model)
    same, gap, size = 0, 0.0, 1e-12
    for part in images.split(BATCH):
        answers = []
        for one in (model, differentiable):
            with full_precision(), undisturbed(device, SEED):
                answers.append(one(part.to(device)))
        exact, smooth = answers
        same += int((exact.argmax(1) == smooth.argmax(1)).sum())
        gap = max(gap, float((exact - smooth).abs().max()))
        size = max(size, float(exact.abs().max()))
    return same / max(len(images), 1), gap / size
