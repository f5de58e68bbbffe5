"""Gradient honesty: is the derivative that attacks follow the derivative of the model's answers?

For the margin and a random combination of the logits, autograd's derivative along the attack's own
direction and along random ones is compared with central finite differences `(f(x + h v) - f(x - h
v)) / 2h`, image by image: a gradient that is wrong in part leads every attack astray, and no
comparison between attacks can show it. Over tiny steps the two agree but for rounding, so this is
done in float64 where the model allows it, and the best of several steps counts. Over a part of the
budget an honest network bends; a rounded or a rugged one does not follow its derivative at all.
Layers with a straight-through rule say so by an attribute, `declares_rule = True`; networks that
compute in bfloat16 or float16 have such a rule, too. They are compared over an attack's step, with
differences averaged over nearby points, and also attacked by their answers alone (probes.py).
"""

import copy
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.core.attack_settings import AttackSettings
from advprune.core.device import device_of
from advprune.models.quantized import differentiable

# Larger ones cross the kinks of ReLUs, smaller ones are lost in rounding.
TINY = {torch.float64: (1e-6, 1e-5, 1e-4), torch.float32: (1e-4, 3e-4, 1e-3)}
FEW = 8  # images whose logits show in what precision a model computes
POINTS = 2  # per image: a random one of the ball, and where an attack's step leads from there
DIRECTIONS = 2  # random ones beside the attack's own
PART = 1 / 32  # of the budget, over which an honest network follows its derivative
NEARBY = 4  # points over which a straight-through rule, or rounding of float32, is averaged


def declares_rule(model: nn.Module) -> bool:
    """Whether the model's gradient passes straight through steps, by its own declaration."""
    return any(getattr(module, "declares_rule", False) is True for module in model.modules())


def is_coarse(logits: Tensor) -> bool:
    """Whether bfloat16 or float16 holds all logits exactly, as where the model computes in it."""
    halves = torch.bfloat16, torch.float16
    return any(torch.equal(logits.to(half).to(logits), logits) for half in halves)


def slope_errors(
    model: nn.Module, pair: tuple[Tensor, Tensor], main: AttackSettings, seed: int, cost: Cost
) -> dict[str, Tensor]:
    """Relative errors `[N]` of the derivative, of a deterministic model (of a randomized one, with
    its draws fixed: `stochastic.frozen_copy`) on images and labels.

    `|a - f| / max(|a|, |f|)` of the slopes a by autograd and f by differences, the larger of that
    along the attack's own direction and that along random ones; 0 where both are 0, 1 where one is
    not finite. `slope_error`: the smallest over tiny steps; missing where there is a
    straight-through rule. `step_error`: over `PART` of the budget; where `slope_error` is missing,
    over the attack's step along its own direction.
    """
    device, kind, few = device_of(model), torch.float32, pair[0][:FEW]
    private = copy.deepcopy(model).eval()
    with torch.no_grad():
        answer = private(few.to(device, kind))
        with suppress(RuntimeError, TypeError):  # refused
            doubled = private.double()(few.to(device, torch.float64))
            kind = doubled.dtype if doubled.dtype == torch.float64 else kind  # else it goes back
    declared = declares_rule(model) or is_coarse(answer)
    answers = attack_copy(model, device, fold=False).to(kind)
    derived = attack_copy(differentiable(model), device, fold=False).to(kind)
    cost.watch(answers)
    cost.watch(derived)
    images, labels = pair[0].to(device, kind), pair[1].to(device)
    eps, step = main.eps, main.step
    if main.norm == "L2":  # a change of every pixel of the same length
        eps, step = (size / images[0].numel() ** 0.5 for size in (eps, step))
    generator = torch.Generator().manual_seed(seed)
    field = _Field(answers, derived, labels, generator)
    if declared:
        over = field.errors(images, eps, (step,), NEARBY)
        return {"step_error": over[0, :, 0].float().cpu()}
    tiny = field.errors(images, eps, TINY[kind], NEARBY if kind == torch.float32 else 1)
    over = field.errors(images, eps, (PART * eps,))
    return {
        "slope_error": tiny.amax(2).amin(0).float().cpu(),
        "step_error": over[0].amax(1).float().cpu(),
    }


