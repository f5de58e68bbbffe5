"""Square attack: random search over squares of pixels, without a gradient.

Andriushchenko et al., Square Attack: a query-efficient black-box adversarial attack via random
search (ECCV 2020), Algorithms 1 to 3, for the Linf and the L2 ball. As the paper, but not the
authors' code, has it, each image has squares and signs of its own, and squares reach the last row
and column.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.engine import by_batch
from advprune.attacks.losses import margin
from advprune.attacks.opening import Opened, opened
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import QueryAttack

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # counted in squares tried
SHARE = {"Linf": 0.8, "L2": 0.1}  # of the image, that the first squares take
GRID = 5  # bumps along the shorter side of an image, at the start of L2


class SquareSettings(QueryAttack):
    """Settings of `method: square`.

    queries: per image, the stripes included (the look at the clean image is not). p: share of the
    image that the first squares take; null: as published, 0.8 in Linf (AutoAttack's), 0.1 in L2.
    draws: whose mean logits decide; the loss that is kept is that of a lucky draw, so score the
    images afresh. Progress is of at most `N * queries`: those that decided images save are not
    reported.
    """

    method: Literal["square"]
    p: float | None = Field(default=None, gt=0, le=1)


@method("square", SquareSettings, gradients=False)
def square(
    model: nn.Module, images: Tensor, labels: Tensor, s: SquareSettings, how: Context
) -> Tensor:
    """Changes are proposed at random and kept where the margin loss `max_{i != y} z_i - z_y` rises.
    In Linf: stripes, then squares of `x +- eps`, one sign per channel. In L2: a grid of bumps, then
    a square takes over what another one holds of the budget. A misclassified image gets no more
    queries, unless the model draws at random. Every image comes back at its highest loss, never
    below the loss of the clean image, which it then is."""
    with opened(model, images, labels, s, how) as at, torch.no_grad():
        return _search(at, SHARE[s.norm] if s.p is None else s.p).to(images.device)


def _search(at: Opened[SquareSettings], share: float) -> Tensor:
    """The images found, `[N, C, H, W]`. Changes are cut to [0, 1] when shown; they are drawn for
    all images, so that one does not depend on which others are left."""
    clean = at.images.to(at.device).contiguous(memory_format=torch.channels_last)
    labels, how, s = at.labels.to(at.device), at.how, at.setting
    proposed = _squares if s.norm == "Linf" else _bumps

    def losses(rows: Tensor, change: Tensor) -> Tensor:
        """The margins of `clean[rows] + change` as scored, `[len(rows)]`, on the mean logits."""

        def of(part: tuple[Tensor, Tensor]) -> Tensor:
            own = clean[part[0]]
            points = at.shown((own + part[1]).clamp(0, 1), own)
            return margin(at.logits(points), labels[part[0]]).cpu()

        parts = list(zip(rows.split(how.batch), change.split(how.batch), strict=True))
        return torch.cat(by_batch(at.exact, parts, of, how.cost)).to(clean)

    rows, change = torch.arange(len(clean), device=clean.device), torch.zeros_like(clean)
    before = losses(rows, change)
    best = before.clone()
    for query in range(s.queries):
        rows = rows if at.randomized else rows[best[rows] <= 0]  # those that are still right
        if not len(rows):
            break
        size = side(share, query - 1, clean.shape, odd=s.norm == "L2") if query else 0
        tried = proposed(at, size, change, rows)
        if s.norm == "L2":  # what the range of pixels cuts off, other squares may use
            tried = (clean[rows] + tried).clamp(0, 1) - clean[rows]
        now = losses(rows, tried)
        better = (now > best[rows]) | (query == 0)  # the first is kept whatever it does
        change[rows[better]], best[rows[better]] = tried[better], now[better]
        how.progress(len(rows))
    change[best < before] = 0
    return (clean + change).clamp(0, 1)


def _squares(at: Opened[SquareSettings], size: int, change: Tensor, rows: Tensor) -> Tensor:
    """Changes of `rows` in the Linf ball, `[len(rows), C, H, W]`: the present change with a square
    of `+-eps` of that size in it; of size 0: stripes of `+-eps`, to begin with."""
    n, channels, height, width = change.shape
    if not size:
        stripes = at.setting.eps * _signs(at, change, n, channels, 1, width)
        return stripes.expand(-1, -1, height, -1)[rows]
    down = _offsets(at, n, height, size)[rows, None, :, None]  # [rows, 1, H, 1]
    across = _offsets(at, n, width, size)[rows, None, None, :]  # [rows, 1, 1, W]
    signs = at.setting.eps * _signs(at, change, n, channels, 1, 1)[rows]
    return torch.where(down & across, signs, change[rows])


def _bumps(at: Opened[SquareSettings], size: int, change: Tensor, rows: Tensor) -> Tensor:
    """Changes of `rows` in the L2 ball, `[len(rows), C, H, W]`: the present change, where one
    square, `to`, takes over what another, `of`, holds of the budget and what is unused, with a bump
    and its opposite side by side added to its shape; of size 0: a grid of bumps, to begin with."""
    n, channels, height, width = change.shape
    if not size:
        edge = max(min(height, width) // GRID, 1)
        down, across = height // edge, width // edge
        top, left = (height - down * edge) // 2, (width - across * edge) // 2
        signs = _signs(at, change, n, channels, down, across)[rows]
        grid = torch.zeros_like(change[rows])
        inside = grid[:, :, top : top + down * edge, left : left + across * edge]
        inside[:] = torch.kron(signs, _bump(edge, edge).to(change))
        return at.setting.eps * grid / grid.flatten(1).norm(dim=1)[:, None, None, None]
    to, of = (
        _offsets(at, n, height, size)[rows, None, :, None]
        & _offsets(at, n, width, size)[rows, None, None, :]
        for _ in range(2)
    )  # [rows, 1, H, W]
    pair = torch.cat([_bump(size, size // 2), -_bump(size, size - size // 2)], dim=1)
    pair = (pair / pair.norm()).to(change)
    upright = _signs(at, change, n, 1, 1, 1)[rows] > 0
    pair = torch.where(upright, pair, pair.T) * _signs(at, change, n, channels, 1, 1)[rows]

    def sizes(values: Tensor) -> Tensor:
        return values.flatten(2).norm(dim=2)[:, :, None, None]  # [rows, C, 1, 1]

    present = change[rows]
    held = sizes(present).square().sum(1, keepdim=True)
    unused = (at.setting.eps**2 - held).clamp_min(0) / channels
    budget = (sizes(present * (to | of)).square() + unused).sqrt()
    shape = torch.zeros_like(present).masked_scatter(to.expand_as(present), pair)
    shape = shape + present * to / sizes(present * to).clamp_min(1e-12)
    moved = budget * shape / sizes(shape).clamp_min(1e-12)
    return torch.where(to, moved, present * ~of)


def _bump(height: int, width: int) -> Tensor:
    """The paper's `eta`, highest in the middle: of a pixel in ring r around it, the sum of `1/j^2`
    for j from r + 1 to `height // 2 + 1`."""
    down, across = (torch.arange(length) - length // 2 for length in (height, width))
    ring = torch.maximum(down.abs()[:, None], across.abs()[None, :])
    terms = 1 / torch.arange(1, height // 2 + 2) ** 2
    return terms.flip(0).cumsum(0).flip(0)[ring]


def _signs(at: Opened[SquareSettings], like: Tensor, *shape: int) -> Tensor:
    return (2 * torch.randint(2, shape, generator=at.generator) - 1).to(like)


def _offsets(at: Opened[SquareSettings], n: int, length: int, size: int) -> Tensor:
    """`[n, length]`: true on `size` neighbours from a place that is uniform over all."""
    first = torch.randint(length - size + 1, (n, 1), generator=at.generator)
    place = torch.arange(length)
    return ((place >= first) & (place < first + size)).to(at.device)


def side(p: float, tried: int, shape: torch.Size, odd: bool = False) -> int:
    """Side of the next square in pixels, after `tried` squares, on images of `[N, C, H, W]`:
    nearest to `sqrt(p_i H W)`, where p_i starts at `p` and halves after `HALVINGS` squares, which
    are not rescaled to other budgets, as in AutoAttack; `odd`, from 3 on, in L2."""
    height, width = shape[2:]
    share = p / 2 ** sum(tried > at for at in HALVINGS)
    size = max(round((share * height * width) ** 0.5), 3 if odd else 1)
    return min(size + odd * (1 - size % 2), height, width)
