"""What APGD works on: its settings, the samples in the batch, and the queue of those that wait."""

from dataclasses import dataclass, fields

import torch

from advprune.attacks.opening import Options
from advprune.core.device import salted


@dataclass(frozen=True)
class APGDSettings(Options):
    """How to attack; more in `Options`.

    eps: budget in units of the pixel range. steps: gradient steps. loss: `ce`, `dlr`, or
    `targeted`: the difference of logits ratio towards a wrong class, one run for each of `targets`
    classes, in the order of the clean logits. restarts: random starts (a run each), drawn by
    `seed`; a sample's start does not depend on the batch. start: images to begin from in the place
    of the first draws. drop: stop working on a sample once it is broken (never with a model that
    draws at random). progress: of `N * steps * restarts`, for `targeted` times `targets`.
    """

    eps: float
    steps: int = 100
    loss: str = "ce"
    targets: int = 9
    restarts: int = 1
    start: torch.Tensor | None = None
    drop: bool = True
    rho: float = 0.75

    @property
    def intervals(self) -> tuple[int, int, int]:
        """Steps before the first check of the step size, how many fewer before each next one, and
        the fewest (0.22, 0.03 and 0.06 of the steps, as published)."""
        first, fewer, fewest = (max(int(part * self.steps), 1) for part in (0.22, 0.03, 0.06))
        return first, fewer, fewest


@dataclass
class Pool:
    """The samples being worked on. All tensors have the samples as their first dimension.

    sample: its number. aim: `[n]` the label, or `[n, 2]` label and target. before, gradient: the
    iterate before `current`, the gradient at `current`. best…: the iterate of highest loss. step:
    `[n, 1, 1, 1]`. done: steps taken. every, left: steps from one check of the step size to the
    next, and still to go. rises, last: in how many of them the loss rose, and its value. checked,
    halved: the highest loss at the check before, and whether the step was halved there.
    """

    sample: torch.Tensor
    aim: torch.Tensor
    clean: torch.Tensor
    current: torch.Tensor
    before: torch.Tensor
    gradient: torch.Tensor
    best: torch.Tensor
    best_gradient: torch.Tensor
    best_loss: torch.Tensor
    step: torch.Tensor
    done: torch.Tensor
    every: torch.Tensor
    left: torch.Tensor
    rises: torch.Tensor
    last: torch.Tensor
    checked: torch.Tensor
    halved: torch.Tensor

    @classmethod
    def of(
        cls,
        sample: torch.Tensor,
        aim: torch.Tensor,
        clean: torch.Tensor,
        start: torch.Tensor,
        settings: APGDSettings,
    ) -> "Pool":
        """Samples that have taken no step yet. `last` is 0, not the loss at the start: so is it in
        the authors' code, which published numbers come from."""
        n, first = len(sample), settings.intervals[0]
        zeros, count = clean.new_zeros(n), torch.zeros_like(sample)
        step = clean.new_full((n, 1, 1, 1), 2 * settings.eps)
        unset = torch.zeros_like(clean)
        images = (clean, start, start.clone(), unset, start.clone(), unset.clone())
        check = (count + first, count + first, zeros.clone(), zeros.clone(), zeros.clone())
        return cls(sample, aim, *images, zeros - torch.inf, step, count, *check, count == 0)

    def pick(self, keep: torch.Tensor) -> "Pool":
        """The samples of a mask."""
        rows = keep.nonzero()[:, 0]  # once: on a GPU, a mask as an index would wait every time
        return Pool(*(getattr(self, field.name)[rows] for field in fields(self)))

    def with_(self, other: "Pool") -> "Pool":
        """These samples and others behind them."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Pool(*(torch.cat(pair) for pair in pairs))


class Queue:
    """The runs that wait: round by round (a restart, a target class), the samples not yet decided.

    decided: `[n]`, set from outside. targets: `[n, t]` classes; t is 0 where there are none.
    """

    def __init__(
        self,
        numbers: torch.Tensor,
        images: torch.Tensor,
        labels: torch.Tensor,
        targets: torch.Tensor,
        settings: APGDSettings,
    ) -> None:
        self.numbers, self.images, self.labels, self.targets = numbers, images, labels, targets
        self.settings = settings
        self.decided = torch.zeros_like(labels, dtype=torch.bool)
        self.rounds = settings.restarts * max(targets.shape[1], 1)
        self.opened, self.waiting = 0, labels.new_zeros(0)

    def fill(self, pool: Pool | None) -> Pool | None:
        """The pool and as many of those that wait as there is room for; None where all is done."""
        while (count := self.settings.batch - (0 if pool is None else len(pool.sample))) > 0:
            self.waiting = self.waiting[~self.decided[self.waiting]]
            if not len(self.waiting):
                if self.opened == self.rounds:
                    break
                self.opened += 1
                self.waiting = torch.arange(len(self.labels), device=self.labels.device)
                continue
            rows, self.waiting = self.waiting[:count], self.waiting[count:]
            fresh = self._begin(rows)
            pool = fresh if pool is None else pool.with_(fresh)
        return pool if pool is not None and len(pool.sample) else None

    def _begin(self, rows: torch.Tensor) -> Pool:
        """Samples at their starts: random points at a distance of eps, cut to [0, 1]."""
        s, clean, aim = self.settings, self.images[rows], self.labels[rows]
        if count := self.targets.shape[1]:
            aim = torch.stack([aim, self.targets[rows, (self.opened - 1) % count]], 1)
        numbers = self.numbers[rows.cpu()]
        if s.start is not None and self.opened == 1:
            return Pool.of(rows, aim, clean, s.start[numbers].to(clean), s)
        shape, change = clean.shape[1:], torch.empty(clean.shape)
        for row, number in enumerate(numbers.tolist()):
            seed = salted(s.seed, "apgd", str(self.opened), str(number))
            generator = torch.Generator().manual_seed(seed)
            if s.norm == "Linf":
                noise = 2 * torch.rand(shape, generator=generator) - 1
                change[row] = noise / noise.abs().max()
            else:
                noise = torch.randn(shape, generator=generator)
                change[row] = noise / noise.norm()
        return Pool.of(rows, aim, clean, (clean + s.eps * change.to(clean)).clamp(0, 1), s)
