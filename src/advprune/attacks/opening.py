"""How every attack of the library begins: its checks, private networks, random state and batches.

The model, its modes, its gradients and the global random state do not change.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from advprune.attacks.checks import check_counts
from advprune.attacks.engine import Ensemble, Mixed, attack_copy, by_batch
from advprune.attacks.losses import Loss
from advprune.attacks.pixels import to_pixels
from advprune.attacks.registry import Context
from advprune.core.attack_settings import Attack
from advprune.core.device import device_of, full_precision, salted
from advprune.core.errors import InputError, first_line
from advprune.models.backward import OF_NETWORKS, set_backward
from advprune.models.border import admitted, check_images, refuse
from advprune.models.quantized import differentiable, needs_twin
from advprune.models.stochastic import drawn_logits, is_randomized, mean_logits

T = TypeVar("T", bound=Attack)


@dataclass(frozen=True, eq=False)
class Opened(Generic[T]):
    """What a search works with, on the device of the model.

    quick: what is differentiated, folded. exact: the model as it is, which decides what fools.
    images, labels: all of them, where the caller has them. draws: averaged over, 1 of a
    deterministic model.
    """

    quick: nn.Module
    exact: nn.Module
    images: Tensor
    labels: Tensor
    setting: T
    how: Context
    generator: torch.Generator
    device: torch.device
    randomized: bool
    draws: int

    def run(
        self, do: Callable[..., Sequence[Tensor]], rows: Tensor, *more: Tensor, together: int = 1
    ) -> list[Tensor]:
        """What `do(images, labels, *more)` gives for all `rows`, on the images' device.

        `together` batches at a time are given, on the model's device; processes share them out.
        """

        def piece(part: Tensor) -> list[Tensor]:
            given = (t[part].to(self.device) for t in (self.images, self.labels, *more))
            return [found.to(self.images.device) for found in do(*given)]

        parts = rows.split(together * self.how.batch)
        answers = by_batch(self.exact, parts, piece, self.how.cost)
        return [torch.cat(found) for found in zip(*answers, strict=True)]

    def gradient(self, points: Tensor, labels: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """The gradient of the loss by the points, and the model's logits, averaged over draws."""
        points = points.contiguous(memory_format=torch.channels_last)
        low, batch = is_low(self.setting), self.how.batch
        network = Mixed(self.quick) if low else self.quick
        gradient, logits = expected_gradient(network, points, labels, loss, self.draws, batch)
        foreign = getattr(self.setting, "backward", None) in OF_NETWORKS
        return gradient, self.logits(points) if foreign else logits

    @torch.no_grad()
    def logits(self, points: Tensor) -> Tensor:
        """The model's logits in float32, averaged over draws."""
        with full_precision():
            parts = points.split(self.how.batch)
            found = [mean_logits(self.exact, p, self.draws, self.how.batch) for p in parts]
        return torch.cat(found)

    def shown(self, points: Tensor, clean: Tensor) -> Tensor:
        """Points as they will be scored: rounded to 8 bits where that is so."""
        s = self.setting
        if not self.how.pixels:
            return points
        return to_pixels(points, clean, s.eps, s.norm, s.rounding).to(clean) / 255

    def fooled(self, logits: Tensor, points: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Which points fool the model as they will be scored; `logits`: those of `gradient`."""
        wrong = logits.argmax(1) != labels
        if wrong.any() and (self.how.pixels or self.exact is not self.quick):
            shown = self.shown(points[wrong], clean[wrong])
            wrong[wrong.clone()] = self.logits(shown).argmax(1) != labels[wrong]
        return wrong


@contextmanager
def opened(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    setting: T,
    how: Context,
    exact: bool = False,
) -> Iterator[Opened[T]]:
    """Check and prepare an attack on images `[N, C, H, W]` in [0, 1] and labels `[N]`.

    exact: the model as it is decides what fools, also where its folded form differs by rounding
    alone. ValueError on images, labels and models that make no sense and, in the end, where the
    model answered what was tried with NaN or infinite logits.
    """
    name = getattr(setting, "name", setting.method)
    check_images(name, images, labels)
    check_counts(name, batch=how.batch)
    if how.start is not None:
        check_images(f"{name}: start", how.start)
        alike = (how.start.shape, how.start.dtype) == (images.shape, images.dtype)
        refuse(name, {"start must have the images' shape and type": not alike})
    model = admitted(name, model, images, labels)
    rule, device = getattr(setting, "backward", None), device_of(model)
    foreign = rule in OF_NETWORKS
    absent = f"backward is {rule!r}, and no parent is given"
    refuse(name, {absent: foreign and how.parent is None})
    networks = [] if rule == "parent" else [differentiable(model)]
    networks += [how.parent] if foreign and how.parent is not None else []
    copies = [attack_copy(network, device) for network in networks]
    quick = copies[0] if len(copies) == 1 else Ensemble(copies)
    if exact or foreign or needs_twin(model) or is_low(setting):
        copies.append(attack_copy(model, device, fold=False))
    odd = torch.zeros((), dtype=torch.bool, device=device)

    def note(_: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> None:
        # Asked for at the end alone, as a GPU would wait for every pass.
        odd.logical_or_((given[0].isfinite().all() & ~logits.isfinite().all()).to(device))

    for private in copies:
        how.cost.watch(private)
        private.register_forward_hook(note)
    if rule is not None:
        set_backward(quick, rule)
    randomized = is_randomized(model)
    draws = getattr(setting, "draws", 1) if randomized else 1
    generator = how.generator or torch.Generator().manual_seed(salted(how.seed, name))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if randomized:
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        known = setting, how, generator, device, randomized, draws
        yield Opened(quick, copies[-1], images, labels, *known)
    # To an attack such a point does not fool, so that the model would look robust.
    fault = "the model returns NaN or infinite logits on changed images; give finite ones on all "
    refuse(name, {fault + "of [0, 1], without which it would look robust": bool(odd)})


def is_low(setting: Attack) -> bool:
    """Whether gradients are taken in bfloat16; float32 decides what fools."""
    return getattr(setting, "precision", "float32") == "bfloat16"


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
