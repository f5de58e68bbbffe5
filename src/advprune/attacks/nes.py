"""Attack through estimated gradients: natural evolution strategies (NES).

Ilyas et al., Black-box Adversarial Attacks with Limited Queries and Information (ICML 2018),
Algorithm 1: `g = sum_i u_i (L(x + sigma u_i) - L(x - sigma u_i)) / (2 n sigma)` over n normal draws
u_i. It sees the model's answers alone, over a step that is wide enough to see across rounding.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_images, check_model
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import margin
from advprune.attacks.pgd import ascend, project, random_point
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.core.device import device_of, salted
from advprune.models.stochastic import is_randomized, mean_logits


class NESSettings(Attack):
    """Settings of `method: nes`.

    samples: pairs of points behind each gradient. draws: of a randomized model, for an answer.
    """

    method: Literal["nes"]
    steps: int = Field(default=20, ge=1, le=100000)
    samples: int = Field(default=32, ge=1, le=100000)
    draws: int = Field(default=1, ge=1, le=10000)
    note: str = ""


@method("nes", NESSettings, differentiates=False)
def nes(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: NESSettings, how: Context
) -> torch.Tensor:
    """The 8-bit image of the largest margin loss among the iterates, `[N, C, H, W]` in [0, 1].

    Steps shrink from eps / 2 to eps / 10, and sigma is eps / 4. An image of a deterministic model
    is left as soon as it is broken. ValueError on shapes, ranges or a model that makes no sense.
    """
    check_images("nes", images, labels)
    check_model("nes", model, images, labels, random=True)
    device, private = device_of(model), attack_copy(model, device_of(model))
    how.cost.watch(private)
    is_random = is_randomized(model)
    draws, sigma = s.draws if is_random else 1, s.eps / 4
    if s.norm == "L2":
        sigma /= images[:1].numel() ** 0.5
    generator = torch.Generator().manual_seed(salted(how.seed, "nes"))

    @torch.no_grad()
    def loss(points: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        parts = zip(points.split(how.batch), labels[rows].split(how.batch), strict=True)
        found = [
            margin(mean_logits(private, x.to(device), draws, how.batch).cpu(), y) for x, y in parts
        ]
        return torch.cat(found)

    best, reached = images.clone(), torch.full((len(images),), -torch.inf)
    current = random_point(images, s.eps, s.norm, generator)
    for number in range(s.steps + 1):
        rows = torch.arange(len(images)) if is_random else (reached <= 0).nonzero()[:, 0]
        if not len(rows):
            break
        shown = to_pixels(current[rows], images[rows], s.eps, s.norm) / 255
        now = loss(shown, rows)
        better = now > reached[rows]
        best[rows[better]], reached[rows[better]] = shown[better], now[better]
        gradient = torch.zeros_like(images[rows])
        for _ in range(s.samples):
            u = torch.randn(gradient.shape, generator=generator)
            ends = torch.cat([current[rows] + sigma * u, current[rows] - sigma * u]).clamp(0, 1)
            up, down = loss(ends, rows.repeat(2)).chunk(2)
            gradient += (up - down).view(-1, 1, 1, 1) * u
        step = s.eps * (0.5 - 0.4 * number / s.steps)
        moved = ascend(current[rows], gradient, step, s.norm)
        current[rows] = project(moved, images[rows], s.eps, s.norm)
        how.progress(len(rows))
    return best
