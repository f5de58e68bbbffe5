"""SGD with Nesterov momentum under a one-cycle schedule, as torch's `SGD` and `OneCycleLR`
(tests/test_training.py), without the compiler that those import: it takes longer than some of the
trainings here."""

import math
from typing import Any

import torch
from torch import Tensor

Group = dict[str, Any]  # params, lr (the highest rate) and weight_decay


def one_cycle(peak: float, step: int, steps: int) -> float:
    """The rate at a step, counted from 0: by a cosine from `peak / 25` up over 30 % of the steps,
    then down to `peak / 250000` (Smith and Topin, Super-Convergence, 2018). steps: at least 2."""
    first, top = peak / 25, 0.3 * steps - 1
    if step <= top:
        start, end, done = first, peak, step / top
    else:
        start, end, done = peak, first / 1e4, (step - top) / (steps - 1 - top)
    return end + (start - end) / 2 * (math.cos(math.pi * done) + 1)


class SGD:
    """`g += decay w; v = m v + g; w -= rate (g + m v)`. A parameter without a gradient stays as it
    is. momentum: m; steps: of the whole training."""

    def __init__(self, groups: list[Group], momentum: float, steps: int) -> None:
        self.groups, self.momentum, self.steps = groups, momentum, steps
        self.velocity = [[torch.zeros_like(p) for p in group["params"]] for group in groups]
        self.number = 0  # of the next step

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for group in self.groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Change the parameters, at the schedule's rate."""
        for group, velocity in zip(self.groups, self.velocity, strict=True):
            pairs = zip(group["params"], velocity, strict=True)
            if not (moved := [(p, v) for p, v in pairs if p.grad is not None]):
                continue
            weights: list[Tensor] = [p for p, _ in moved]
            speeds: list[Tensor] = [v for _, v in moved]
            grads = [w.grad for w in weights if w.grad is not None]  # all of them
            slopes = torch._foreach_add(grads, weights, alpha=group["weight_decay"])
            torch._foreach_mul_(speeds, self.momentum)
            torch._foreach_add_(speeds, slopes)
            torch._foreach_add_(slopes, speeds, alpha=self.momentum)
            rate = one_cycle(group["lr"], self.number, self.steps)
            torch._foreach_add_(weights, slopes, alpha=-rate)
        self.number += 1

    def state_dict(self) -> dict[str, Any]:
        """The velocities and the number of the next step."""
        return {"velocity": self.velocity, "number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.number = state["number"]
        for own, kept in zip(self.velocity, state["velocity"], strict=True):
            for speed, value in zip(own, kept, strict=True):
                speed.copy_(value)
