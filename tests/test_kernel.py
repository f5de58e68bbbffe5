"""Tangent kernels against loops of autograd, enumerated sign vectors and finite differences."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advprune.core.errors import UserError
from advprune.pruning.kernel import exact_kernel, kernel_products, probing_vectors, trainable
from conftest import make_network

Pair = tuple[torch.Tensor, torch.Tensor]
Masks = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def small(digits: Pair) -> nn.Module:
    """A ResNet18 of width 2 with three classes, in float64."""
    return make_network(digits[0], width=2, classes=3).double()


@pytest.fixture(scope="module")
def images(digits: Pair) -> Pair:
    """Three clean images and, in place of attacked ones, two others; float64."""
    return digits[0][:3].double(), digits[0][5:7].double()


@pytest.fixture(scope="module")
def removed(small: nn.Module) -> Masks:
    """Every other weight of two layers."""
    names = "layer1.0.conv1.weight", "linear.weight"
    chosen = {name: torch.zeros_like(small.get_parameter(name)).bool() for name in names}
    for mask in chosen.values():
        mask.view(-1)[::2] = True
    return chosen


def brute_jacobian(model: nn.Module, images: torch.Tensor, removed: Masks) -> torch.Tensor:
    """`[N, O, n]` by a backward pass for every image and output, of f(mask * w)."""
    parameters = dict(model.named_parameters())
    keep = {n: (~removed[n]).to(p) if n in removed else 1.0 for n, p in parameters.items()}
    rows = []
    for image in images:
        masked = {n: p * keep[n] + (p * (1 - keep[n])).detach() for n, p in parameters.items()}
        logits = functional_call(model, masked, (image[None],))[0]
        for logit in logits:
            found = torch.autograd.grad(logit, list(parameters.values()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).view(len(images), -1, rows[0].numel())


def brute_kernel(model: nn.Module, images: Pair, removed: Masks) -> torch.Tensor:
    rows, columns = (brute_jacobian(model, x, removed) for x in images)
    return torch.einsum("iap,jbp->ijab", rows, columns)


@pytest.mark.parametrize("masked", [False, True])
def test_kernel_and_products_are_those_of_single_backward_passes(
    small: nn.Module, images: Pair, removed: Masks, masked: bool
) -> None:
    gone = removed if masked else {}
    expected = brute_kernel(small, images, gone)
    found = exact_kernel(small, *images, gone)
    assert found.shape == (3, 2, 3, 3)
    torch.testing.assert_close(found, expected)
    vectors = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    products = kernel_products(small, *images, vectors, gone)
    torch.testing.assert_close(products, torch.einsum("ijab,pjb->pia", expected, vectors))
    if masked:
        assert not torch.allclose(found, exact_kernel(small, *images))


def test_the_kernel_is_symmetric_and_positive_at_equal_images(
    small: nn.Module, images: Pair
) -> None:
    kernel = exact_kernel(small, images[0], images[0])
    torch.testing.assert_close(kernel, kernel.permute(1, 0, 3, 2))
    matrix = kernel.permute(0, 2, 1, 3).reshape(9, 9)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-9 * matrix.diagonal().max()


def test_frozen_parameters_have_no_part_in_it(digits: Pair, images: Pair) -> None:
    model = make_network(digits[0], width=2, classes=3).double().requires_grad_(False)
    model.linear.bias.requires_grad_(True)
    assert list(trainable(model)) == ["linear.bias"]
    torch.testing.assert_close(
        exact_kernel(model, *images), torch.eye(3).double().expand(3, 2, 3, 3)
    )


class Step(torch.autograd.Function):
    """A function with a gradient of its own, as autograd alone knows it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


