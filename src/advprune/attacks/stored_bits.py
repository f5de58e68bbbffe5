"""Weights as stored in memory: integers of a few bits, and the network that they encode.

Rakin, He and Fan, Bit-Flip Attack (ICCV 2019), section 3.1: the weights of every convolution and
linear layer are `W = s q` with whole numbers q in two's complement; all else stays as it is. With
one bit, `W = s (2 b - 1)`: the stored bit b is the sign (He et al., Defending and Harnessing the
Bit-Flip based Adversarial Weight Attack, CVPR 2020). What is attacked is a *code*, the bits as an
unsigned number; bit 0 is the least significant one, bit `bits - 1` the sign. Batch-norm and the
scales s are float32 in memory, and can be attacked as such.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advprune.models.card import reached_places
from advprune.models.copies import plain_copy

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
SCALES = ("layer", "channel")


@dataclass(frozen=True)
class Flip:
    """One stored bit: layer by name, weight by its place in the flat weight, bit by position."""

    layer: str
    index: int
    bit: int


def encode(integers: Tensor, bits: int) -> Tensor:
    """The codes, uint8, of whole numbers: two's complement; at one bit `(q + 1) / 2`.

    Numbers lie in [-2^(bits-1), 2^(bits-1) - 1], at one bit they are -1 or 1.
    """
    q = integers.to(torch.int16)
    return ((q + 1) // 2 if bits == 1 else q & (2**bits - 1)).to(torch.uint8)


def decode(codes: Tensor, bits: int) -> Tensor:
    """The whole numbers, int16, that codes stand for; the inverse of `encode`."""
    u = codes.to(torch.int16)
    if bits == 1:
        return 2 * u - 1
    return u - 2**bits * (u >= 2 ** (bits - 1))


def place_values(bits: int) -> tuple[int, ...]:
    """What each bit adds to the number when it is set, from bit 0 on: 1, 2, 4, ..., -2^(bits-1).

    The sign bit's is negative. At one bit it is 2, and positive: setting the bit takes -1 to 1.
    """
    if bits == 1:
        return (2,)
    return (*(2**i for i in range(bits - 1)), -(2 ** (bits - 1)))


@dataclass(frozen=True)
class StoredLayer:
    """A layer's weight in memory.

    codes: uint8, of the weight's shape. scale: broadcasts over it. bits: 1 to 8. met: the places of
    a filter, `[kh, kw]`, that ever meet a value, None for all; other bits change nothing and do not
    count.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    met: Tensor | None = None

    @property
    def size(self) -> int:
        """How many bits are stored, of weights that ever meet a value."""
        return self.bits * len(self.places())

    def places(self) -> Tensor:
        """Where in the flat weight the weights lie that ever meet a value, in order."""
        if self.met is None:
            return torch.arange(self.codes.numel())
        return self.met.expand(self.codes.shape).flatten().nonzero().flatten()

    def integers(self) -> Tensor:
        """The whole numbers q, int16."""
        return decode(self.codes, self.bits)

    def weight(self) -> Tensor:
        """`s q`: what the network computes with."""
        return self.integers().to(self.scale.dtype) * self.scale

    def changes(self) -> Tensor:
        """By how much each flip changes the weight, `[bits, n]`."""
        codes, scale = self.codes.flatten(), self.scale.expand_as(self.codes).flatten()
        signs = [torch.where((codes >> bit) & 1 == 0, 1, -1) for bit in range(self.bits)]
        pairs = zip(place_values(self.bits), signs, strict=True)
        return torch.stack([scale * value * sign for value, sign in pairs])


@dataclass(frozen=True)
class StoredFloats:
    """Numbers in memory as float32: a parameter of batch-norm, or the scales of the layer `of`.

    codes: int32, the bits of each number, 31 the sign; of the parameter's or the scale's shape.
    """

    codes: Tensor
    of: str = ""
    bits: int = 32

    @property
    def size(self) -> int:
        """How many bits are stored."""
        return self.bits * self.codes.numel()

    def places(self) -> Tensor:
        """All."""
        return torch.arange(self.codes.numel())

    def weight(self) -> Tensor:
        """The numbers."""
        return self.codes.view(torch.float32)

    def changes(self) -> Tensor:
        """By how much each flip changes a number, `[bits, n]`; NaN where what comes out is infinite
        or NaN, 0 where the number is so already."""
        codes, numbers = self.codes.flatten(), self.weight().flatten()
        flipped = torch.stack([codes ^ _bit(bit) for bit in range(self.bits)]).view(torch.float32)
        changes = torch.where(flipped.isfinite(), flipped - numbers, torch.nan)
        return changes.where(numbers.isfinite(), 0.0)


