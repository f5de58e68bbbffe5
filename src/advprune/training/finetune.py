"""Fine-tuning: a short training of a network that has been compressed."""

from collections.abc import Callable

import torch
from torch import nn

from advprune.core.train_settings import FineTuneSettings, RecipeSettings
from advprune.training.inputs import Data
from advprune.training.standard import History, Trainer


def finetune(
    model: nn.Module,
    setting: FineTuneSettings,
    data: Data,
    seed: int,
    after_step: Callable[[nn.Module], None] = lambda model: None,
) -> History:
    """Train `model` in place on the images of `data`; the last epoch is kept.

    seed: of this training, in place of that of `data`. after_step: called after every step, to hold
    what must not change. Returns the history, one row per epoch.
    """
    return Trainer(
        model,
        ((data.images * 255).round().to(torch.uint8), data.labels),
        None,
        data.train.model_copy(update={"lr": setting.lr}),
        RecipeSettings(**setting.model_dump(exclude={"lr"})),
        seed,
        data.state,
        after_step=after_step,
    ).run()
