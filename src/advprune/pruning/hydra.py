"""HYDRA and LWM: masks learned with a robust loss; least weight magnitude, its control.

Claim (Sehwag et al., 2020). Which weights a robust network can do without is not decided by their
magnitude: a mask trained with the robust loss retains more robustness than LWM, the more so the
sparser the network. Networks that were not trained to be robust contain robust sub-networks.
On CIFAR-10, weights/cifar10-w32/README.md compares both at 95 and 99 % over three seeds: HYDRA is
more robust, by less than published, with a narrower network and shorter training.

Formula. Each weight has a score, which starts as `s = sqrt(6 / fan_in) w / max|w|`. A layer
computes with `w M`, where M is 0 for the `floor(sparsity * numel)` weights of smallest `|s|` of
that layer (ties by position) and 1 for the others. The gradient goes straight through to the score,
`dL/ds = sign(s) w dL/d(wM)`. Scores are trained with the weights frozen; then the mask is frozen
and the remaining weights are fine-tuned from their old values. LWM is the mask that HYDRA starts
from, with the same fine-tuning. All convolutions and linear layers are pruned by the same share,
the first, the shortcuts and the classifier included; biases and batch-norm are not. The GAP study's
masks, in contrast, include biases and leave out the classifier.

Training. Budget, batches and decay are the profile's; labels are not smoothed. The last epoch is
kept; the published code takes the epoch of the best accuracy under attack on test images. With
`finetune: null` on a standard network the mask alone is trained: a sub-network of a network that is
not robust. HYDRA's scores take epochs, so LWM is fine-tuned for as many more: settings of the same
sparsity and parent are refused where the sums differ, or method, attack or rate of the fine-tuning.

Source. Sehwag, Wang, Mittal and Jana, HYDRA: Pruning Adversarially Robust Neural Networks (NeurIPS
2020, arXiv 2002.10509); Han et al. (NeurIPS 2015) for magnitude.
"""

import copy
from dataclasses import replace
from math import sqrt
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn.utils import parametrize

from advprune.core.errors import UserError
from advprune.core.settings import Settings
from advprune.core.train_settings import FineTune, FineTuneSettings
from advprune.models.backward import straight_through
from advprune.pruning.family import Data, Pruned, family, require
from advprune.pruning.masks import (
    Masks,
    first,
    layer_weights,
    layers,
    masked,
    part,
    trained_by,
)
from advprune.training.standard import History, finetune


class ScoreSettings(FineTuneSettings):
    """How scores are trained, and batch-norm with them, as published."""

    method: Literal["standard", "pgd", "trades"] = "trades"
    epochs: int = Field(default=20, ge=0, le=10000)
    steps: int = Field(default=10, ge=1, le=1000)


class Magnitude(Settings):
    """sparsity: the share of each layer's weights that is removed, rounded down as published.
    finetune: training of the remaining weights; null for none."""

    sparsity: float = Field(ge=0, lt=1)
    finetune: FineTune = None

    def shared(self) -> dict[str, Any]:
        """What HYDRA and LWM of the same sparsity have to share, by key."""
        return trained_by(self.finetune, "finetune")


class Hydra(Magnitude):
    """sparsity, finetune: as for LWM. scores: how the mask is trained before that; epochs: 0 leaves
    the scores as they start, and the mask is that of LWM."""

    scores: ScoreSettings = ScoreSettings()

    def shared(self) -> dict[str, Any]:
        """As for LWM; its epochs are those of both phases. Without fine-tuning the method is that
        of the scores, which have a rate of their own."""
        found = trained_by(self.finetune or self.scores, "finetune")
        if self.finetune is None:
            del found["finetune.lr"]
        else:
            found["finetune.epochs"] += self.scores.epochs
        return found


class Scored(nn.Module):
    """A weight w seen through the mask of its scores s: `w * M`, `dL/ds = sign(s) w dL/d(w M)`. The
    mask changes in `refresh` alone: the inner steps of an attack need no ranking."""

    kept: torch.Tensor

    def __init__(self, scores: torch.Tensor, sparsity: float) -> None:
        super().__init__()
        self.sparsity = sparsity
        self.scores = nn.Parameter(scores)
        self.register_buffer("kept", torch.ones_like(scores, dtype=torch.bool))
        self.refresh()

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * straight_through(self.scores.abs(), self.kept.to(weight.dtype))

    @torch.no_grad()
    def refresh(self) -> None:
        """Rank the scores anew."""
        self.kept.copy_(~smallest(self.scores, self.sparsity))


def scaled(weight: torch.Tensor) -> torch.Tensor:
    """The scores that pruning starts from: `s = sqrt(6 / fan_in) w / max|w|`, of w's shape, or
    zeros where w is all zero. UserError where a weight is NaN or infinite."""
    found = weight.detach()
    if not found.isfinite().all():
        raise UserError("weights that are NaN or infinite cannot be ranked; nothing is pruned")
    fan_in = found[0].numel()
    return sqrt(6 / fan_in) * found / found.abs().max().clamp_min(torch.finfo(found.dtype).tiny)


def smallest(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """True for the `floor(sparsity * numel)` scores of smallest |s|; of equal ones the first."""
    return first(scores.abs(), part(sparsity, scores.numel()))


def attach_scores(model: nn.Module, sparsity: float) -> dict[str, Scored]:
    """Put every layer's weight behind a mask, in place; returns the masks by parameter name.
    Scores are trained, weights and biases of these layers are not."""
    model.requires_grad_(True)
    found = {}
    for name, layer in layers(model).items():
        layer.requires_grad_(False)
        seen = Scored(scaled(layer.weight), sparsity)
        parametrize.register_parametrization(layer, "weight", seen)
        found[f"{name}.weight"] = seen
    return found


def least(model: nn.Module, sparsity: float) -> Masks:
    """What is removed by the initial scores: least weight magnitude, layer by layer."""
    return {n: smallest(scaled(w), sparsity) for n, w in layer_weights(model).items()}


@family("HYDRA", Hydra)
def hydra(model: nn.Module, setting: Hydra, data: Data) -> Pruned:
    """Weights whose trained score is small go; the given network is the pretraining. The notes hold
    `moved` (share of the kept weights that LWM would have removed), `scores` and `finetune` (the
    histories)."""
    removed = start = least(model, setting.sparsity)
    history: History = []
    if setting.scores.epochs:
        learner = copy.deepcopy(model)
        seen = attach_scores(learner, setting.sparsity)

        def refresh(_: nn.Module) -> None:
            for one in seen.values():
                one.refresh()

        history = finetune(
            learner,
            setting.scores,
            replace(require(data), state=data.phase("scores")),
            seed=int(torch.randint(2**31, (), generator=data.generator)),
            after_step=refresh,
        )
        model.load_state_dict(learner.state_dict(), strict=False)  # of which batch-norm has changed
        removed = {name: ~one.kept for name, one in seen.items()}
    kept = sum(int((~mask).sum()) for mask in removed.values())
    moved = sum(int((start[name] & ~mask).sum()) for name, mask in removed.items()) / max(kept, 1)
    return masked(model, removed, setting.finetune, data, moved=moved, scores=history)


@family("LWM", Magnitude)
def lwm(model: nn.Module, setting: Magnitude, data: Data) -> Pruned:
    """The weights of least magnitude of each layer go."""
    return masked(model, least(model, setting.sparsity), setting.finetune, data)
