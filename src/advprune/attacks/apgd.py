"""Auto-PGD: projected gradient ascent that chooses its own step size.

Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
Parameter-free Attacks (ICML 2020), Algorithm 1. The step starts at `2 eps` and is halved, and the
search goes back to the best point so far, where the loss has stopped rising.

A run is one start of one sample, towards one class where the loss is targeted. Runs wait in a queue
and take turns in a batch: those that are over, and those of samples of a deterministic model that
are misclassified, make room for the next ones. So every run counts its own steps.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.losses import Loss, cross_entropy, dlr
from advprune.attacks.opening import Opened, opened, wide
from advprune.attacks.pgd import ascend, project
from advprune.attacks.registry import Context, method
from advprune.core.attack_settings import GradientAttack
from advprune.core.device import salted

TOGETHER = 16  # batches' worth of images that share a queue: however many processes there are
RHO = 0.75  # the step is halved where the loss rose in no larger part of the steps


class APGDSettings(GradientAttack):
    """Settings of `method: apgd`.

    steps: gradient steps. loss: `ce`, `dlr`, or `targeted`: the difference of logits ratio towards
    a wrong class, one run for each of `targets` classes, in the order of the clean logits.
    restarts: random starts (a run each), drawn by `seed`; given images to begin from take the place
    of the first. drop: stop working on a sample once it is misclassified (never with a model that
    draws at random). Progress is of `N * steps * restarts`, for `targeted` times `targets`.
    """

    method: Literal["apgd"]
    steps: int = Field(default=100, ge=1, le=100000)
    loss: Literal["ce", "dlr", "targeted"] = "ce"
    targets: int = Field(default=9, ge=1, le=1000)
    restarts: int = Field(default=1, ge=1, le=1000)
    drop: bool = True

    def runs(self, classes: int) -> int:
        """How often each image is attacked from every start."""
        return min(self.targets, classes - 1) if self.loss == "targeted" else 1


@method("apgd", APGDSettings, starts=True)
def apgd(model: nn.Module, images: Tensor, labels: Tensor, s: APGDSettings, how: Context) -> Tensor:
    """A misclassified sample comes back as its first such iterate (one that is wrong at once:
    unchanged); any other as its iterate of highest loss. Without `drop`, all come back so."""
    with opened(model, images, labels, s, how) as at:
        at = replace(at, setting=s.model_copy(update={"drop": s.drop and not at.randomized}))
        every = torch.arange(len(images))
        (found,) = at.run(partial(_search, at), every, every, together=TOGETHER)
    return found


def _search(
    at: Opened[APGDSettings], images: Tensor, labels: Tensor, numbers: Tensor
) -> tuple[Tensor]:
    """The images found. `numbers` are theirs in the whole set."""
    s, loss, logits = at.setting, LOSSES[at.setting.loss], at.logits(images)
    aims = labels[:, None, None]  # [n, 1, 1]; targeted: label and class, [n, targets, 2]
    if s.loss == "targeted":
        others = logits.scatter(1, labels[:, None], -torch.inf).argsort(1, descending=True)
        others = others[:, : min(s.targets, logits.shape[1] - 1), None]
        aims = torch.cat([aims.expand_as(others), others], 2)
    found, losses = images.clone(), images.new_full((len(images),), -torch.inf)
    decided = s.drop & (logits.argmax(1) != labels)

    def waiting() -> Iterator[tuple[int, int]]:
        """Turn by turn, the samples that are not decided by then."""
        for turn in range(s.restarts * aims.shape[1]):
            yield from ((turn, sample) for sample in range(len(images)) if not decided[sample])

    queue, given, batch = waiting(), (images, aims, numbers), at.how.batch
    runs = _begun(at, given, list(islice(queue, batch)))
    while len(runs.sample):
        runs.gradient, logits = at.gradient(runs.current, runs.aim, loss)
        if s.drop:
            fooled = at.fooled(logits, runs.current, runs.clean, labels[runs.sample])
            losses[runs.sample[fooled]] = torch.inf
            found[runs.sample[fooled]] = at.shown(runs.current[fooled], runs.clean[fooled])
        decided |= losses == torch.inf
        now, over = loss(logits, runs.aim), runs.done == s.steps
        at.how.progress(int((runs.done > 0).sum()))
        better = now > runs.best_loss
        runs.best_loss = torch.where(better, now, runs.best_loss)
        runs.best = torch.where(wide(better), runs.current, runs.best)
        runs.best_gradient = torch.where(wide(better), runs.gradient, runs.best_gradient)
        better = over & (runs.best_loss > losses[runs.sample])
        # Several runs of a sample may end in the same step: the best of them counts.
        losses.scatter_reduce_(0, runs.sample[better], runs.best_loss[better], "amax")
        better &= runs.best_loss == losses[runs.sample]
        found[runs.sample[better]] = runs.best[better]

        # By number: on a GPU, a mask as an index would wait every time.
        stays = (~over & ~decided[runs.sample]).nonzero()[:, 0]
        runs = SimpleNamespace(**{name: state[stays] for name, state in vars(runs).items()})
        _advance(s, runs, now[stays])
        if fresh := list(islice(queue, batch - len(stays))):
            more = vars(_begun(at, given, fresh))
            runs = SimpleNamespace(**{n: torch.cat([t, more[n]]) for n, t in vars(runs).items()})
    return (found,)


def _begun(
    at: Opened[APGDSettings], given: tuple[Tensor, ...], fresh: list[tuple[int, int]]
) -> SimpleNamespace:
    """What is known of runs, by turn and sample, before their first step; each tensor is `[r, …]`.

    They start at random points at a distance of eps, cut to [0, 1].
    """
    (images, aims, numbers), s = given, at.setting
    turn, sample = torch.tensor(fresh, device=images.device).view(-1, 2).long().unbind(1)
    clean, number = images[sample], numbers[sample].cpu()
    change = torch.empty(clean.shape)
    for place, key in enumerate(zip(turn.tolist(), number.tolist(), strict=True)):
        seed = salted(at.how.seed, "apgd", str(key[0] + 1), str(key[1]))
        generator = torch.Generator().manual_seed(seed)
        if s.norm == "Linf":
            noise = 2 * torch.rand(clean.shape[1:], generator=generator) - 1
            change[place] = noise / noise.abs().max()
        else:
            noise = torch.randn(clean.shape[1:], generator=generator)
            change[place] = noise / noise.norm()
    start = (clean + s.eps * change.to(clean)).clamp(0, 1)
    if at.how.start is not None:
        start = torch.where(wide(turn == 0), at.how.start[number].to(clean), start)
    count, zeros, nothing = torch.zeros_like(sample), clean.new_zeros(len(sample)), clean * 0
    first = max(int(0.22 * s.steps), 1)
    return SimpleNamespace(
        sample=sample,
        aim=aims[sample, turn % aims.shape[1]].squeeze(1),  # [r], or [r, 2] where targeted
        clean=clean,
        before=start,  # the iterate before `current`
        current=start,
        gradient=nothing,
        best=start,  # the iterate of highest loss
        best_gradient=nothing,
        best_loss=zeros - torch.inf,
        step=clean.new_full((len(sample), 1, 1, 1), 2 * s.eps),
        done=count,
        every=count + first,  # steps from one check of the step size to the next
        left=count + first,  # of those, still to go
        rises=zeros,  # in how many of them the loss rose
        last=zeros,  # the loss before; 0 at the start, as in the authors' code
        checked=zeros,  # the highest loss at the last check
        halved=count > 0,  # whether the step was halved there
    )


def _advance(s: APGDSettings, runs: SimpleNamespace, now: Tensor) -> None:
    """Choose the step size from the losses `[r]`, and take a step (Algorithm 1, lines 7 to 17)."""
    moved = runs.done > 0
    runs.rises = runs.rises + (moved & (now > runs.last))
    runs.last = torch.where(moved, now, runs.last)
    runs.checked = torch.where(moved, runs.checked, now)
    runs.left = runs.left - moved.long()
    due = moved & (runs.left == 0)
    few, flat = runs.rises <= RHO * runs.every, runs.checked >= runs.best_loss
    halve = due & (few | (flat & ~runs.halved))
    runs.step = torch.where(wide(halve), runs.step / 2, runs.step)
    runs.current = torch.where(wide(halve), runs.best, runs.current)
    runs.gradient = torch.where(wide(halve), runs.best_gradient, runs.gradient)
    fewer, fewest = (max(int(part * s.steps), 1) for part in (0.03, 0.06))
    runs.every = torch.where(due, (runs.every - fewer).clamp_min(fewest), runs.every)
    runs.left = torch.where(due, runs.every, runs.left)
    runs.rises = torch.where(due, 0.0, runs.rises)
    runs.halved = torch.where(due, halve, runs.halved)
    runs.checked = torch.where(due, runs.best_loss, runs.checked)

    goal = ascend(runs.current, runs.gradient, runs.step, s.norm)
    goal = project(goal, runs.clean, s.eps, s.norm)
    part = torch.where(wide(moved), 0.75, 1.0).to(goal)  # the rest is of the step before
    mixed = part * (goal - runs.current) + (1 - part) * (runs.current - runs.before)
    after = project(runs.current + mixed, runs.clean, s.eps, s.norm)
    runs.before, runs.current, runs.done = runs.current, after, runs.done + 1


def targeted_dlr(logits: Tensor, aim: Tensor) -> Tensor:
    """`(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)`, shape `[N]`, of labels and targets `[N, 2]`.

    Croce and Hein (2020), section 4. Of fewer than four classes: the difference alone.
    """
    own, target = logits.gather(1, aim).unbind(1)
    if logits.shape[1] < 4:
        return target - own
    top = logits.topk(4, dim=1).values
    return (target - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "dlr": dlr, "targeted": targeted_dlr}
