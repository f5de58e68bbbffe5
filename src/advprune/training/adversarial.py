"""Adversarial training: how each method attacks a batch, and what it then minimizes.

All attacks are Linf, within `eps = train.eps * recipe.budget` of the image and in [0, 1], on the
current weights in evaluation mode: in training mode every inner step would move the batch-norm
statistics, and the function under attack would depend on its batch.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from advprune.attacks.pgd import ascend, pgd, project, random_point
from advprune.core.device import device_of
from advprune.core.train_settings import RecipeSettings, TrainSettings, crossing
from advprune.data import to_float

Objective = Callable[[torch.Tensor], torch.Tensor]  # logits [N, K] -> a number to be raised
TRADES_START = 0.001  # deviation of the Gaussian start, as published


class Inner(NamedTuple):
    """An attack inside a training step: Linf budget, step and number of steps."""

    eps: float
    step: float
    steps: int

    @classmethod
    def usual(cls, eps: float, steps: int) -> "Inner":
        """With steps of the usual length."""
        return cls(eps, crossing(steps) * eps, steps)


@dataclass(frozen=True)
class Method:
    """A recipe at a profile's budget: the images it trains on and the loss it minimizes."""

    recipe: RecipeSettings
    settings: TrainSettings

    @property
    def attacks(self) -> bool:
        """Whether it trains on attacked images at all."""
        return self.recipe.method != "standard"

    @property
    def inner(self) -> Inner:
        """The attack inside a training step; of mixed a single step."""
        eps = self.settings.eps * self.recipe.budget
        if self.recipe.method == "mixed":
            return Inner(eps, eps, 1)
        return Inner(eps, self.recipe.stride * eps, self.recipe.steps)

    def craft(
        self, model: nn.Module, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Images `[N, C, H, W]` to train on, made from `x` in [0, 1]; random starts are drawn
        from `generator`, on its device.

        pgd: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (2018).
        trades: `trades_images`. mixed: the first `share` of the batch, which is shuffled, becomes
        FGSM images, one step of eps without a random start (Goodfellow et al., 2015), as in Dhillon
        et al. (SAP, 2018), there by the previous epoch's model.
        """
        if self.recipe.method == "pgd":
            return pgd_images(model, x, y, self.inner, generator)
        if self.recipe.method == "trades":
            return trades_images(model, x, self.inner, generator)
        count = round(self.recipe.share * len(x)) if self.recipe.method == "mixed" else 0
        if not count:
            return x
        attacked = climb(model, x[:count], x[:count], _error(y[:count]), self.inner)
        return torch.cat([attacked, x[count:]])

    def loss(
        self, model: nn.Module, x: torch.Tensor, crafted: torch.Tensor, y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of a batch and the logits `[N, K]` that its accuracy is counted on.

        Cross-entropy on `crafted`; for TRADES (Zhang et al., Theoretically Principled Trade-off
        between Robustness and Accuracy, 2019) `CE(p(x), y) + beta KL(p(x) || p(x'))`, whose
        accuracy is that on `x`. Only standard training smooths labels: a network trained with it
        on attacked images hides its gradients.
        """
        trades = self.recipe.method == "trades"
        logits = model(x if trades else crafted)
        smoothing = self.settings.label_smoothing if self.recipe.method == "standard" else 0.0
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        if trades:
            divergence = kl(logits.float().log_softmax(1), model(crafted).float())
            loss = loss + self.recipe.beta * divergence / len(y)
        return loss, logits

    def probe(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Uint8 images under the PGD attack by which epochs are compared; always the same starts.
        An image stops where it is misclassified: this is for counting accuracy only."""
        x = to_float(images).to(next(model.parameters()).dtype)
        inner = Inner.usual(self.inner.eps, self.recipe.probe_steps)
        batch = 256 if device_of(model).type == "cpu" else 1024
        return pgd(model, x, labels, *inner, drop=True, batch=batch)


@contextmanager
def attacked(model: nn.Module) -> Iterator[None]:
    """Inside, evaluation mode and no gradients of weights, which halves a backward pass."""
    mode, trained = model.training, [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(mode)
        for parameter in trained:
            parameter.requires_grad_(True)


def climb(
    model: nn.Module, clean: torch.Tensor, start: torch.Tensor, objective: Objective, inner: Inner
) -> torch.Tensor:
    """`x <- P(x + step * sign(grad objective(f(x))))` from `start`, `steps` times; P projects on
    the eps-ball round `clean` and on [0, 1]."""
    point = start
    with attacked(model):
        for _ in range(inner.steps):
            point = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(objective(model(point).float()), point)
            point = ascend(point.detach(), gradient, inner.step, "Linf")
            point = project(point, clean, inner.eps, "Linf")
    return point


def pgd_images(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, inner: Inner, generator: torch.Generator
) -> torch.Tensor:
    """PGD from a uniform start: an approximation of `max_{|d| <= eps} CE(f(x + d), y)`."""
    return climb(model, x, random_point(x, inner.eps, "Linf", generator), _error(y), inner)


def trades_images(
    model: nn.Module, x: torch.Tensor, inner: Inner, generator: torch.Generator
) -> torch.Tensor:
    """`max_{|d| <= eps} KL(p(x) || p(x + d))` by PGD from `x + 0.001 N(0, 1)` (Zhang et al., 2019).
    The start is off `x` because the divergence has no gradient at `x` itself."""
    noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
    with attacked(model), torch.no_grad():
        target = model(x).float().log_softmax(1)
    start = project(x + TRADES_START * noise, x, inner.eps, "Linf")
    return climb(model, x, start, lambda logits: kl(target, logits), inner)


def _error(labels: torch.Tensor) -> Objective:
    """Cross-entropy without label smoothing, summed: signs do not depend on the batch size."""
    return lambda logits: F.cross_entropy(logits, labels, reduction="sum")


def kl(target: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """`sum_n KL(p_n || softmax(z_n))` of log-probabilities `target` and logits z, both `[N, K]`."""
    return F.kl_div(logits.log_softmax(1), target, reduction="sum", log_target=True)