@dataclass(frozen=True)
class _Field:
    """A model's answers, what is differentiated in their place, and random numbers."""

    answers: nn.Module
    derived: nn.Module
    labels: Tensor
    generator: torch.Generator

    @torch.no_grad()
    def errors(
        self, images: Tensor, eps: float, steps: tuple[float, ...], nearby: int = 1
    ) -> Tensor:
        """Errors `[steps, N, 2]`, along the attack's own direction and along random ones.

        Slopes are means over `nearby` points, drawn within the step.
        """
        reach, claimed, measured = max(steps), [], []

        def inside(images: Tensor) -> Tensor:
            # Away from 0 and 1, where a model may cut its images: differences go to both sides.
            return images.clamp(reach, 1 - reach)

        point = inside(images + eps * self._uniform(images))
        for _ in range(POINTS):
            weights = self._weights(point)  # [2, N, K]
            ahead = self._gradients(point, weights[:1])[0].sign()
            signs = [self._uniform(images).sign() for _ in range(DIRECTIONS)]
            directions = torch.stack([ahead, *signs])  # [V, N, C, H, W]
            slopes, differences = [], []
            for number in range(nearby):
                moved = inside(point + reach * self._uniform(images) * (number > 0))
                gradients = self._gradients(moved, weights)  # [2, N, C, H, W]
                slopes.append((gradients[:, None] * directions).sum((3, 4, 5)))  # [2, V, N]
                central = []
                for h in steps:
                    ends = ((moved + h * v, moved - h * v) for v in directions)
                    rises = torch.stack([self.answers(a) - self.answers(b) for a, b in ends])
                    central.append((weights[:, None] * (rises / (2 * h))).sum(3))  # [2, V, N]
                differences.append(torch.stack(central))
            claimed.append(torch.stack(slopes).mean(0))
            measured.append(torch.stack(differences).mean(0))  # [steps, 2, V, N]
            point = inside((point + eps * ahead).clamp(images - eps, images + eps))
        a, f = torch.cat(claimed), torch.cat(measured, dim=1)  # [M, V, N], [steps, M, V, N]
        found = []
        for part in (slice(1), slice(1, None)):
            own, other = a[:, part], f[:, :, part]
            size = torch.maximum(other.square().sum((1, 2)), own.square().sum((0, 1))).sqrt()
            error = (own - other).square().sum((1, 2)).sqrt()  # [steps, N]
            found.append((error / size.where(size != 0, 1.0)).nan_to_num(1.0, 1.0))
        return torch.stack(found, 2)

    def _uniform(self, images: Tensor) -> Tensor:
        drawn = torch.rand(images.shape, generator=self.generator, dtype=images.dtype)
        return 2 * drawn.to(images.device) - 1

    def _weights(self, point: Tensor) -> Tensor:
        """Combinations of logits `[2, N, K]`: the margin (wrong minus label), and a random one."""
        logits, truth = self.answers(point), self.labels[:, None]
        rival = logits.scatter(1, truth, float("-inf")).argmax(1, keepdim=True)
        margin = torch.zeros_like(logits).scatter_(1, rival, 1.0).scatter_(1, truth, -1.0)
        drawn = torch.randn(logits.shape, generator=self.generator, dtype=logits.dtype)
        return torch.stack([margin, drawn.to(logits)])

    def _gradients(self, point: Tensor, weights: Tensor) -> Tensor:
        """Of each combination by the images, `[weights, N, C, H, W]`; 0 where there is none."""
        point = point.detach().requires_grad_()
        found = [torch.zeros_like(point) for _ in weights]
        with torch.enable_grad():
            logits = self.derived(point)
            for place, w in enumerate(weights if logits.requires_grad else ()):
                total = (logits * w).sum()
                (g,) = torch.autograd.grad(total, point, retain_graph=True, allow_unused=True)
                if g is not None:
                    found[place] = g.nan_to_num(0.0, 0.0, 0.0)
        return torch.stack(found)
