"""What the bit-flip attack raises: a loss on one fixed batch, as a function of the stored bits."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.stored_bits import StoredModel
from advprune.core.device import device_of
from advprune.core.settings import Settings
from advprune.models.border import admitted, check_images, refuse
from advprune.models.stochastic import is_randomized

RANDOM = (
    "the model draws at random, so that losses cannot be compared; attack "
    "models.stochastic.frozen_copy(model), whose draws are fixed"
)
LEAK = 0.01  # what raising the margin of an image counts once it is where the attack wants it
LOST = 1e6  # what an image counts whose logits are not finite; no other counts more than half of it
Evaluate = Callable[[nn.Module], float]


class FlipOptions(Settings):
    """How stored bits are attacked; all but `loss` to `target` hold for random flips, too.

    bits, scale: how a float network is stored (`stored_bits.store`). budget: most flips. every:
    flips from one measurement of accuracy to the next. stop: the attack ends at an accuracy of no
    more than this.

    loss: `ce`, cross-entropy, or `margin`, `max_{i != y} z_i - z_y`, which counts a hundredth
    (`LEAK`) on images that are wrong already: cross-entropy goes on raising itself on those. batch:
    images that pass together. most_candidates: the largest number of flips that are tried together.
    each: how many such sets of each layer are tried. target: a class that all images are to be
    pushed into: labels are that class, and L is lowered.
    """

    bits: int = 8
    scale: str = "layer"
    budget: int = Field(default=100, ge=0)
    stop: float | None = None
    every: int = Field(default=1, ge=1)
    loss: Literal["ce", "margin"] = "ce"
    batch: int = Field(default=128, ge=1)
    most_candidates: int = Field(default=20, ge=1)
    each: int = Field(default=1, ge=1)
    target: int | None = None


@dataclass
class Objective:
    """The loss L on the batch, and its `height`, what the attacker raises: L, or -L with a target.

    Stored floats can become so large that logits are infinite or NaN, which answer nothing: that is
    the most that an image can lose (`LOST`), and with a target the least that can be won.

    forwards, gradients: passes of the whole batch so far.
    """

    stored: StoredModel
    parts: list[tuple[Tensor, Tensor]]  # images and labels that pass together
    loss: str
    sign: int
    forwards: int = 1
    gradients: int = 0

    @classmethod
    def of(
        cls, stored: StoredModel, images: Tensor, labels: Tensor | None, how: FlipOptions
    ) -> "Objective":
        """Checked and on the model's device; labels are the target, those given or predicted."""
        check_images("bitflip", images, *([] if labels is None else [labels]))
        refuse("bitflip", {"there are no images": not len(images)})
        random = is_randomized(admitted("bitflip", stored.model, images, labels))
        refuse("bitflip", {RANDOM: random})
        shown, target = images.to(device_of(stored.model)), how.target
        with torch.no_grad():
            logits = torch.cat([stored.model(part) for part in shown.split(how.batch)])
        if target is not None and not 0 <= target < logits.shape[1]:
            raise ValueError(f"bitflip: target is {target}; there are {logits.shape[1]} classes")
        wanted = logits.argmax(1) if labels is None else labels.to(shown.device)
        wanted = wanted if target is None else torch.full_like(wanted, target)
        parts = list(zip(shown.split(how.batch), wanted.split(how.batch), strict=True))
        return cls(stored, parts, how.loss, 1 if target is None else -1)

    @torch.no_grad()
    def height(self) -> float:
        """The height now; a forward pass."""
        self.forwards += 1
        logits = torch.cat([self.stored.model(images) for images, _ in self.parts])
        labels = torch.cat([labels for _, labels in self.parts])
        return float(self._heights(logits, labels).double().mean())

    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the height by each entry's numbers: one forward, one backward pass."""
        self.forwards, self.gradients = self.forwards + 1, self.gradients + 1
        weights = [self.stored.weight(name).requires_grad_(True) for name in self.stored.layers]
        total = [torch.zeros_like(weight) for weight in weights]
        count = sum(len(labels) for _, labels in self.parts)
        for images, labels in self.parts:
            with torch.enable_grad():
                logits = self.stored.model(images)
                if not (fine := logits.isfinite().all(1)).all():  # 0 times NaN were NaN
                    logits, labels = self.stored.model(images[fine]), labels[fine]
                height = self._heights(logits, labels).sum() / count
            if height.requires_grad:  # else the model has cut its graph: there is no gradient
                found = torch.autograd.grad(height, weights, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        for weight in weights:
            weight.requires_grad_(False)
        pairs = zip(self.stored.layers, total, strict=True)
        return {name: self.stored.gradient(name, weight) for name, weight in pairs}

    def _heights(self, logits: Tensor, labels: Tensor) -> Tensor:
        """What the attacker raises, `[N]`, from logits `[N, K]`."""
        if self.loss == "ce":
            found = self.sign * cross_entropy(logits, labels)
        else:
            won = self.sign * margin(logits, labels)  # positive: the image is where it is wanted
            found = torch.where(won < 0, won, LEAK * won)
        lost = torch.full_like(found, self.sign * LOST)
        return found.clamp(-LOST / 2, LOST / 2).where(logits.isfinite().all(1), lost)
