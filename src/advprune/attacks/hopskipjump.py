"""HopSkipJump: a search that sees nothing but the class that is answered.

Chen, Jordan and Wainwright, HopSkipJumpAttack: A Query-Efficient Decision-Based Attack (IEEE S&P
2020), Algorithm 2, for Linf and L2: bisection towards the clean image, the border's normal by
random answers around that point, a step along it, halved until the class is wrong again. Other than
in the paper, the search begins at another of the given images where noise does not fool; the
nearest point of all iterations is returned; and points around the border are never closer than
`GRAIN`, since an image of 8 bits and an integer layer do not see smaller changes.
"""

from functools import partial
from math import ceil, log2
from typing import Literal

import torch
from torch import Tensor, nn

from advprune.attacks.opening import Opened, opened, wide
from advprune.attacks.pgd import project, sizes
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import QueryAttack
from advprune.core.device import salted
from advprune.models.stochastic import split

STARTS = 20  # random images, and then as many of the given ones, that are tried first
FIRST = 100  # answers for the first normal; the t-th takes sqrt(t) times as many
HALVINGS = 10  # of a step, at most
GRAIN = 0.5 / 255  # of a pixel, on average
TOGETHER = 16  # directions of an image drawn at a time: other numbers draw other directions


class HopSkipJumpSettings(QueryAttack):
    """Settings of `method: hopskipjump`; eps: the budget that its images fill."""

    method: Literal["hopskipjump"]


@method("hopskipjump", HopSkipJumpSettings, gradients=False, distances=True)
def hopskipjump(
    model: nn.Module, images: Tensor, labels: Tensor, s: HopSkipJumpSettings, how: Context
) -> tuple[Tensor, Tensor]:
    """Images and distances: 0 where the clean image is misclassified, and infinite, with the clean
    image, where nothing fools."""
    with opened(model, images, labels, s, how) as at, torch.no_grad():
        every = torch.arange(len(images))
        found, distances = at.run(partial(_search, at), every, every)
    return found, distances


