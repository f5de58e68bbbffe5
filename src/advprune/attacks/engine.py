"""Private, faster copies of models, and batches over processes."""

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

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
    where its code allows that."""
    private = fold_batchnorm(model) if fold else copy.deepcopy(model).eval()
    private.requires_grad_(False)
    return channels_last(private.to(device))


class Mixed(nn.Module):
    """A model computed in bfloat16 where that is quicker; its logits are of the images' type."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = self.model(x)
        return logits.to(x.dtype)


class Ensemble(nn.Module):
    """The mean logits of several models."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


def by_batch(
    model: nn.Module, pieces: Sequence[Piece], do: Callable[[Piece], Result], cost: Cost
) -> list[Result]:
    """`do` of every piece, in order; processes of torchrun share them out, to the same results, and
    `cost` counts what all of them spend. Each does all pieces of a model that draws at random, as
    its draws run on from piece to piece."""
    if is_randomized(model):
        return [do(piece) for piece in pieces]
    before = vars(cost).copy()

    def counted(piece: Piece) -> tuple[Result, dict[str, int]]:
        start, found = vars(cost).copy(), do(piece)
        return found, {side: count - start[side] for side, count in vars(cost).items()}

    done = spread(pieces, counted)
    for side, count in before.items():
        setattr(cost, side, count + sum(spent[side] for _, spent in done))
    return [found for found, _ in done]
