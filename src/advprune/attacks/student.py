"""Attack through a student: a small network that learns the model's answers around the images.

No gradient of the model is used. After Papernot et al., Practical Black-Box Attacks against Machine
Learning (2017); the student learns the budget's ball around each attacked image, and where its own
adversarial images lie.
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.losses import margin
from advprune.attacks.opening import opened
from advprune.attacks.pgd import pgd, random_point
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack

COPIES = 8  # random points of the ball that the student learns each image from, at first
BATCH = 64


class StudentSettings(Attack):
    """Settings of `method: student`.

    rounds: how often the student attacks; between them it learns the model's answers there. steps:
    of its training, in each round.
    """

    method: Literal["student"]
    rounds: int = Field(default=3, ge=1, le=100)
    steps: int = Field(default=100, ge=1, le=100000)
    draws: int = Field(default=10, ge=1, le=10000)


@method("student", StudentSettings, gradients=False)
def student(
    model: nn.Module, images: Tensor, labels: Tensor, s: StudentSettings, how: Context
) -> Tensor:
    """Of each image, what the student found at which the model's own margin loss is largest."""
    best, reached = images.clone(), torch.full((len(images),), -torch.inf)
    if not len(images):
        return best
    with opened(model, images, labels, s, how) as at:
        ball = partial(random_point, norm=s.norm, generator=at.generator)

        def ask(points: Tensor) -> Tensor:
            return at.logits(points.to(at.device)).to(images.device)

        torch.manual_seed(at.generator.initial_seed())  # of the student, and what it learns first
        known = torch.cat([images, *(ball(images, s.eps) for _ in range(COPIES))])
        answers = ask(known)
        network = _network(images.shape[1], answers.shape[1]).to(images.device)
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        how_to: dict[str, Any] = {"norm": s.norm, "loss": "margin", "keep": "best"}
        step, how_to["generator"] = s.eps / 8, at.generator
        for _ in range(s.rounds):
            # Learn logits, up to a constant for each image and a common scale.
            goal = answers - answers.mean(1, keepdim=True)
            goal = goal / goal.std().clamp_min(1e-12)
            for _ in range(s.steps):
                rows = torch.randint(len(known), (BATCH,), device=known.device)
                loss = F.mse_loss(network(known[rows]), goal[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            found = pgd(network, images, labels, s.eps, step, 20, **how_to)
            found = at.shown(found, images)
            said = ask(found)
            now = margin(said, labels)
            better = now > reached
            best[better], reached[better] = found[better], now[better]
            near = ball(found, s.eps / 4)
            known, answers = torch.cat([known, found, near]), torch.cat([answers, said, ask(near)])
    return best


def _network(channels: int, classes: int) -> nn.Module:
    """Smooth, so that its gradients reach far."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 24, 3, padding=1), nn.SiLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.SiLU()),
        *(nn.Conv2d(48, 48, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        *(nn.Linear(768, 128), nn.SiLU(), nn.Linear(128, classes)),
    )
