"""The attack through estimated gradients: closed forms, and models that have no gradient."""

import pytest
import torch
from torch import nn

from advprune.attacks import pgd
from advprune.attacks.cost import Cost
from advprune.attacks.losses import margin
from advprune.attacks.nes import nes
from advprune.attacks.registry import Context, method_of, typed
from advprune.core.attack_settings import OtherAttack
from conftest import Linear

Pair = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.05), ("L2", 0.3)])
def test_comes_near_the_known_optimum_of_a_linear_model(
    linear: Linear, norm: str, eps: float
) -> None:
    """The margin rises at most by `eps |w_other - w_y|` in the dual norm."""
    generator = torch.Generator().manual_seed(3)
    images = 0.5 + 0.2 * (torch.rand(12, 3, 4, 4, generator=generator) - 0.5)
    weight, labels = linear.weight.detach(), linear(images).argmax(1)
    size = (weight[1 - labels] - weight[labels]).norm(1 if norm == "Linf" else 2, dim=1)
    cost = Cost()
    options = {"norm": norm, "step": eps / 10, "sigma": 0.01, "steps": 40, "cost": cost}
    found = nes(linear, images, labels, eps, samples=64, **options)
    before, after = (margin(linear(x), labels).detach() for x in (images, found))
    right = after <= 0  # the others were let go as soon as they were fooled
    share = ((after - before) / (eps * size))[right]
    assert right.any() and share.min() > 0.9 and share.max() <= 1 + 1e-4
    assert ((before + eps * size > 0) | right).all()
    assert not cost.gradients and cost.forwards <= 12 * (1 + 40 * (2 * 64 + 1))


class Stairs(nn.Module):
    """A model behind rounding: right values, no gradient."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner((x * 64).round() / 64)


def test_fools_where_there_is_no_gradient_and_does_not_depend_on_the_batch(
    network: nn.Module, digits: Pair
) -> None:
    model, images = Stairs(network), digits[0][:16]
    labels = model(images).argmax(1)
    blind = pgd(model, images, labels, 0.05, 0.01, 10, random_start=False)
    assert (model(blind).argmax(1) == labels).all()
    options = {"step": 0.0125, "sigma": 0.02, "steps": 10, "samples": 16, "seed": 4}
    whole, parts = (nes(model, images, labels, 0.05, batch=b, **options) for b in (16, 5))
    assert (model(whole).argmax(1) == labels).float().mean() < 0.7
    assert ((whole - parts).abs() > 1e-5).float().mean() < 0.05
    assert (whole - images).abs().max() <= 0.05 + 1e-6


def test_is_an_attack_of_a_suite_on_the_integers_alone(network: nn.Module, digits: Pair) -> None:
    setting = typed("n", OtherAttack(method="nes", eps=0.1, step=0.025, sigma=0.02, steps=2))
    cost = Cost()
    found = method_of(setting).function(network, *digits, setting, Context(cost=cost, pixels=True))
    assert not method_of(setting).differentiates and cost.forwards and not cost.gradients
    assert ((found * 255) - (found * 255).round()).abs().max() < 1e-3
    with pytest.raises(ValueError, match="sigma"):
        nes(network, *digits, 0.1, sigma=0.0)
