"""Fine-tuning: a short training of a network that has been compressed."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from advprune.core.train_settings import FineTuneSettings, RecipeSettings, TrainSettings
from advprune.training.standard import History, Trainer


def finetune(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    train: TrainSettings,
    setting: FineTuneSettings,
    seed: int,
    state: Path | None = None,
    after_step: Callable[[nn.Module], None] = lambda model: None,
    probe: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> History:
    """Train `model` in place on float images `[N, C, H, W]` in [0, 1]; the last epoch is kept.

    labels: int64 `[N]`, or probabilities `[N, K]`. train: the profile's batches, augmentation,
    decay and budget. after_step: called after every step, to hold what must not change. probe:
    float images and labels that each epoch is judged on. state: see Trainer. Returns the history,
    one row per epoch.
    """
    recipe = RecipeSettings(**setting.model_dump(exclude={"lr"}))
    trainer = Trainer(
        model,
        (to_uint8(images), labels),
        None,
        train.model_copy(update={"lr": setting.lr}),
        recipe,
        seed,
        state,
        after_step=after_step,
        probe=probe and (to_uint8(probe[0]), probe[1]),
    )
    return trainer.run()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float images in [0, 1] as the 8-bit pixels that they came from."""
    return (images * 255).round().to(torch.uint8)
