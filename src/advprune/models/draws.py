"""Global random states: put back, compared, and models whose own code draws from them."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from advprune.models.stochastic import Stochastic


@contextmanager
def undisturbed(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Inside, code may draw; the global random states of torch, numpy and Python are put back.

    seed: that of all three inside; None leaves them as they are.
    """
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


class Drawn(Stochastic):
    """A model whose own code draws from global random states, seen as one random layer.

    What it draws may be the same for a whole batch, so each draw takes a pass of its own. It has no
    backward rule but its own. Draws of numpy and Python are seeded from torch's.
    """

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

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.noisy(h)
