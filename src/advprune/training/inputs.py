"""What a training is given besides its network and its recipe, and what it keeps meanwhile."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.core.train_settings import TrainSettings
from advprune.data import Split

Pair = tuple[torch.Tensor, torch.Tensor]  # images [N, C, H, W] and labels [N]


@dataclass(frozen=True)
class Inputs:
    """Of a training from scratch; `state` and `after_epoch` as in `Trainer`."""

    train: Split
    val: Split  # to choose between epochs
    seed: int
    device: torch.device
    state: Path | None = None
    after_epoch: Callable[[list[dict[str, float]]], None] = lambda history: None


@dataclass(frozen=True)
class Data:
    """Of a compression that may learn, on training images. `prune` sets seed and generator."""

    images: torch.Tensor  # float32 [N, C, H, W] in [0, 1]
    labels: torch.Tensor  # int64 [N]
    # How the profile trains, and the budget of attacks on training images.
    train: TrainSettings = field(default_factory=TrainSettings)
    state: Path | None = None  # of unfinished training, from which a killed run goes on
    seed: int = 0  # the run's, which the dense network was initialized with
    generator: torch.Generator = field(default_factory=torch.Generator)  # what a family draws from

    def phase(self, name: str) -> Path | None:
        """Where an earlier phase of the training keeps its state: beside that of the last."""
        return self.state and self.state.with_name(f"{name}-{self.state.name}")


def save_state(path: Path | None, state: dict[str, Any]) -> None:
    """Keep the state of an unfinished training; None keeps nothing."""
    if path is not None:
        with atomic(path) as temporary:
            torch.save(state, temporary)


def load_state(path: Path | None, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """A state that was kept, or None; UserError where the file is damaged."""
    if path is None or not path.is_file():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
        raise UserError(f"the training state {path} is damaged; delete it to start anew") from error
