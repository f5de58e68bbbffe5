"""Attack through a student: a small network that learns the model's answers around the images.

No gradient of the model is used, so a wrong one leads nothing astray. After Papernot et al.,
Practical Black-Box Attacks against Machine Learning (2017), whose substitute learns from images of
its own; here it learns the budget's ball around each attacked image, and where its own adversarial
images lie.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_images, check_model
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import margin
from advprune.attacks.pgd import PGDOptions, pgd, random_point
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.device import device_of, salted
from advprune.models.stochastic import is_randomized, mean_logits

COPIES = 8  # random points of the ball that the student learns each image from, at first
DRAWS = 10  # of a randomized model, for an answer
BATCH = 64


class StudentSettings(Attack):
    """Settings of `method: student`.

    rounds: how often the student attacks; between them it learns the model's answers there. steps:
    of its training, in each round.
    """

    method: Literal["student"]
    rounds: int = Field(default=4, ge=1, le=100)
    steps: int = Field(default=150, ge=1, le=100000)
    note: str = ""


@method("student", StudentSettings, differentiates=False)
def student(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: StudentSettings, how: Context
) -> torch.Tensor:
    """Images that the student found and the model's answers chose: of each, the largest margin loss.

    images: `[N, C, H, W]` in [0, 1]. ValueError on shapes, ranges or a model that makes no sense.
    """
    check_images("student", images, labels)
    check_model("student", model, images, labels, random=True)
    if not len(images):
        return images
    device, private = device_of(model), attack_copy(model, device_of(model))
    how.cost.watch(private)
    draws = DRAWS if is_randomized(model) else 1

    @torch.no_grad()
    def ask(points: torch.Tensor) -> torch.Tensor:
        parts = points.to(device).split(how.batch)
        return torch.cat([mean_logits(private, part, draws, how.batch) for part in parts]).cpu()

    generator = torch.Generator().manual_seed(salted(how.seed, "student"))
    best, reached = images.clone(), torch.full((len(images),), -torch.inf)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(salted(how.seed, "student"))
        known = torch.cat(
            [images, *(random_point(images, s.eps, s.norm, generator) for _ in range(COPIES))]
        )
        answers = ask(known)
        network = _network(images.shape[1], answers.shape[1])
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for number in range(s.rounds):
            _fit(network, optimizer, known, answers, s.steps)
            options = PGDOptions(s.norm, "margin", keep="best", generator=generator)
            found = pgd(network, images, labels, s.eps, s.eps / 8, 20, options)
            found = to_pixels(found, images, s.eps, s.norm) / 255
            said = ask(found)
            better = margin(said, labels) > reached
            best[better], reached[better] = found[better], margin(said, labels)[better]
            near = random_point(found, s.eps / 4, s.norm, generator)
            known = torch.cat([known, found, near])
            answers = torch.cat([answers, said, ask(near)])
    return best


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
        rows = torch.randint(len(known), (BATCH,))
        loss = F.mse_loss(network(known[rows]), goal[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
