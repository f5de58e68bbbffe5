"""A model's card: the facts of the file that was saved, in JSON beside it: zeros, bits, operations,
and weights that meet only padding."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.device import device_of
from advprune.core.files import sha256_of, write_json
from advprune.models.binary import is_binary
from advprune.models.checkpoint import load_model
from advprune.models.foreign import TRANSPOSED, WEIGHTED, code_files
from advprune.models.insert import watched
from advprune.models.quantized import QuantizedLayer, needs_twin
from advprune.models.spec import ModelSpec
from advprune.models.stochastic import undisturbed


def stored_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights and biases by name: parameters, and the integers of quantized layers."""
    integers = {
        name: buffer
        for name, buffer in model.named_buffers()
        if needs_twin(model) and name.rpartition(".")[2] in ("weight", "bias")
    }
    return integers | dict(model.named_parameters())


def nonzero_of(model: nn.Module) -> int:
    """How many weights and biases are not zero."""
    return sum(int((t != 0).sum()) for t in stored_weights(model).values())


def sparsity_of(model: nn.Module) -> float:
    """Weights and biases that are exactly zero over all of them, in [0, 1]."""
    count = sum(t.numel() for t in stored_weights(model).values())
    return (count - nonzero_of(model)) / max(count, 1)


def bits_of(model: nn.Module) -> int:
    """In how many bits a weight is stored: 1 in binary networks, 32 in float ones."""
    levels = {part.levels for part in model.modules() if isinstance(part, QuantizedLayer)}
    return max(levels).bit_length() if levels else 1 if is_binary(model) else 32


def stored_bits_of(model: nn.Module) -> int:
    """Bits of the weights of all convolutions and linear layers, without scales and biases. In a
    quantized model, weights that are left in floating point have 32."""
    bits, binary = bits_of(model), is_binary(model)
    return sum(
        t.numel() * (bits if binary or not t.is_floating_point() else 32)
        for name, t in stored_weights(model).items()
        if name.endswith("weight") and t.ndim > 1
    )


def _each_pass(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    look: Callable[..., None],
    shape: tuple[int, ...],
) -> None:
    """`look(name, layer, inputs, output)` at every layer of these kinds in the pass of an image."""
    parts: dict[str, nn.Module] = dict(model.named_modules())
    layers = {name: part for name, part in parts.items() if isinstance(part, kinds)}
    with torch.no_grad(), watched(layers, look), undisturbed():
        model(torch.zeros(1, *shape, device=device_of(model)))


def macs_of(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates that one image `[C, H, W]` costs in convolutions and linear layers: an
    output value as many as a filter has weights, zeros too, and an input value of a transposed
    convolution as many as meet it. Biases, batch-norm and shortcuts do not count; of attention
    (nn.MultiheadAttention) what maps its input and output does, and no other weights that a network
    reads without calling a layer.
    """
    counts: list[int] = []

    def look(name: str, layer: Any, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        if isinstance(layer, nn.MultiheadAttention):
            counts.append(4 * inputs[0].numel() * layer.embed_dim)
        elif isinstance(layer, TRANSPOSED):
            counts.append(inputs[0].numel() * layer.weight[0].numel())
        else:
            counts.append(out.numel() * layer.weight[0].numel())

    kinds = (*WEIGHTED, *TRANSPOSED, nn.MultiheadAttention, QuantizedLayer)
    _each_pass(model, kinds, look, image_shape)
    return sum(counts)


def reached_places(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    """By convolution, which places of its filters `[kh, kw]` ever meet a value on such images."""
    found: dict[str, torch.Tensor] = {}

    def look(name: str, layer: nn.Conv2d, inputs: tuple[torch.Tensor, ...], out: Any) -> None:
        """Of an image of ones, the derivative by a weight counts the values that it meets."""
        if layer.padding_mode != "zeros":
            return
        weight = torch.ones(1, 1, *layer.kernel_size, dtype=torch.float64, requires_grad=True)
        ones = torch.ones(1, 1, *inputs[0].shape[2:], dtype=torch.float64)
        with torch.enable_grad():
            out = F.conv2d(ones, weight, None, layer.stride, layer.padding, layer.dilation)
            (counts,) = torch.autograd.grad(out.sum(), weight)
        places = counts[0, 0] > 0.5
        found[name] = places | found.get(name, places)

    _each_pass(model, (nn.Conv2d,), look, image_shape)
    return found


def inert_of(model: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Share of the weights and biases of `model` that are inert on images `[C, H, W]`."""
    idle, learned = 0, dict(model.named_parameters())
    for name, places in reached_places(model, image_shape).items():
        if (weight := learned.get(f"{name}.weight")) is not None:  # it may be a buffer
            idle += int((~places).sum()) * weight[:, :, 0, 0].numel()
    return idle / max(sum(p.numel() for p in learned.values()), 1)


NO_FACTS: dict[str, Any] = {
    "setting": None,
    "prune_ratio": 0.0,
    "twin_agreement": None,
    "twin_logit_gap": None,
    "history": [],
    "growth": None,
    "ticket": None,
}


def card_of(
    path: Path | None,
    model: nn.Module,
    facts: Mapping[str, Any] = NO_FACTS,
    image_shape: tuple[int, int, int] | None = None,
) -> dict[str, Any]:
    """The card of a model that was read from the file `path`, or of none.

    facts: what the file does not say, by the keys of NO_FACTS. image_shape: of an image
    `[C, H, W]`, for `macs` and `inert`. `code` is the sha256 of the file of the user's own code.
    """
    spec = getattr(model, "spec", None)
    files = code_files(spec.factory) if isinstance(spec, ModelSpec) else []
    return {
        "parameters": sum(t.numel() for t in stored_weights(model).values()),
        "bits": bits_of(model),
        "stored_bits": stored_bits_of(model),
        "sparsity": round(sparsity_of(model), 4),
        "nonzero": nonzero_of(model),
        "macs": macs_of(model, image_shape) if image_shape else None,
        "inert": round(inert_of(model, image_shape), 4) if image_shape else None,
        "file_bytes": path.stat().st_size if path else None,
        "sha256": sha256_of(path) if path else None,
        **NO_FACTS,
        **facts,
        **({"code": sha256_of(files[0])} if files else {}),
    }


def write_card(
    path: Path,
    facts: Mapping[str, Any] = NO_FACTS,
    *,
    image_shape: tuple[int, int, int] | None = None,
    factory: str | None = None,
) -> None:
    """Write the `card_of` the checkpoint `path`, as it was saved, to `<stem>.json` beside it.
    factory: as in `load_model`."""
    card = card_of(path, load_model(path, factory), facts, image_shape)
    write_json(path.with_suffix(".json"), card)
