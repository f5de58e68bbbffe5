"""What the bit-flip attack raises: a loss on one fixed batch, as a function of the stored bits."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from advprune.attacks.checks import check_choice, check_numbers
from advprune.attacks.engine import Progress, no_progress
from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.rerun import Rerun, Values, rerun
from advprune.attacks.stored_bits import StoredModel
from advprune.core.device import device_of
from advprune.models.border import admitted, check_images, refuse
from advprune.models.stochastic import is_randomized

RANDOM = (
    "the model draws at random, so that losses cannot be compared; attack "
    "models.stochastic.frozen_copy(model), whose draws are fixed"
)
LOSSES = ("ce", "margin")
LEAK = 0.01  # what raising the margin of an image counts once it is where the attack wants it
Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class FlipOptions:
    """How stored bits are attacked; all but `candidates` to `reuse` hold for random flips, too.

    bits, scale: how a float network is stored: bits per weight, and one scale for a `layer` or
    `channel` (`stored_bits.store`). budget: most flips. stop: the attack ends when `evaluate` gives
    no more than this. evaluate: called with the attacked network, which it must leave as it is,
    before the first flip and after every `every` flips (after the step in which they are reached);
    often accuracy on other images.
    loss: `ce`, cross-entropy, or `margin`, `max_{i != y} z_i - z_y`, which counts a hundredth
    (`LEAK`) on images that are wrong already: cross-entropy goes on raising itself on those.
    batch: images that pass together, for memory's sake; the loss is that of all.
    progress: called with the number of flips done (of `budget`).
    candidates, most_candidates: the first and the largest number of flips that are tried together.
    each: how many such sets of each layer are tried.
    target: a class that all images are to be pushed into: labels are that class, and L is lowered.
    reuse: keep what lies before a changed layer instead of computing it again; the result is the
    same. It needs memory for what convolutions take in, on all images and up to three times over.
    generator: a CPU generator of random flips.
    """

    bits: int = 8
    scale: str = "layer"
    budget: int = 100
    stop: float | None = None
    evaluate: Evaluate | None = None
    every: int = 1
    loss: str = "ce"
    batch: int = 128
    progress: Progress = no_progress
    candidates: int = 1
    most_candidates: int = 20
    each: int = 1
    target: int | None = None
    reuse: bool = True
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        check_numbers("bitflip", 0, budget=self.budget)
        known = {"every": self.every, "batch": self.batch, "candidates": self.candidates}
        check_numbers("bitflip", 1, **known, each=self.each)
        check_choice("bitflip", "loss", self.loss, LOSSES)
        most = f"candidates is {self.candidates}; 1 to {self.most_candidates} make sense"
        faults = {
            most: self.candidates > self.most_candidates,
            "stop is a level of what evaluate gives; give evaluate, too": (
                self.stop is not None and self.evaluate is None
            ),
        }
        refuse("bitflip", faults)


@dataclass
class Objective:
    """The loss L on the batch, and its `height`, what the attacker raises: L, or -L with a target.

    forwards, gradients: passes of the whole batch so far. values: what a pass from a changed layer
    on needs, for each part of the batch.
    """

    stored: StoredModel
    images: torch.Tensor
    labels: torch.Tensor
    loss: str
    sign: int
    batch: int
    graph: Rerun | None
    forwards: int = 0
    gradients: int = 0
    values: list[Values] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        stored: StoredModel,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        how: FlipOptions,
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
        sign = 1 if target is None else -1
        wanted = wanted if target is None else torch.full_like(wanted, target)
        weights = {name: stored.weight(name) for name in stored.layers}
        graph = rerun(stored.model, weights, shown) if how.reuse else None
        return cls(stored, shown, wanted, how.loss, sign, how.batch, graph, forwards=1)

    @torch.no_grad()
    def height(self) -> float:
        """The height now; a whole forward pass."""
        self.forwards += 1
        if self.graph is None:
            return self._sum([self.stored.model(part) for part in self.images.split(self.batch)])
        passes = [self.graph.start(part) for part in self.images.split(self.batch)]
        self.values = [values for _, values in passes]
        return self._sum([logits for logits, _ in passes])

    @torch.no_grad()
    def again(self, name: str) -> tuple[float, list[Values]]:
        """The height, and values, after a layer has changed since `values` were computed."""
        if self.graph is None:
            return self.height(), []
        self.forwards += 1
        passes = [self.graph.again(values, name) for values in self.values]
        return self._sum([logits for logits, _ in passes]), [values for _, values in passes]

    def gradient(self) -> dict[str, torch.Tensor]:
        """The gradient of the height by each stored weight: one forward and one backward pass."""
        self.forwards, self.gradients = self.forwards + 1, self.gradients + 1
        weights = [self.stored.weight(name).requires_grad_(True) for name in self.stored.layers]
        total = [torch.zeros_like(weight) for weight in weights]
        parts = self.images.split(self.batch), self.labels.split(self.batch)
        for images, labels in zip(*parts, strict=True):
            with torch.enable_grad():
                height = self._heights(self.stored.model(images), labels).sum() / len(self.images)
            if height.requires_grad:  # else the model has cut its graph: there is no gradient
                found = torch.autograd.grad(height, weights, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        for weight in weights:
            weight.requires_grad_(False)
        return dict(zip(self.stored.layers, total, strict=True))

    def _sum(self, logits: list[torch.Tensor]) -> float:
        return float(self._heights(torch.cat(logits), self.labels).double().mean())

    def _heights(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the attacker raises, `[N]`, from logits `[N, K]`."""
        if self.loss == "ce":
            return self.sign * cross_entropy(logits, labels)
        won = self.sign * margin(logits, labels)  # positive: the image is where it is wanted
        return torch.where(won < 0, won, LEAK * won)
