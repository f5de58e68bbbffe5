"""How every attack of the library begins: its checks, private networks, random state and batches.

The model, its modes, its gradients and the global random state do not change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from advprune.attacks.checks import check_choice, check_numbers
from advprune.attacks.cost import Cost
from advprune.attacks.engine import Ensemble, Mixed, Progress, attack_copy, by_batch, no_progress
from advprune.attacks.losses import Loss
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import Context
from advprune.core.attack_settings import Attack
from advprune.core.device import device_of, full_precision, salted
from advprune.core.errors import InputError, first_line
from advprune.models.backward import OF_NETWORKS, RULES, set_backward
from advprune.models.border import admitted, check_images, refuse
from advprune.models.quantized import differentiable, needs_twin
from advprune.models.stochastic import drawn_logits, is_randomized, mean_logits

T = TypeVar("T", bound="Options")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every attack takes, however it searches.

    norm: `Linf` or `L2`. batch: images per pass. precision: `bfloat16` computes gradients in mixed
    precision; float32 decides what fools. draws: of models with random layers; gradients are
    averaged over them (EOT, Athalye et al. 2018), and the mean logits decide. backward: what is
    differentiated instead of layers without a useful gradient (models/backward.py); None: the
    model's own rule. parent: the network that `backward: parent` needs. pixels: images will be
    rounded to 8 bits (`rounding`: see `to_pixels`), so only what fools after that is fooled; clean
    images must be 8-bit. generator: a CPU generator instead of one from `seed`; a sample's
    start does not depend on the batch. cost: counts what passes through the model. progress: called
    with image-steps done.
    """

    norm: str = "Linf"
    batch: int = 128
    precision: str = "float32"
    draws: int = 1
    backward: str | None = None
    parent: nn.Module | None = None
    pixels: bool = False
    rounding: str = "strict"
    seed: int = 0
    generator: torch.Generator | None = None
    cost: Cost | None = None
    progress: Progress = no_progress
    # Of the attack: whether the model as it is decides what fools, also where its folded form
    # differs by rounding alone.
    exact: ClassVar[bool] = False


def options(kind: type[T], setting: Attack, how: Context, **more: Any) -> T:
    """The options of an attack as a suite runs it: from `more`, its setting and the context."""
    known = {**vars(how), **dict(setting), **more}
    return kind(**{f.name: known[f.name] for f in fields(kind) if f.name in known})


