"""Masks: which weights are removed for good, by a score, exactly as many as asked for.

The masks of the GAP study (gap.py, magnitude.py) are on the weights and biases of convolutions and
linear layers, all at once, except the classifier and batch-norm (`prunable`); those of HYDRA and of
tickets are on the weights of all these layers (`layer_weights`).
"""

from collections.abc import Mapping
from math import floor
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from advprune.core.errors import UserError
from advprune.core.settings import Settings
from advprune.core.train_settings import FineTune, FineTuneSettings
from advprune.pruning.family import Data, Pruned, require
from advprune.training.standard import History, finetune

Scores = dict[str, torch.Tensor]  # by parameter name, of the parameter's shape
Masks = dict[str, torch.Tensor]  # bool, True where a weight is removed
Scope = Literal["global", "layer"]
End = Literal["smallest", "largest"]


class Amount(Settings):
    """How much is removed: give `compression` (all parameters of the model, batch-norm and
    classifier included, over those that remain) or `sparsity` (the removed share of the prunable
    ones). finetune: training that follows, masks held; null for none.
    """

    compression: float | None = Field(default=None, ge=1, le=1e9)
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    finetune: FineTune = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "Amount":
        if (self.compression is None) == (self.sparsity is None):
            raise ValueError("give either compression or sparsity")
        return self


def trained_by(setting: FineTuneSettings | None, place: str) -> dict[str, Any]:
    """What the trainings of a family and of its control have to share, by key below `place`: the
    epochs, the method, its attack with `step` resolved, the weight of TRADES, and the rate."""
    if setting is None:
        return {f"{place}.epochs": 0}
    found: dict[str, Any] = {"epochs": setting.epochs, "method": setting.method}
    if setting.method != "standard":
        found |= {"steps": setting.steps, "step": setting.stride}
    if setting.method == "trades":
        found["beta"] = setting.beta
    return {f"{place}.{key}": value for key, value in (found | {"lr": setting.lr}).items()}


def layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """All convolutions and linear layers by name, in the order of the modules."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def layer_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of all convolutions and linear layers, the classifier's too, by name."""
    return {f"{name}.weight": layer.weight for name, layer in layers(model).items()}


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights and biases of convolutions and linear layers by name, in the order of the modules,
    without those of the classifier, the last linear layer."""
    found = layers(model)
    linear = [name for name, layer in found.items() if isinstance(layer, nn.Linear)]
    return {
        f"{name}.{key}": parameter
        for name, layer in found.items()
        if name not in linear[-1:]
        for key, parameter in layer.named_parameters(recurse=False)
    }


def removals(model: nn.Module, amount: Amount) -> int:
    """How many parameters go: `T - round(T / compression)`, or `round(sparsity * P)`. T: all
    parameters, P: the prunable ones. UserError where more than P would have to go."""
    total = sum(p.numel() for p in model.parameters())
    most = sum(p.numel() for p in prunable(model).values())
    if amount.compression is None:
        return round((amount.sparsity or 0.0) * most)
    count = total - round(total / amount.compression)
    if count > most:
        highest = floor(100 * total / (total - most)) / 100
        raise UserError(
            f"compression {amount.compression:g} would remove {count} parameters, but only "
            f"{most} of {total} can be pruned; the highest that this network can reach is {highest}"
        )
    return count


def select(scores: Scores, count: int, scope: Scope = "global", remove: End = "smallest") -> Masks:
    """The `count` smallest or largest scores, exactly; of equal ones the first.

    scope: `global` ranks all tensors together, in their order; `layer` takes the same share of
    each tensor, rounded by largest remainders. UserError where a score is NaN or infinite.
    """
    if wrong := [name for name, score in scores.items() if not score.isfinite().all()]:
        raise UserError(f"the scores of {wrong[0]} hold NaN or infinite numbers; nothing is pruned")
    flat = [score.flatten() for score in scores.values()]
    sizes = [len(one) for one in flat]
    if scope == "layer":
        shares = zip(flat, portions(sizes, count), strict=True)
        chosen = [first(one, most, remove) for one, most in shares]
    else:
        chosen = list(first(torch.cat(flat), count, remove).split(sizes)) if flat else []
    pairs = zip(scores.items(), chosen, strict=True)
    return {name: mask.view_as(score) for (name, score), mask in pairs}


def random_scores(weights: Mapping[str, torch.Tensor], generator: torch.Generator) -> Scores:
    """Independent uniform numbers in [0, 1), drawn on the CPU, 53 bits each: hardly ever a tie."""
    return {
        name: torch.rand(weight.shape, generator=generator, dtype=torch.float64).to(weight.device)
        for name, weight in weights.items()
    }


def magnitudes(weights: Mapping[str, torch.Tensor]) -> Scores:
    """`|w|`."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def first(scores: torch.Tensor, count: int, end: End = "smallest") -> torch.Tensor:
    """True at the `count` smallest or largest scores, in their shape; of equal ones the first."""
    values = scores.detach().flatten()
    values = -values if end == "largest" else values
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # Selecting is linear in the number of values; a GPU sorts sooner.
    ranked = values.sort().values[count - 1] if values.is_cuda else values.kthvalue(count).values
    below, level = values < ranked, values == ranked
    chosen = below | (level & (level.cumsum(0) <= count - below.sum()))
    return chosen.view_as(scores)


def part(share: float, count: int) -> int:
    """`share * count` rounded down: of 100, 0.29 are 29, although 0.29 * 100 < 29 in floats."""
    return int(share * count + 1e-9)


def portions(sizes: list[int], count: int) -> list[int]:
    """`count` shared out in proportion to `sizes`: rounded down, then one more for the largest
    remainders until the sum is exact; of equal remainders the first."""
    total = max(sum(sizes), 1)
    shares = [count * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(count * sizes[i] % total))
    for index in by_remainder[: count - sum(shares)]:
        shares[index] += 1
    return shares


@torch.no_grad()
def clear(model: nn.Module, removed: Masks) -> None:
    """Set what is removed to zero, in place."""
    for name, mask in removed.items():
        model.get_parameter(name).masked_fill_(mask, 0.0)


def everywhere(model: nn.Module, removed: Masks) -> Masks:
    """The masks of all parameters, False where nothing is removed."""
    return {
        name: removed.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        for name, parameter in model.named_parameters()
    }


def tune(model: nn.Module, removed: Masks, setting: FineTuneSettings | None, data: Data) -> History:
    """Fine-tune in place, if asked to; what is removed is set to zero again after every step."""
    if setting is None:
        return []
    return finetune(
        model.requires_grad_(True),
        setting,
        require(data),
        seed=int(torch.randint(2**31, (), generator=data.generator)),
        after_step=lambda trained: clear(trained, removed),
    )


def masked(
    model: nn.Module, removed: Masks, setting: FineTuneSettings | None, data: Data, **notes: Any
) -> Pruned:
    """Remove, fine-tune the rest if asked to, and note the history as `finetune`."""
    clear(model, removed)
    history = tune(model, removed, setting, data)
    return Pruned(model, everywhere(model, removed), notes | {"finetune": history})


def ranked(model: nn.Module, scores: Scores, setting: Amount, data: Data, **how: Any) -> Pruned:
    """Remove as many of the prunable weights as `setting` says; `how`: see `select`."""
    removed = select(scores, removals(model, setting), **how)
    return masked(model, removed, setting.finetune, data)
