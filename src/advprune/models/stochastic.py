"""Randomness inside a model: layers that draw in every forward pass, in evaluation mode too, with
switches that attacks set on private copies. Models whose own code draws from global random states
become such a layer (`Drawn`)."""

import copy
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

from advprune.models.backward import straight_through


@contextmanager
def undisturbed(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Inside, code may draw; the global random states of torch, numpy and Python are put back.
    seed: that of all three inside; None leaves them as they are."""
    cuda = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(cuda), _others(seed):
        if seed is not None:
            torch.manual_seed(seed)
        yield


@contextmanager
def _others(seed: int | None) -> Iterator[None]:
    """The same for numpy and Python alone."""
    numpys, pythons = np.random.get_state(), random.getstate()
    try:
        if seed is not None:
            np.random.seed(seed % 2**32)
            random.seed(seed)
        yield
    finally:
        np.random.set_state(numpys)
        random.setstate(pythons)


def states(device: torch.device) -> tuple[Any, ...]:
    """The global random states, to be compared."""
    cuda = torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else b""
    numpys = tuple(np.random.get_state())
    numbers = np.asarray(numpys[1]).tobytes(), numpys[2:]
    return torch.get_rng_state().numpy().tobytes(), cuda, *numbers, random.getstate()


class Stochastic(nn.Module, ABC):
    """A layer that draws at random. The first dimension of what it sees is the batch.

    backward: the gradient of the random factors: `constant` (they are held fixed), `scale`
    (differentiated where that is defined), `identity` (the layer is passed over: BPDA, Athalye et
    al. 2018). frozen: a seed; the same draws in every pass and for every sample. shared: whether
    one draw may serve a whole pass. off: the layer changes nothing.
    """

    rules: tuple[str, ...] = ("constant", "scale", "identity")
    shared = False
    off = False

    def __init__(self, backward: str = "constant") -> None:
        super().__init__()
        if backward not in self.rules:
            raise ValueError(f"backward is {backward!r}; allowed: {', '.join(self.rules)}")
        self.backward = backward
        self.frozen: int | None = None

    def uniform(self, h: torch.Tensor) -> torch.Tensor:
        """Numbers in [0, 1), of the shape of `h` (of one sample of it where draws are frozen)."""
        return torch.rand_like(h) if self.frozen is None else self._frozen(torch.rand, h)

    def normal(self, h: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers, likewise."""
        return torch.randn_like(h) if self.frozen is None else self._frozen(torch.randn, h)

    def _frozen(self, draw: Callable[..., torch.Tensor], h: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(int(self.frozen or 0))
        return draw(h.shape[1:], generator=generator).to(h)

    @abstractmethod
    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        """What the layer makes of `h`, with the gradient of `constant` or `scale`."""

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        if self.off:
            return h
        out = self.noisy(h)
        return straight_through(h, out) if self.backward == "identity" else out


class Drawn(Stochastic):
    """A model whose own code draws from global random states, seen as one random layer. Each draw
    takes a pass of its own. Draws of numpy and Python are seeded from torch's."""

    rules = ("constant",)
    shared = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if "spec" in vars(model):
            vars(self)["spec"] = vars(model)["spec"]

    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        if self.frozen is None:
            with _others(int(torch.randint(2**31, ()))):
                return self.model(h)
        each = []
        for image in h.split(1):  # the same draws for every image
            with undisturbed(h.device, self.frozen):
                each.append(self.model(image))
        return torch.cat(each)


def stochastic_layers(model: nn.Module) -> list[Stochastic]:
    """All random layers of a model, in order of definition."""
    return [module for module in model.modules() if isinstance(module, Stochastic)]


def is_randomized(model: nn.Module) -> bool:
    """Whether a model's answers are random."""
    return bool(stochastic_layers(model))


def frozen_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A deterministic copy: each random layer draws once and for all, the same for every image."""
    copied = copy.deepcopy(model)
    for index, layer in enumerate(stochastic_layers(copied)):
        layer.frozen = seed * 1_000_003 + index
    return copied


def silent_copy(model: nn.Module) -> nn.Module | None:
    """A deterministic copy in which random layers change nothing; None where one of them is not a
    layer beside others but the model itself."""
    copied = copy.deepcopy(model)
    for layer in stochastic_layers(copied):
        if "identity" not in layer.rules:
            return None
        layer.off = True
    return copied


def drawn_logits(
    model: nn.Module, images: torch.Tensor, draws: int, most: int = 0
) -> Iterator[torch.Tensor]:
    """Logits `[k, N, K]` of `draws` draws in all, k of them per forward pass of up to `most` images
    (at least all N once). Frozen draws are the same for a whole pass: then k is 1."""
    shared = any(one.shared or one.frozen is not None for one in stochastic_layers(model))
    together = 1 if shared else max(1, most // max(len(images), 1))
    for count in split(draws, together):
        repeated = images.repeat(count, 1, 1, 1) if count > 1 else images
        yield model(repeated).unflatten(0, (count, len(images)))


def split(total: int, size: int) -> list[int]:
    """`total` in parts of at most `size`."""
    whole, rest = divmod(total, size)
    return [size] * whole + [rest] * (rest > 0)


def mean_logits(model: nn.Module, images: torch.Tensor, draws: int, most: int = 0) -> torch.Tensor:
    """Logits `[N, K]` averaged over `draws` draws."""
    sums = (part.sum(0) for part in drawn_logits(model, images, draws, most))
    return reduce(torch.add, sums) / draws
