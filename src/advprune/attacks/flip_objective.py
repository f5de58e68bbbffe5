"""What the bit-flip attack raises: a loss on one fixed batch, as a function of the stored bits."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from advprune.attacks.losses import cross_entropy, margin
from advprune.attacks.rerun import Rerun, Values, rerun
from advprune.attacks.stored_bits import StoredModel
from advprune.core.device import device_of

LOSSES = ("ce", "margin")
LEAK = 0.01  # what raising the margin of an image counts once it is where the attack wants it


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
        loss: str,
        target: int | None,
        batch: int,
        reuse: bool,
    ) -> "Objective":
        """Checked and on the model's device; labels are the target, those given or predicted."""
        check(images, labels, loss, batch)
        shown = images.to(device_of(stored.model))
        with torch.no_grad():
            logits = torch.cat([stored.model(part) for part in shown.split(batch)])
        if target is not None and not 0 <= target < logits.shape[1]:
            raise ValueError(f"bitflip: target is {target}; there are {logits.shape[1]} classes")
        wanted = logits.argmax(1) if labels is None else labels.to(shown.device)
        sign = 1 if target is None else -1
        wanted = wanted if target is None else torch.full_like(wanted, target)
        weights = {name: stored.weight(name) for name in stored.layers}
        graph = rerun(stored.model, weights) if reuse else None
        return cls(stored, shown, wanted, loss, sign, batch, graph, forwards=1)

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
        for images, labels in zip(*self._parts(), strict=True):
            with torch.enable_grad():
                height = self._heights(self.stored.model(images), labels).sum() / len(self.images)
            if height.requires_grad:  # else the model has cut its graph: there is no gradient
                found = torch.autograd.grad(height, weights, allow_unused=True)
                total = [t if g is None else t + g for t, g in zip(total, found, strict=True)]
        for weight in weights:
            weight.requires_grad_(False)
        return dict(zip(self.stored.layers, total, strict=True))

    def _parts(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        return self.images.split(self.batch), self.labels.split(self.batch)

    def _sum(self, logits: list[torch.Tensor]) -> float:
        return float(self._heights(torch.cat(logits), self.labels).double().mean())

    def _heights(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the attacker raises, `[N]`, from logits `[N, K]`."""
        if self.loss == "ce":
            return self.sign * cross_entropy(logits, labels)
        won = self.sign * margin(logits, labels)  # positive: the image is where it is wanted
        return torch.where(won < 0, won, LEAK * won)


def check(images: torch.Tensor, labels: torch.Tensor | None, loss: str, batch: int) -> None:
    """ValueError where images, labels or options make no sense."""
    for fault, found in _faults(images, labels, loss, batch):
        if found:
            raise ValueError(f"bitflip: {fault}")


def _faults(
    images: torch.Tensor, labels: torch.Tensor | None, loss: str, batch: int
) -> Iterator[tuple[str, bool]]:
    shape = list(images.shape)
    yield f"images have shape {shape}, not [N, C, H, W] with N > 0", len(shape) != 4 or not shape[0]
    yield (
        "images hold NaN or lie outside [0, 1]",
        not bool(((images >= 0) & (images <= 1)).all()),
    )
    if labels is not None:
        yield f"{len(labels)} labels for {shape[0]} images", labels.shape != images.shape[:1]
    yield f"loss is {loss!r}; allowed: {', '.join(LOSSES)}", loss not in LOSSES
    yield f"batch is {batch}; it must be at least 1", batch < 1