@dataclass(frozen=True)
class StoredModel:
    """A network whose weights are exactly what its stored bits say, layer by layer by name. By
    `store`, or by hand where it is stored in another way (mixed widths, a binary network's own
    bits): then `model` has a parameter `<layer>.weight` for each entry. Entries of floats have the
    name of their parameter, and `<layer>.scale` for scales."""

    model: nn.Module
    layers: dict[str, "StoredLayer | StoredFloats"]

    @property
    def size(self) -> int:
        """How many bits are stored in all."""
        return sum(layer.size for layer in self.layers.values())

    def weight(self, name: str) -> nn.Parameter:
        """The parameter that an entry's codes stand behind; of scales that of their layer."""
        layer = self.layers[name]
        if isinstance(layer, StoredFloats) and not layer.of:
            return self.model.get_parameter(name)
        of = layer.of if isinstance(layer, StoredFloats) else name
        return self.model.get_parameter(f"{of}.weight")

    def copy(self) -> "StoredModel":
        """An equal one that shares nothing with this one, its weights written from the codes."""
        return _written(StoredModel(_frozen_copy(self.model), copy.deepcopy(self.layers)))

    def integer(self, name: str, index: int) -> int:
        """The whole number at a place of a layer's flat weight; of a float its bits as one."""
        layer = self.layers[name]
        code = layer.codes[_where(index, layer.codes)]
        return int(code if isinstance(layer, StoredFloats) else decode(code, layer.bits))

    @torch.no_grad()
    def flip(self, flip: Flip) -> None:
        """Flip one stored bit, in place; a second time undoes it exactly."""
        layer, where = self.layers[flip.layer], _where(flip.index, self.layers[flip.layer].codes)
        layer.codes[where] ^= _bit(flip.bit)
        weight = self.weight(flip.layer)
        if isinstance(layer, StoredLayer):
            q = decode(layer.codes[where], layer.bits).to(layer.scale.dtype)
            weight[where] = q * layer.scale.expand_as(layer.codes)[where]
        elif layer.of:  # a scale: all weights that it is of
            whole = self._of(layer)
            whole.scale.copy_(layer.weight())
            weight.copy_(whole.weight())
        else:
            weight[where] = layer.weight()[where]

    def gradient(self, name: str, weight: Tensor) -> Tensor:
        """The gradient by an entry's numbers, of that by the parameter behind it."""
        layer = self.layers[name]
        if isinstance(layer, StoredLayer) or not layer.of:
            return weight
        return (weight * self._of(layer).integers()).sum_to_size(layer.codes.shape)

    def _of(self, scales: StoredFloats) -> StoredLayer:
        layer = self.layers[scales.of]
        assert isinstance(layer, StoredLayer)
        return layer


def store(
    model: nn.Module,
    bits: int = 8,
    scale: str = "layer",
    image_shape: tuple[int, int, int] | None = None,
    floats: bool = False,
) -> StoredModel:
    """Round a float network's weights to what `bits` bits hold; the given model stays as it was.

    2 to 8 bits: `s = max |W| / (2^(bits-1) - 1)`, `q = round(W / s)`; the lowest number is reached
    by flips alone. One bit: `q = sign(W)`, sign(0) = 1, `s = mean |W|`. scale: one s for a `layer`,
    as published, or for each output `channel`. image_shape: `[C, H, W]`; bits of weights that meet
    only padding on such images (models/card.py) then do not count as stored. floats: the 32 bits
    of batch-norm's weights and biases and of each scale s count as well. Returns a frozen copy in
    evaluation mode; a tensor that layers share is stored once. ValueError for other bits or scales,
    a weight that is not finite, or a model without such layers.
    """
    if not 1 <= bits <= 8 or scale not in SCALES:
        raise ValueError(
            f"store: bits is {bits} and scale {scale!r}; bits lie in 1 to 8, scale is one of "
            + ", ".join(SCALES)
        )
    copied = _frozen_copy(model)
    places = reached_places(copied, image_shape) if image_shape else {}
    rounded: dict[str, StoredLayer] = {}
    most = 2 ** (bits - 1) - 1
    for name, weight in _weights(copied):
        if not weight.isfinite().all():
            raise ValueError(f"store: the weight of {name} holds NaN or infinite numbers")
        size = weight.detach().abs()
        rows = size.flatten(1) if scale == "channel" else size.reshape(1, -1)
        # Means are taken in float64.
        s = rows.double().mean(1).to(weight.dtype) if bits == 1 else rows.amax(1) / most
        s = s.view((-1,) + (1,) * (weight.ndim - 1))  # broadcasts over the weight
        if bits == 1:
            q = torch.where(weight >= 0, 1, -1)
        else:
            q = (weight / torch.where(s > 0, s, torch.ones_like(s))).round()
            q = q.clamp(-most, most)  # a scale too small for its float type may lead beyond
        rounded[name] = StoredLayer(encode(q, bits).contiguous(), s, bits, places.get(name))
    if not rounded:
        raise ValueError("store: the model has no convolution or linear layer with float weights")
    layers: dict[str, StoredLayer | StoredFloats] = {**rounded}
    if floats:
        scales = {f"{name}.scale": (layer.scale, name) for name, layer in rounded.items()}
        norms = [(n, m) for n, m in copied.named_modules() if isinstance(m, _BatchNorm)]
        parts = {f"{n}.{part}": (p, "") for n, m in norms for part, p in m.named_parameters()}
        for name, (numbers, of) in (parts | scales).items():
            codes = numbers.detach().float().clone().view(torch.int32)
            layers[name] = StoredFloats(codes, of)
    return _written(StoredModel(copied, layers))


def _frozen_copy(model: nn.Module) -> nn.Module:
    copied = plain_copy(model).requires_grad_(False)
    copied.zero_grad(set_to_none=True)
    return copied


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The weights to store by the name of their layer, each tensor once."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if isinstance(module, LAYERS) and weight is None:
            raise ValueError(f"store: {name} has no weight of its own; remove its parametrization")
        if isinstance(module, LAYERS) and weight is not None and id(weight) not in seen:
            seen.add(id(weight))
            yield name, weight


@torch.no_grad()
def _written(stored: StoredModel) -> StoredModel:
    """The same, after the codes' weights were written into the model."""
    for name, layer in stored.layers.items():
        if isinstance(layer, StoredLayer) or not layer.of:
            stored.weight(name).copy_(layer.weight())
    return stored


def _bit(bit: int) -> int:
    """The mask of a bit; of the last one of 32 as a signed number."""
    return 1 << bit if bit < 31 else -(1 << 31)


def _where(index: int, like: Tensor) -> tuple[int, ...]:
    """A place in a flat tensor as indices; any memory layout."""
    return tuple(int(i) for i in np.unravel_index(index, tuple(like.shape)))