def _search(
    at: Opened[HopSkipJumpSettings], clean: Tensor, labels: Tensor, numbers: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and distances; what is drawn depends on `numbers`, theirs in the whole set, alone."""
    walk, queries = _Walk(at, clean, labels, numbers.tolist()), at.setting.queries
    found, distances = clean.clone(), clean.new_full((len(clean),), torch.inf)
    every = torch.arange(len(clean), device=clean.device)
    already = walk.wrong(every, clean)
    distances[already] = 0.0
    rows, border = walk.begin(every[~already], queries)  # on the far side of the border
    move, turn, told = torch.zeros_like(clean), 0, 0
    while len(rows):
        border[rows] = walk.towards_clean(rows, border[rows])
        size = sizes(border[rows] - clean[rows], at.setting.norm)
        closer = size < distances[rows]
        found[rows[closer]], distances[rows[closer]] = border[rows[closer]], size[closer]
        turn, asked = turn + 1, int(walk.spent.sum())
        at.how.progress(asked - told)
        told = asked
        count = int(FIRST * turn**0.5)
        enough = walk.spent[rows] + count + HALVINGS + walk.halvings <= queries
        rows, size = rows[enough], size[enough]
        if not len(rows):
            break
        move[rows] = walk.normal(rows, border[rows], size, count)
        left, step = rows, size / turn**0.5
        for _ in range(HALVINGS):
            tried = (border[left] + wide(step) * move[left]).clamp(0, 1)
            fools = walk.wrong(left, tried)
            border[left[fools]] = tried[fools]
            left, step = left[~fools], step[~fools] / 2
            if not len(left):
                break
    at.how.progress(queries * len(clean) - told)
    return found, distances


class _Walk:
    """What a walk along the border asks of the model, on some images."""

    def __init__(
        self,
        at: Opened[HopSkipJumpSettings],
        clean: Tensor,
        labels: Tensor,
        numbers: list[int],
    ) -> None:
        self.at, self.clean, self.labels = at, clean, labels
        seed = at.generator.initial_seed()
        self.drawn = [torch.Generator().manual_seed(salted(seed, str(n))) for n in numbers]
        self.spent = torch.zeros_like(labels)  # queries of each image
        # To a part of d^-3/2 (L2) or d^-2 (Linf) of the way, as far as float32 can tell.
        power = 2.0 if at.setting.norm == "Linf" else 1.5
        self.halvings = min(ceil(power * log2(clean[0].numel())), 20)

    def wrong(self, rows: Tensor, points: Tensor) -> Tensor:
        """Whether the answer to points `[r, C, H, W]`, or `[r, k, C, H, W]`, is not the label."""
        shape = points.shape[:-3]
        self.spent[rows] += shape[1:].numel()
        labels = self.labels[rows].view(-1, *[1] * (len(shape) - 1))
        return self.at.logits(points.flatten(0, -4)).argmax(1).view(shape) != labels

    def begin(self, rows: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """For each image one that fools: the rows that have one, and all such images."""
        start, left, images = self.clean.clone(), rows, self.at.images
        for attempt in range(2 * STARTS):
            left = left[self.spent[left] + self.halvings < queries]
            if not len(left):
                break
            tried = torch.stack(
                [
                    torch.rand(images.shape[1:], generator=one)
                    if attempt < STARTS
                    else images[int(torch.randint(len(images), (), generator=one))]
                    for one in (self.drawn[row] for row in left.tolist())
                ]
            ).to(start)
            fools = self.wrong(left, tried)
            start[left[fools]] = tried[fools]
            left = left[~fools]
        moved = (start[rows] != self.clean[rows]).flatten(1).any(1)
        return rows[moved], start

    def towards_clean(self, rows: Tensor, outer: Tensor) -> Tensor:
        """The nearest point to the clean image that fools, on the way there from `outer`, which
        does: by bisection of the ball's radius."""
        clean, norm = self.clean[rows], self.at.setting.norm
        high = sizes(outer - clean, norm)
        low, point = torch.zeros_like(high), outer
        for _ in range(self.halvings):
            middle = (low + high) / 2
            tried = project(outer, clean, wide(middle), norm)
            fools = self.wrong(rows, tried)
            point = torch.where(wide(fools), tried, point)
            low, high = torch.where(fools, low, middle), torch.where(fools, middle, high)
        return point

    def normal(self, rows: Tensor, points: Tensor, size: Tensor, count: int) -> Tensor:
        """The direction in which a step leads beyond the border, by `count` random answers.

        `mean of (f_i - mean f) u_i` with f_i = 1 where `point + delta u_i` is wrong and -1 where it
        is right (the estimate with a baseline); its sign for Linf.
        """
        linf, dimensions = self.at.setting.norm == "Linf", points[0].numel()
        delta = (size / dimensions).clamp_min(GRAIN * dimensions**0.5)[:, None, None, None, None]
        total, directions = torch.zeros_like(points), torch.zeros_like(points)
        answers = torch.zeros_like(size)
        for part in split(count, TOGETHER):
            shape = (part, *points.shape[1:])
            draw = torch.rand if linf else torch.randn
            u = torch.stack([draw(shape, generator=self.drawn[row]) for row in rows.tolist()])
            u = (2 * u - 1 if linf else u).to(points)  # [r, part, C, H, W]
            u = u / u.flatten(2).norm(dim=2)[:, :, None, None, None]
            shown = (points[:, None] + delta * u).clamp(0, 1)
            u = (shown - points[:, None]) / delta
            f = 2 * self.wrong(rows, shown).to(points) - 1  # [r, part]
            total += (f[:, :, None, None, None] * u).sum(1)
            directions += u.sum(1)
            answers += f.sum(1)
        mean = answers / count
        alike = mean.abs() == 1  # no answer tells the sides apart
        found = total - wide(mean * ~alike) * directions
        if linf:
            return found.sign()
        return found / wide(found.flatten(1).norm(dim=1).clamp_min(1e-12))
