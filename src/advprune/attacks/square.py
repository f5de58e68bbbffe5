"""Square attack: random search over squares of pixels, without a gradient.

Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random
search (ECCV 2020), Algorithms 1 and 2, for the Linf ball. It sees logits alone, so masked gradients
do not hinder it: where it beats a gradient attack, the gradients are not to be trusted.

Two differences from the authors' code, both as the paper has it: each image has squares and signs
of its own, and squares reach the last row and column, which that code leaves out.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_choice, check_numbers
from advprune.attacks.engine import by_batch
from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, Options, opened, options
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.models.border import refuse

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # counted in squares tried


@dataclass(frozen=True)
class SquareOptions(Options):
    """How `square` searches; more in `Options`.

    queries: per image, the stripes included (the look at the clean image is not).
    p: share of the image that the first squares take.
    draws: whether the loss rose rests on the mean logits of so many. Noise stays in them, and the
    loss that is kept is that of a lucky draw, so score the images afresh.
    progress: of at most `N * queries`: those that decided images save are not reported.
    """

    queries: int = 1000
    p: float = 0.8


def square(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, eps: float, **changes: Any
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    From `x + eps * stripes`, set a random square to `x +- eps`, one sign per channel, and keep it
    where the margin loss `max_{i != y} z_i - z_y` rises. The square's side is the whole number
    nearest to `sqrt(p_i * H * W)`, where `p_i` starts at `p` and halves after `HALVINGS` squares;
    these are not rescaled to other budgets, as in AutoAttack.

    An image that is misclassified, from the start or later, gets no more queries, unless the model
    draws at random: there the next draws may be right again, and every image gets all of them.
    Every image comes back at its highest loss so far, fooled or not; never below the loss of the
    clean image, which it then is.

    changes: fields of SquareOptions. Raises ValueError on shapes, ranges or options that make no
    sense.
    """
    how = SquareOptions(**changes)
    check_numbers("square", 1, queries=how.queries)
    check_choice("square", "norm", how.norm, ("Linf",))
    part = f"p is {how.p}; it is a part of the image, above 0 and at most 1"
    refuse("square", {part: not 0 < how.p <= 1})
    with opened("square", model, (images, labels), eps, how) as at, torch.no_grad():
        return _search(at).to(images.device)


class SquareSettings(Attack):
    """Settings of `method: square`.

    draws: for randomized models, the loss of a query is that of the mean logits of this many draws.
    """

    method: Literal["square"]
    norm: Literal["Linf"] = "Linf"
    queries: int = Field(default=1000, ge=1, le=1000000)
    draws: int = Field(default=1, ge=1, le=10000)

    @property
    def steps(self) -> int:
        """What records call its steps: the queries."""
        return self.queries


@method("square", SquareSettings, gradients=False)
def _square(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: SquareSettings, how: Context
) -> torch.Tensor:
    return square(model, images, labels, s.eps, **vars(options(SquareOptions, s, how)))


def _search(at: Opened[SquareOptions]) -> torch.Tensor:
    """The images found, `[N, C, H, W]`. Changes hold `+-eps` (or 0) and are cut to [0, 1] when
    shown; they are drawn for all images, so that one does not depend on which others are left."""
    clean = at.images.to(at.device).contiguous(memory_format=torch.channels_last)
    labels, how, (n, channels, height, width) = at.labels.to(at.device), at.options, clean.shape

    def signs(*shape: int) -> torch.Tensor:
        drawn = 2 * torch.randint(2, shape, generator=at.generator) - 1
        return at.eps * drawn.to(clean)

    def losses(rows: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The margins of `clean[rows] + change`, `[len(rows)]`, on the mean logits."""

        def of(part: torch.Tensor) -> torch.Tensor:
            points = (clean[rows[part]] + change[part]).clamp(0, 1)
            return margin(at.logits(points), labels[rows[part]]).cpu()

        parts = torch.arange(len(rows), device=rows.device).split(how.batch)
        return torch.cat(by_batch(at.exact, parts, of, at.cost)).to(clean)

    rows, change = torch.arange(n, device=clean.device), torch.zeros_like(clean)
    before = losses(rows, change)
    best = before.clone()
    for query in range(how.queries):
        rows = rows if at.randomized else rows[best[rows] <= 0]  # those that are still right
        if not len(rows):
            break
        if query == 0:  # stripes, which are kept whatever they do
            tried = signs(n, channels, 1, width).expand(-1, -1, height, -1)[rows]
        else:
            size = side(how.p, query - 1, clean.shape)
            down = _offsets(at, n, height, size)[rows, None, :, None]  # [rows, 1, H, 1]
            across = _offsets(at, n, width, size)[rows, None, None, :]  # [rows, 1, 1, W]
            tried = torch.where(down & across, signs(n, channels, 1, 1)[rows], change[rows])
        now = losses(rows, tried)
        better = (now > best[rows]) | (query == 0)
        change[rows[better]], best[rows[better]] = tried[better], now[better]
        how.progress(len(rows))
    change[best < before] = 0
    return (clean + change).clamp(0, 1)


def _offsets(at: Opened[SquareOptions], n: int, length: int, size: int) -> torch.Tensor:
    """`[n, length]`: true on `size` neighbours from a place that is uniform over all."""
    first = torch.randint(length - size + 1, (n, 1), generator=at.generator)
    place = torch.arange(length)
    return ((place >= first) & (place < first + size)).to(at.device)


def side(p: float, tried: int, shape: torch.Size) -> int:
    """Side of the next square in pixels, after `tried` squares, on images of `[N, C, H, W]`."""
    height, width = shape[2:]
    share = p / 2 ** sum(tried > at for at in HALVINGS)
    return min(max(round((share * height * width) ** 0.5), 1), height, width)
