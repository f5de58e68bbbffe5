"""Private, faster copies of models, and batches over processes."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.core.distributed import spread
from advprune.models.fold import channels_last, fold_batchnorm
from advprune.models.stochastic import is_randomized

Progress = Callable[[int], None]
Piece = TypeVar("Piece")
Result = TypeVar("Result")


def no_progress(done: int) -> None:
    """Report nothing."""


def attack_copy(model: nn.Module, device: torch.device, fold: bool = True) -> nn.Module:
    """The copy that an attack works on: evaluation mode, frozen, folded, channels-last
    where its code bears that."""
    private = fold_batchnorm(model) if fold else copy.deepcopy(model).eval()
    private.requires_grad_(False)
    return channels_last(private.to(device))


class Mixed(nn.Module):
    """A model computed in bfloat16 where that is quicker; its logits are of the images' type."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.model(x)
        return logits.to(x.dtype)


class Ensemble(nn.Module):
    """The mean logits of several models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


def by_batch(
    model: nn.Module, pieces: Sequence[Piece], do: Callable[[Piece], Result], cost: Cost
) -> list[Result]:
    """`do` of every piece, in order; processes of torchrun share them out, to the same results.

    cost: counts what all of them spend. Not of a model that draws at random, whose draws run on
    from piece to piece: every process does all of them.
    """
    if is_randomized(model):
        return [do(piece) for piece in pieces]
    before = replace(cost)

    def counted(piece: Piece) -> tuple[Result, int, int]:
        forwards, gradients = cost.forwards, cost.gradients
        found = do(piece)
        return found, cost.forwards - forwards, cost.gradients - gradients

    done = spread(pieces, counted)
    cost.forwards = before.forwards + sum(forwards for _, forwards, _ in done)
    cost.gradients = before.gradients + sum(gradients for *_, gradients in done)
    return [found for found, *_ in done]
