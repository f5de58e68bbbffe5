"""Attack through a student: a small network that learns the model's answers around the images.

No gradient of the model is used, so a wrong one leads nothing astray. After Papernot et al.,
Practical Black-Box Attacks against Machine Learning (2017), whose substitute learns from images of
its own; here it learns the budget's ball around each attacked image, and where its own adversarial
images lie.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_numbers
from advprune.attacks.losses import margin
from advprune.attacks.opening import Options, opened, options
from advprune.attacks.pgd import PGDOptions, pgd, random_point
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.models.stochastic import is_randomized

COPIES = 8  # random points of the ball that the student learns each image from, at first
BATCH = 64


@dataclass(frozen=True)
class StudentOptions(Options):
    """How `student` searches; more in `Options`.

    rounds: how often the student attacks; between them it learns the model's answers there. steps:
    of its training, in each round.
    """

    rounds: int = 3
    steps: int = 100


def student(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    options: StudentOptions | None = None,
    **changes: Any,
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    Of each image, what the student found at which the model's own margin loss is largest. options,
    changes: StudentOptions, and fields of it by name. Raises ValueError on shapes, ranges or
    options that make no sense.
    """
    how = replace(options or StudentOptions(), **changes)
    check_numbers("student", 1, rounds=how.rounds, steps=how.steps)
    best, reached = images.clone(), torch.full((len(images),), -torch.inf)
    if not len(images):
        return best
    with opened("student", model, (images, labels), eps, how) as at:

        def ball(centres: torch.Tensor, radius: float) -> torch.Tensor:
            return random_point(centres, radius, how.norm, at.generator)

        def ask(points: torch.Tensor) -> torch.Tensor:
            return at.logits(points.to(at.device)).to(images.device)

        torch.manual_seed(at.generator.initial_seed())  # of the student, and what it learns first
        known = torch.cat([images, *(ball(images, eps) for _ in range(COPIES))])
        answers = ask(known)
        network = _network(images.shape[1], answers.shape[1]).to(images.device)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        attack = PGDOptions(norm=how.norm, loss="margin", keep="best", generator=at.generator)
        for _ in range(how.rounds):
            _fit(network, optimizer, known, answers, how.steps)
            found = at.shown(pgd(network, images, labels, eps, eps / 8, 20, attack), images)
            said = ask(found)
            now = margin(said, labels)
            better = now > reached
            best[better], reached[better] = found[better], now[better]
            near = ball(found, eps / 4)
            known, answers = torch.cat([known, found, near]), torch.cat([answers, said, ask(near)])
    return best


class StudentSettings(Attack):
    """Settings of `method: student`: as `StudentOptions`."""

    method: Literal["student"]
    rounds: int = Field(default=3, ge=1, le=100)
    steps: int = Field(default=100, ge=1, le=100000)
    draws: int = Field(default=10, ge=1, le=10000)


@method("student", StudentSettings, differentiates=False)
def _student(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: StudentSettings, how: Context
) -> torch.Tensor:
    draws = s.draws if is_randomized(model) else 1
    return student(model, images, labels, s.eps, options(StudentOptions, s, how, draws=draws))


def _network(channels: int, classes: int) -> nn.Module:
    """Smooth, so that its gradients reach far."""
    wide = nn.Sequential(
        *(nn.Conv2d(channels, 24, 3, padding=1), nn.SiLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
    )
    return nn.Sequential(wide, nn.Linear(768, 128), nn.SiLU(), nn.Linear(128, classes))


def _fit(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    known: torch.Tensor,
    answers: torch.Tensor,
    steps: int,
) -> None:
    """Learn logits, up to a constant for each image and a common scale."""
    goal = answers - answers.mean(1, keepdim=True)
    goal = goal / goal.std().clamp_min(1e-12)
    for _ in range(steps):
        rows = torch.randint(len(known), (BATCH,), device=known.device)
        loss = F.mse_loss(network(known[rows]), goal[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
