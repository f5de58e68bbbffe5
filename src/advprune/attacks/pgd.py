"""Projected gradient descent, written to be fast and to leave no trace.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks (ICLR 2018), section
2.1: from a random point of the eps-ball, step along the sign (Linf) or the direction (L2) of the
loss gradient and project back. The attack works on a private copy of the model (engine.py), so the
model, its modes, its gradients and the global random state stay as they were.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import LOSSES, Loss
from advprune.core.device import device_of
from advprune.core.distributed import alone, spread
from advprune.models.stochastic import RULES, drawn_logits, is_randomized, mean_logits, set_backward

Progress = Callable[[int], None]


def pgd(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    step: float,
    steps: int,
    *,
    norm: str = "Linf",
    loss: str = "ce",
    restarts: int = 1,
    random_start: bool = True,
    start: torch.Tensor | None = None,
    keep: str = "last",
    drop: bool = False,
    generator: torch.Generator | None = None,
    batch: int = 128,
    fold: bool = True,
    precision: str = "float32",
    draws: int = 1,
    backward: str | None = None,
    momentum: float = 0.0,
    cost: Cost | None = None,
    progress: Progress | None = None,
) -> torch.Tensor:
    """Attack `images` `[N, C, H, W]` in [0, 1]; return images of the same shape, in [0, 1].

    eps, step: budget and step size in units of the pixel range, in the given norm (`Linf`, `L2`).
    steps: gradient steps; 0 gives the starting points. loss: `ce`, `margin` or `dlr`.
    keep: `last` iterate (as published), or the `best`, the one of highest loss.
    restarts: several starts; per sample, the result of highest loss is returned.
    start: images to start from instead of a random point (then one restart only).
    drop: stop working on a sample once an iterate of it is misclassified and return that iterate.
    Much faster on weak models, right where only accuracy counts; images are less adversarial.
    Not of a model that draws at random: one that is fooled in these draws is right in the next.
    generator: a CPU generator for the starts; a sample's start does not depend on the batch size.
    precision: `bfloat16` computes gradients in mixed precision, about twice as fast where the
    processor has it; the images differ a little, so score them in float32 as always.
    draws, backward: for models with random layers (models/stochastic.py). Gradients are averaged
    over so many draws (EOT, Athalye et al. 2018), loss and decisions are those of the mean logits,
    and gradients of the random factors follow the rule `constant`, `scale` or `identity` (BPDA);
    None leaves the model's own.
    momentum: the step follows `v = momentum * v + g / mean|g|` instead of the gradient g alone
    (Dong et al., Boosting Adversarial Attacks with Momentum, 2018); it averages over draws, too.
    cost: counts images passed forward and gradients taken.
    progress: called with the number of image-steps done (of `N * steps * restarts`).

    Processes that are together (core/distributed.py) share the batches out and all get the result,
    which is that of one process to the last bit; not of a model that draws at random, whose draws
    run on from batch to batch.

    Raises ValueError on shapes, ranges or options that make no sense.
    """
    _check(images, labels, eps, step, steps, norm, loss, keep, precision, backward, restarts, start)
    if draws < 1 or not 0 <= momentum <= 1:
        raise ValueError(
            f"pgd: draws ({draws}) must be at least 1, and momentum ({momentum}) in [0, 1]"
        )
    generator = generator or torch.Generator().manual_seed(0)
    device, private = device_of(model), attack_copy(model, device_of(model), fold)
    randomized = is_randomized(private)
    if drop and randomized:
        raise ValueError(
            "pgd: drop decides a sample by one misclassification, and this model draws at random: "
            "most of those are undone by the next draws; leave drop out"
        )
    cost = Cost() if cost is None else cost
    prepare(private, backward, cost)
    search = _Search(
        model=private,
        draws=draws if randomized else 1,
        most=batch,
        momentum=momentum,
        loss=LOSSES[loss],
        eps=eps,
        step=step,
        steps=steps,
        norm=norm,
        best=keep == "best",
        drop=drop,
        compare=restarts > 1,
        bf16=precision == "bfloat16",
        progress=progress or (lambda _: None),
    )
    best_images = images.clone()
    best_loss = images.new_full((len(images),), -torch.inf)

    def attack(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        at = images[rows].to(device), labels[rows].to(device), points[rows].to(device)
        found, losses = search(*at)
        return found.to(images.device), losses.to(images.device)

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), alone(randomized), cost.of_all():
        if randomized:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(restarts):
            points = start if start is not None else images
            if start is None and random_start:
                points = random_point(images, eps, norm, generator)
            batches = (best_loss < torch.inf).nonzero()[:, 0].split(batch)
            for rows, (found, losses) in zip(batches, spread(batches, attack), strict=True):
                better = losses > best_loss[rows]
                best_images[rows[better]] = found[better]
                best_loss[rows[better]] = losses[better]
    return best_images


def prepare(private: nn.Module, backward: str | None, cost: Cost | None) -> None:
    """Set an attack's private copy to its backward rule, and count what passes through it."""
    if backward is not None:
        set_backward(private, backward)
    if cost is not None:
        cost.watch(private)


