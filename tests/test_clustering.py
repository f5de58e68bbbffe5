"""Piecewise weight clustering: value and gradient by hand, and what it does in a recipe."""

import pytest
import torch
from torch import nn

from advprune.core.train_settings import RecipeSettings, TrainSettings
from advprune.training.adversarial import Method
from advprune.training.clustering import clustering


def by_hand() -> nn.Module:
    """A linear layer with weights 1, 3, -2, -6, and a convolution with 0, 2, 4."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(4, 1))
    model[0].weight.data = torch.tensor([0.0, 2.0, 4.0]).view(3, 1, 1, 1)
    model[3].weight.data = torch.tensor([[1.0, 3.0, -2.0, -6.0]])
    return model


def test_value_and_gradient_by_hand() -> None:
    """Linear: means 2 and -4, (1 + 1) + (4 + 4) = 10. Convolution: mean 2, 4 + 0 + 4 = 8, and the
    zero on the other side alone, 0. The gradient is twice the distance to the mean."""
    model = by_hand()
    value = clustering(model)
    assert value.item() == 18.0
    value.backward()
    assert model[3].weight.grad.tolist() == [[-2.0, 2.0, 4.0, -4.0]]
    assert model[0].weight.grad.flatten().tolist() == [-4.0, 0.0, 4.0]
    assert model[3].bias.grad is None and model[1].weight.grad is None


def test_one_sign_or_no_layer_makes_no_nan() -> None:
    model = nn.Linear(2, 2)
    model.weight.data = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    assert clustering(model).item() == 4.0
    assert clustering(nn.ReLU()).item() == 0.0


@pytest.mark.parametrize("method", ["standard", "trades"])
def test_the_recipe_adds_it_with_its_weight(method: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    losses = [
        Method(RecipeSettings(method=method, clustering=weight), TrainSettings()).loss(
            model, x, x, y
        )[0]
        for weight in (0.0, 0.25)
    ]
    assert torch.isclose(losses[1] - losses[0], 0.25 * clustering(model), atol=1e-6)


def test_descent_brings_weights_to_two_values() -> None:
    weight = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    signs = weight.weight.detach().sign()
    for _ in range(60):
        optimizer.zero_grad()
        clustering(weight).backward()
        optimizer.step()
    assert len({round(v, 4) for v in weight.weight.flatten().tolist()}) == 2
    assert torch.equal(weight.weight.detach().sign(), signs)