@dataclass(frozen=True, eq=False)
class Opened(Generic[T]):
    """What a search works with, on the device of the model.

    quick: what is differentiated, folded. exact: the model as it is, which decides what fools.
    images, labels: all of them, where the caller has them.
    """

    quick: nn.Module
    exact: nn.Module
    images: Tensor
    labels: Tensor
    eps: float
    options: T
    generator: torch.Generator
    cost: Cost
    device: torch.device
    randomized: bool

    @property
    def draws(self) -> int:
        """Draws that are averaged: 1 of a deterministic model."""
        return self.options.draws if self.randomized else 1

    def run(
        self, do: Callable[..., Sequence[Tensor]], rows: Tensor, *more: Tensor, together: int = 1
    ) -> list[Tensor]:
        """What `do(images, labels, *more)` gives for all `rows`, on the images' device.

        `together` batches at a time are given, on the model's device; processes share them out.
        """

        def piece(part: Tensor) -> list[Tensor]:
            given = (t[part].to(self.device) for t in (self.images, self.labels, *more))
            return [found.to(self.images.device) for found in do(*given)]

        parts = rows.split(together * self.options.batch)
        answers = by_batch(self.exact, parts, piece, self.cost)
        return [torch.cat(found) for found in zip(*answers, strict=True)]

    def gradient(self, points: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The gradient of the loss by the points, and the model's logits, averaged over draws."""
        points = points.contiguous(memory_format=torch.channels_last)
        network = Mixed(self.quick) if self.options.precision == "bfloat16" else self.quick
        batch = self.options.batch
        gradient, logits = expected_gradient(network, points, labels, loss, self.draws, batch)
        foreign = self.options.backward in OF_NETWORKS
        return gradient, self.logits(points) if foreign else logits

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        """The model's logits in float32, averaged over draws."""
        with full_precision():
            parts = points.split(self.options.batch)
            found = [mean_logits(self.exact, p, self.draws, self.options.batch) for p in parts]
        return torch.cat(found)

    def shown(self, points: Tensor, clean: Tensor) -> Tensor:
        """Points as they will be scored: rounded to 8 bits where that is so."""
        how = self.options
        if not how.pixels:
            return points
        return to_pixels(points, clean, self.eps, how.norm, how.rounding).to(clean) / 255

    def fooled(self, logits: Tensor, points: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Which points fool the model as they will be scored; `logits`: those of `gradient`."""
        wrong = logits.argmax(1) != labels
        if wrong.any() and (self.options.pixels or self.exact is not self.quick):
            shown = self.shown(points[wrong], clean[wrong])
            wrong[wrong.clone()] = self.logits(shown).argmax(1) != labels[wrong]
        return wrong


@contextmanager
def opened(
    name: str, model: nn.Module, attacked: tuple[Tensor, Tensor], eps: float, how: T
) -> Iterator[Opened[T]]:
    """Check and prepare an attack on images `[N, C, H, W]` in [0, 1] and labels `[N]`.

    ValueError on shapes, ranges or options that make no sense and, in the end, where the model
    answered what was tried with NaN or infinite logits.
    """
    check_images(name, *attacked)
    check_numbers(name, 0, eps=eps)
    check_numbers(name, 1, batch=how.batch, draws=how.draws)
    above = how.norm == "Linf" and eps > 1
    refuse(name, {f"eps is {eps}; an Linf budget lies between 0 and 1": above})
    check_choice(name, "norm", how.norm, ("Linf", "L2"))
    check_choice(name, "precision", how.precision, ("float32", "bfloat16"))
    check_choice(name, "backward", how.backward, (None, *RULES))
    model = admitted(name, model, *attacked)
    foreign, device = how.backward in OF_NETWORKS, device_of(model)
    absent = f"backward is {how.backward!r}, and no parent is given"
    refuse(name, {absent: foreign and how.parent is None})
    networks = [] if how.backward == "parent" else [differentiable(model)]
    networks += [how.parent] if foreign and how.parent is not None else []
    copies = [attack_copy(network, device) for network in networks]
    quick = copies[0] if len(copies) == 1 else Ensemble(copies)
    if how.exact or foreign or needs_twin(model) or how.precision != "float32":
        copies.append(attack_copy(model, device, fold=False))
    cost, odd = how.cost or Cost(), torch.zeros((), dtype=torch.bool, device=device)

    def note(_: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        # Asked for at the end alone, as a GPU would wait for every pass.
        odd.logical_or_((given[0].isfinite().all() & ~logits.isfinite().all()).to(device))

    for private in copies:
        cost.watch(private)
        private.register_forward_hook(note)
    if how.backward is not None:
        set_backward(quick, how.backward)
    randomized = is_randomized(model)
    generator = how.generator or torch.Generator().manual_seed(salted(how.seed, name))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if randomized:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield Opened(quick, copies[-1], *attacked, eps, how, generator, cost, device, randomized)
    # To an attack such a point does not fool, so that the model would look robust.
    fault = "the model returns NaN or infinite logits on changed images; give finite ones on all "
    refuse(name, {fault + "of [0, 1], without which it would look robust": bool(odd)})


def expected_gradient(
    model: nn.Module, images: Tensor, labels: Tensor, loss: Loss, draws: int = 1, most: int = 0
) -> tuple[Tensor, Tensor]:
    """The gradient of the loss by the images, and the logits, both averaged over `draws` draws.

    labels: `[N]`, or `[N, …]` where the loss takes more. most: images per pass. Non-finite entries
    of a gradient (a division by nearly nothing) count as 0.
    """
    point = images.detach().requires_grad_()
    gradient, total = torch.zeros_like(images), torch.zeros(())
    with torch.enable_grad():
        for logits in drawn_logits(model, point, draws, most):
            if logits.requires_grad:  # else the model has cut its graph: there is no gradient
                repeated = labels.repeat(len(logits), *[1] * (labels.ndim - 1))
                losses = loss(logits.flatten(0, 1), repeated)
                try:
                    (one,) = torch.autograd.grad(losses.sum(), point, allow_unused=True)
                except RuntimeError as error:
                    raise InputError(f"no gradient of the model: {first_line(error)}") from error
                if one is not None:  # as where integers stand in between
                    gradient += one.nan_to_num(0.0, 0.0, 0.0)
            total = total.to(logits) + logits.detach().sum(0)
    return gradient / draws, total / draws


def wide(values: Tensor) -> Tensor:
    """`[n]` as `[n, 1, 1, 1]`, to go with images."""
    return values.view(-1, 1, 1, 1)
