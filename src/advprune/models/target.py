"""A target: anything that answers images (a deployed file, a service), as a network that attacks
and scoring can ask. It has no gradients. Attacks follow those of its `twin`, a network with the
same answers, and what they find is decided by the target's own."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from advprune.core.errors import InputError, UserError, with_place
from advprune.models.border import MANY, sum_to_one
from advprune.models.stochastic import is_randomized

Answer = Callable[[torch.Tensor], Any]
LEAST = 1e-30  # of a probability, before its logarithm
SLACK = 1e-3  # by which rounding may take a probability out of [0, 1]


class Target(nn.Module):
    """Images `[N, C, H, W]` in [0, 1] to logits `[N, classes]`, by a function that is only asked.

    answer: gives scores `[N, classes]`, or labels `[N]` where `labels`; these become logits of 1
    and 0. shares: of probabilities the logarithm is taken. twin: whose gradients are followed, if
    any.
    """

    declares_rule = True  # that of its twin

    def __init__(
        self,
        answer: Answer,
        classes: int,
        twin: nn.Module | None = None,
        *,
        labels: bool = False,
        shares: bool = False,
    ) -> None:
        super().__init__()
        self.answer, self.classes, self.labels, self.shares = answer, classes, labels, shares
        self.twin = twin
        self.eval()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Target":
        """With the same function: a runtime's session cannot be copied."""
        return self.with_twin(copy.deepcopy(self.twin, memo))

    def with_twin(self, twin: nn.Module | None) -> "Target":
        """The same target with that twin; InputError where the twin draws at random."""
        if twin is not None and is_randomized(twin):
            raise InputError("target: its twin draws at random")
        return Target(self.answer, self.classes, twin, labels=self.labels, shares=self.shares)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said = asked(self.answer, x)
        shape = (len(x),) if self.labels else (len(x), self.classes)
        if said.shape != shape:
            found = f"{list(said.shape)} to {len(x)} images, and {list(shape)} before"
            raise InputError(f"target: it answers {found}")
        if self.labels:
            if not ((said >= 0) & (said < self.classes)).all():
                known = f"{self.classes} classes; say how many there are (`classes`)"
                raise InputError(f"target: it answers a label that is none of {known}")
            said = F.one_hot(said.long(), self.classes)
        said = said.to(x)
        if self.shares:
            if not ((said >= -SLACK) & (said <= 1 + SLACK)).all():
                raise InputError("target: it answers probabilities, and now other numbers")
            said = said.clamp_min(LEAST).log()
        return said


def is_blackbox(model: nn.Module) -> bool:
    """Whether a model has no gradients, neither its own nor a twin's."""
    return isinstance(model, Target) and model.twin is None


def asked(answer: Answer, images: torch.Tensor) -> torch.Tensor:
    """The answer to a copy of images, as a tensor on the CPU; InputError where it is none."""
    given = images.detach().to("cpu", torch.float32).clone()
    try:
        return torch.as_tensor(answer(given)).detach().cpu().clone()  # of inference_mode, too
    except UserError:
        raise
    except Exception as error:  # whatever the user's code does
        shape = list(images.shape)
        raise InputError(f"target: it fails on images {shape}: {with_place(error)}") from error


def target_of(answer: Answer, images: torch.Tensor, classes: int = 0) -> Target:
    """The target of a function from images `[N, C, H, W]` in [0, 1], float32, to scores `[N,
    classes]` or labels `[N]`: tensors, arrays or lists. images: some that it is tried on. classes:
    the least number of classes, where only labels are answered. InputError for other answers, and
    where they change from call to call."""
    few = images[:MANY].cpu()
    said = asked(answer, few)
    labels = said.ndim == 1
    usable = bool(said.isfinite().all()) and said.shape[:1] == few.shape[:1]
    if labels:
        usable = usable and bool(((said == said.floor()) & (said >= 0)).all())
    if not (usable and (labels or (said.ndim == 2 and said.shape[1] > 1))):
        found = f"{said.dtype} {list(said.shape)} to {len(few)} images"
        wanted = "give finite scores [N, classes] or whole numbers [N], the labels"
        raise InputError(f"target: it answers {found}; {wanted}")
    if not torch.equal(asked(answer, few), said):
        raise InputError("target: it answers the same images differently from call to call")
    if labels:
        return Target(answer, max(classes, int(said.max()) + 1), labels=True)
    inside = said.is_floating_point() and bool(((said >= 0) & (said <= 1)).all())
    return Target(answer, said.shape[1], shares=inside and sum_to_one(said))