class Odd(nn.Module):
    """A network whose logits go through a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(64, 3), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.cdist(x, x), "forward AD with _cdist_forward"),
        (Step.apply, "setup_context"),
        (nn.functional.dropout, "random operation"),
    ],
)
def test_what_torch_cannot_differentiate_so_is_said_in_a_line(
    images: Pair, function: Callable[[torch.Tensor], torch.Tensor], words: str
) -> None:
    pair = (images[0].float(), images[1].float())
    outputs = len(Odd(function)(pair[1])[0])
    with pytest.raises(UserError, match=f"kernel, which tickets need: .*{words}") as caught:
        kernel_products(Odd(function), *pair, torch.ones(1, 2, outputs))
    assert "\n" not in str(caught.value)


def difference(small: nn.Module, images: Pair, removed: Masks) -> torch.Tensor:
    """A matrix `[N O, M O]`: the kernel without some weights from that with them."""
    change = exact_kernel(small, *images) - exact_kernel(small, *images, removed)
    return change.permute(0, 2, 1, 3).reshape(9, 6).detach()


def by_products(
    small: nn.Module, images: Pair, removed: Masks, vectors: torch.Tensor
) -> torch.Tensor:
    """`||D v_p||^2` of each vector, `[P]`, of the same matrix."""
    with torch.no_grad():
        whole = kernel_products(small, *images, vectors)
        return (whole - kernel_products(small, *images, vectors, removed)).square().sum((1, 2))


def test_the_mean_over_all_sign_vectors_is_the_distance_and_the_variance_the_stated_one(
    small: nn.Module, images: Pair, removed: Masks
) -> None:
    matrix = difference(small, images, removed)
    every = torch.tensor(list(product((-1.0, 1.0), repeat=6))).double().view(64, 2, 3)
    found = by_products(small, images, removed, every)
    torch.testing.assert_close(found.mean(), matrix.square().sum())
    gram = matrix.T @ matrix
    stated = 2 * (gram.square().sum() - gram.diagonal().square().sum())
    torch.testing.assert_close(found.var(unbiased=False), stated)


def test_drawn_signs_are_unbiased_and_unit_vectors_exact(
    small: nn.Module, images: Pair, removed: Masks
) -> None:
    matrix, outputs = difference(small, images, removed), torch.zeros(2, 3).double()
    gram, truth = matrix.T @ matrix, matrix.square().sum()
    drawn = probing_vectors(outputs, 500, torch.Generator().manual_seed(1))
    assert drawn.dtype == torch.float64 and set(drawn.unique().tolist()) == {-1.0, 1.0}
    found = by_products(small, images, removed, drawn)
    variance = 2 * (gram.square().sum() - gram.diagonal().square().sum())
    assert (found.mean() - truth).abs() < 4 * (variance / 500).sqrt()
    units = probing_vectors(outputs, None, torch.Generator())
    assert units.shape == (6, 2, 3)
    torch.testing.assert_close(by_products(small, images, removed, units).mean(), truth)


def test_vectors_follow_their_generator() -> None:
    one, same, other = (
        probing_vectors(torch.zeros(4, 5), 3, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("exact", [False, True])
def test_the_gradient_of_the_distance_is_that_of_finite_differences(
    digits: Pair, images: Pair, removed: Masks, exact: bool
) -> None:
    dense = make_network(digits[0], width=2, classes=3).double()
    sparse = make_network(digits[0], width=2, classes=3).double()
    for name, gone in removed.items():
        sparse.get_parameter(name).data.masked_fill_(gone, 0.0)
    vectors = probing_vectors(torch.zeros(2, 3).double(), 2, torch.Generator().manual_seed(0))

    def view(model: nn.Module, gone: Masks) -> torch.Tensor:
        if exact:
            return exact_kernel(model, *images, gone)
        return kernel_products(model, *images, vectors, gone)

    target, parameters = view(dense, {}).detach(), list(trainable(sparse).values())
    distance = (target - view(sparse, removed)).square().sum()
    gradients = torch.autograd.grad(distance, parameters, materialize_grads=True)
    step, generator = 1e-6, torch.Generator().manual_seed(3)
    way = [torch.randn(p.shape, generator=generator).double() for p in parameters]

    @torch.no_grad()
    def moved(length: float) -> torch.Tensor:
        for p, u in zip(parameters, way, strict=True):
            p += length * u
        return (target - view(sparse, removed)).square().sum()

    slope = (moved(step) - moved(-2 * step)) / (2 * step)
    found = sum((g * u).sum() for g, u in zip(gradients, way, strict=True))
    torch.testing.assert_close(found, slope, rtol=1e-4, atol=0.0)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_products_and_their_gradients_never_form_a_jacobian(digits: Pair) -> None:
    model, images = make_network(digits[0], width=4), digits[0][:2]
    layer = max(p.numel() for p in model.parameters())
    outputs, generator = torch.zeros(2, 10), torch.Generator().manual_seed(0)

    def largest(view: Callable[[], torch.Tensor]) -> int:
        with Largest() as mode:
            torch.autograd.grad(view().square().sum(), model.layer1[0].conv1.weight)
        return mode.numel

    assert largest(lambda: exact_kernel(model, images, images)) >= 2 * 10 * layer
    for count in (1, 3):
        vectors = probing_vectors(outputs, count, generator)
        found = largest(lambda v=vectors: kernel_products(model, images, images, v))  # type: ignore[misc]
        assert layer <= found <= count * layer
