"""Square attack: random search over squares of pixels, without a gradient.

Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random
search (ECCV 2020), Algorithms 1 and 2, for the Linf ball. It sees logits alone, so masked gradients
do not hinder it: where it beats a gradient attack, the gradients are not to be trusted.

Two differences from the authors' code, both as the paper has it: each image has squares and signs
of its own, and squares reach the last row and column, which that code leaves out.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from advprune.attacks.checks import check_choice, check_numbers, refuse
from advprune.attacks.engine import by_batch
from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, Options, opened, options
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import Attack
from advprune.models.stochastic import is_randomized

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # counted in squares tried


@dataclass(frozen=True)
class SquareOptions(Options):
    """How `square` searches; more in `Options`.

    queries: per image, the stripes included (the look at the clean image is not).
    p: share of the image that the first squares take.
    draws: of any model that draws; whether the loss rose rests on the mean logits. Its noise stays
    in it, and the loss that is kept is that of a lucky draw, so score the images afresh.
    progress: of at most `N * queries`: those that decided images save are not reported.
    """

    queries: int = 1000
    p: float = 0.8


def square(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    options: SquareOptions | None = None,
    **changes: Any,
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

    options, changes: SquareOptions, and fields of it by name. Raises ValueError on shapes, ranges
    or options that make no sense.
    """
    how = replace(options or SquareOptions(), **changes)
    check_numbers("square", 1, queries=how.queries)
    check_choice("square", "norm", how.norm, ("Linf",))
    part = f"p is {how.p}; it is a part of the image, above 0 and at most 1"
    refuse("square", {part: not 0 < how.p <= 1})
    with opened("square", model, (images, labels), eps, how) as at, torch.no_grad():
        shown = images.to(at.device).contiguous(memory_format=torch.channels_last)
        change = _Search(at, shown, labels.to(at.device))()
    return (images + change.to(images.device)).clamp(0, 1)


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


@method("square", SquareSettings, differentiates=False)
def _square(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, s: SquareSettings, how: Context
) -> torch.Tensor:
    draws = s.draws if is_randomized(model) else 1
    return square(model, images, labels, s.eps, options(SquareOptions, s, how, draws=draws))


@dataclass(frozen=True)
class _Search:
    """The search over all images. Changes hold `+-eps` (or 0) and are cut to [0, 1] when shown."""

    at: Opened[SquareOptions]
    images: torch.Tensor
    labels: torch.Tensor

    def __call__(self) -> torch.Tensor:
        """The change of every image, `[N, C, H, W]`."""
        (n, channels, height, width), how = self.images.shape, self.at.options
        rows = torch.arange(n, device=self.images.device)
        change = torch.zeros_like(self.images)
        clean = self._losses(rows, change)
        losses = clean.clone()
        rows = self._left(rows, losses)
        stripes = self.at.eps * self._signs(n, channels, 1, width).expand(-1, -1, height, -1)
        change[rows] = stripes[rows]
        losses[rows] = self._losses(rows, change[rows])
        how.progress(len(rows))
        for tried in range(how.queries - 1):
            rows = self._left(rows, losses)
            if not len(rows):
                break
            candidate = self._with_square(change, rows, side(how.p, tried, change.shape))
            now = self._losses(rows, candidate)
            better = now > losses[rows]
            change[rows[better]], losses[rows[better]] = candidate[better], now[better]
            how.progress(len(rows))
        change[losses < clean] = 0
        return change

    def _left(self, rows: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Those of `rows` that are worked on: the images still right, or all of a random model."""
        return rows if self.at.randomized else rows[losses[rows] <= 0]

    def _losses(self, rows: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        """The margins of `images[rows] + change`, `[len(rows)]`, on the mean logits."""

        def of(part: torch.Tensor) -> torch.Tensor:
            points = (self.images[rows[part]] + change[part]).clamp(0, 1)
            return margin(self.at.logits(points), self.labels[rows[part]]).cpu()

        parts = torch.arange(len(rows), device=rows.device).split(self.at.options.batch)
        return torch.cat(by_batch(self.at.exact, parts, of, self.at.cost)).to(self.images)

    def _with_square(self, change: torch.Tensor, rows: torch.Tensor, size: int) -> torch.Tensor:
        """`change[rows]` with a random square set to `+-eps`, a sign for each channel.

        Drawn for all images, so that an image's squares do not depend on which others are left.
        """
        n, channels, height, width = change.shape
        down = self._offsets(n, height, size)[rows, None, :, None]  # [rows, 1, H, 1]
        across = self._offsets(n, width, size)[rows, None, None, :]  # [rows, 1, 1, W]
        signs = self.at.eps * self._signs(n, channels, 1, 1)[rows]
        return torch.where(down & across, signs, change[rows])

    def _offsets(self, n: int, length: int, size: int) -> torch.Tensor:
        """`[n, length]`: true on `size` neighbours from a place that is uniform over all."""
        first = torch.randint(length - size + 1, (n, 1), generator=self.at.generator)
        place = torch.arange(length)
        return ((place >= first) & (place < first + size)).to(self.images.device)

    def _signs(self, *shape: int) -> torch.Tensor:
        return (2 * torch.randint(2, shape, generator=self.at.generator) - 1).to(self.images)


def side(p: float, tried: int, shape: torch.Size) -> int:
    """Side of the next square in pixels, after `tried` squares, on images of `[N, C, H, W]`."""
    height, width = shape[2:]
    share = p / 2 ** sum(tried > at for at in HALVINGS)
    return min(max(round((share * height * width) ** 0.5), 1), height, width)