@dataclass(frozen=True)
class _Search:
    """One run from one start for one batch. `compare`: the caller needs the final losses."""

    model: nn.Module
    draws: int
    most: int
    momentum: float
    loss: Loss
    eps: float
    step: float
    steps: int
    norm: str
    best: bool
    drop: bool
    compare: bool
    bf16: bool
    progress: Progress

    def __call__(
        self, clean: torch.Tensor, labels: torch.Tensor, start: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The images found `[n, C, H, W]` and their losses `[n]` (infinite: dropped, decided)."""
        clean = clean.contiguous(memory_format=torch.channels_last)
        current = start.contiguous(memory_format=torch.channels_last)
        found, losses = current.clone(), clean.new_full((len(clean),), -torch.inf)
        rows = torch.arange(len(clean), device=clean.device)  # samples still worked on
        direction = torch.zeros_like(clean)
        for _ in range(self.steps):
            gradient, now, wrong = self._gradient(current, labels)
            self.progress(len(clean))
            direction = self._direction(direction, gradient)
            if self.best:
                _record(found, losses, rows, current, now)
            if self.drop and wrong.any():
                found[rows[wrong]], losses[rows[wrong]] = current[wrong], torch.inf
                rows, labels, clean = rows[~wrong], labels[~wrong], clean[~wrong]
                current, direction = current[~wrong], direction[~wrong]
                if not len(rows):
                    return found, losses
            moved = ascend(current, direction, self.step, self.norm)
            current = project(moved, clean, self.eps, self.norm)
        if self.best:
            _record(found, losses, rows, current, self._loss(current, labels))
        else:
            found[rows] = current
            losses[rows] = self._loss(current, labels) if self.compare else 0.0
        return found, losses

    def _direction(self, before: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Where to step: the gradient, or with momentum its running sum in units of its mean."""
        if not self.momentum:
            return gradient
        size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp_min(1e-30)
        return self.momentum * before + gradient / size

    def _gradient(
        self, current: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradient, loss and whether wrong; the latter two are those of the mean logits."""
        gradient, logits = expected_gradient(
            self.model, current, labels, self.loss, self.draws, self.bf16, self.most
        )
        return gradient, self.loss(logits, labels), logits.argmax(1) != labels

    @torch.no_grad()
    def _loss(self, current: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(mean_logits(self.model, current, self.draws, self.most), labels)


def expected_gradient(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    loss: Loss,
    draws: int = 1,
    bf16: bool = False,
    most: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of the loss by the images, and the logits, both averaged over `draws` draws.

    labels: `[N]`, or `[N, …]` where the loss takes more. most: images a pass, as in
    `models.stochastic.drawn_logits`. Non-finite entries of a pass's
    gradient (a division by nearly nothing) count as 0.
    """
    point = images.detach().requires_grad_()
    gradient, total = torch.zeros_like(images), torch.zeros(())
    with torch.enable_grad():
        for logits in _cast(drawn_logits(model, point, draws, most), point, bf16):
            if logits.requires_grad:  # else the model has cut its graph: there is no gradient
                repeated = labels.repeat(len(logits), *[1] * (labels.ndim - 1))
                losses = loss(logits.flatten(0, 1), repeated)
                (one,) = torch.autograd.grad(losses.sum(), point)
                gradient += one.nan_to_num(0.0, 0.0, 0.0)
            total = total.to(logits) + logits.detach().sum(0)
    return gradient / draws, total / draws


def _cast(passes: Iterator[torch.Tensor], like: torch.Tensor, bf16: bool) -> Iterator[torch.Tensor]:
    """The passes, each in mixed precision where asked for, its logits in the images' type."""
    while True:
        with torch.autocast(like.device.type, torch.bfloat16, enabled=bf16):
            logits = next(passes, None)
        if logits is None:
            return
        yield logits.to(like.dtype)


def _record(
    found: torch.Tensor,
    losses: torch.Tensor,
    rows: torch.Tensor,
    current: torch.Tensor,
    now: torch.Tensor,
) -> None:
    """Keep the current points of the samples whose loss rose, in place."""
    take = now > losses[rows]
    found[rows[take]] = current[take]
    losses[rows[take]] = now[take]


def ascend(
    x: torch.Tensor, gradient: torch.Tensor, step: float | torch.Tensor, norm: str
) -> torch.Tensor:
    """One step of length `step` uphill: along the sign (Linf) or the unit direction (L2).

    step: one for all, or `[N, 1, 1, 1]`.
    """
    if norm == "Linf":
        return x + step * gradient.sign()
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return x + step * gradient / length


def project(
    x: torch.Tensor, clean: torch.Tensor, eps: float | torch.Tensor, norm: str
) -> torch.Tensor:
    """The nearest point to `x` in the eps-ball round `clean`, then cut to [0, 1].

    eps: one for all, or `[N, 1, 1, 1]`.
    Cutting to [0, 1] moves every pixel towards `clean`, so it never leaves the ball.
    """
    change = x - clean
    if norm == "Linf":
        change = change.clamp(-eps, eps)  # type: ignore[arg-type]  # both are of one kind
    else:
        length = change.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        change = change * (eps / length).clamp_max(1.0)
    return (clean + change).clamp(0, 1)


def random_point(
    images: torch.Tensor, eps: float, norm: str, generator: torch.Generator
) -> torch.Tensor:
    """A uniform point of the eps-ball round each image, cut to [0, 1].

    Drawn where the generator is, on the CPU or on the images' GPU. L2: a Gaussian direction, and a
    radius `eps * u^(1/d)`, which is uniform in the ball.
    """
    there: dict[str, Any] = {"generator": generator, "device": generator.device}
    if norm == "Linf":
        noise = (torch.rand(images.shape, **there) * 2 - 1) * eps
        return (images + noise.to(images.device)).clamp(0, 1)
    noise = torch.randn(images.shape, **there)
    size = noise[0].numel()
    length = noise.flatten(1).norm(dim=1).clamp_min(1e-12)
    radius = eps * torch.rand(len(images), **there) ** (1 / size)
    noise = noise * (radius / length).view(-1, 1, 1, 1)
    return (images + noise.to(images.device)).clamp(0, 1)


def _check(
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    step: float,
    steps: int,
    norm: str,
    loss: str,
    keep: str,
    precision: str,
    backward: str | None,
    restarts: int,
    start: torch.Tensor | None,
) -> None:
    for fault, found in _faults(images, labels, eps, step, steps, start):
        if found:
            raise ValueError(f"pgd: {fault}")
    for key, value, allowed in (
        ("norm", norm, ("Linf", "L2")),
        ("loss", loss, tuple(LOSSES)),
        ("keep", keep, ("last", "best")),
        ("precision", precision, ("float32", "bfloat16")),
        ("backward", backward, (None, *RULES)),
    ):
        if value not in allowed:
            raise ValueError(f"pgd: {key} is {value!r}; allowed: {', '.join(map(str, allowed))}")
    if restarts < 1 or (start is not None and restarts > 1):
        raise ValueError("pgd: restarts must be at least 1, and exactly 1 with a given start")


def _faults(
    images: torch.Tensor,
    labels: torch.Tensor,
    eps: float,
    step: float,
    steps: int,
    start: torch.Tensor | None,
) -> Iterator[tuple[str, bool]]:
    yield f"images have shape {list(images.shape)}, not [N, C, H, W]", images.ndim != 4
    yield f"{len(labels)} labels for {len(images)} images", labels.shape != images.shape[:1]
    yield (
        "images hold NaN or lie outside [0, 1]",
        bool(len(images) and not ((images >= 0) & (images <= 1)).all()),
    )
    yield f"eps {eps}, step {step} and steps {steps} may not be negative", min(eps, step, steps) < 0
    yield "start must have the images' shape", start is not None and start.shape != images.shape
