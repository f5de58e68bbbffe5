"""Kernel products against loops of autograd, enumerated sign vectors and finite differences."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advprune.core.errors import UserError
from advprune.pruning.ticket_search import kernel_products, probing_vectors, trainable
from conftest import make_network


def jacobian(model, images, removed):
    """`[N, O, n]` of f(mask * w) by the trainable parameters; differentiable once more."""
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    keep = {n: (~removed[n]).to(p) if n in removed else 1.0 for n, p in parameters.items()}
    masked = {n: p * keep[n] + (p * (1 - keep[n])).detach() for n, p in parameters.items()}
    rows = []
    for image in images:
        logits = functional_call(model, masked, (image[None],))[0]
        for logit in logits:
            found = torch.autograd.grad(logit, list(parameters.values()), create_graph=True)
            rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows).view(len(images), -1, rows[0].numel())


def exact_kernel(model, images, removed):
    """`Theta(clean, crafted)`, `[N, M, O, O]`."""
    rows, columns = (jacobian(model, x, removed) for x in images)
    return torch.einsum("iap,jbp->ijab", rows, columns)


@pytest.fixture(scope="module")
def small(digits):
    """A ResNet18 of width 2 with three classes, in float64."""
    return make_network(digits[0], width=2, classes=3).double()


@pytest.fixture(scope="module")
def images(digits):
    """Three clean images and, in place of attacked ones, two others; float64."""
    return digits[0][:3].double(), digits[0][5:7].double()


@pytest.fixture(scope="module")
def removed(small):
    """Every other weight of two layers."""
    names = "layer1.0.conv1.weight", "linear.weight"
    chosen = {name: torch.zeros_like(small.get_parameter(name)).bool() for name in names}
    for mask in chosen.values():
        mask.view(-1)[::2] = True
    return chosen


@pytest.fixture(scope="module")
def matrix(small, images, removed):
    """D `[N O, M O]`: the kernel without some weights from that with them."""
    change = exact_kernel(small, images, {}) - exact_kernel(small, images, removed)
    return change.permute(0, 2, 1, 3).reshape(9, 6).detach()


@pytest.mark.parametrize("masked", [False, True])
def test_products_are_those_of_single_backward_passes(small, images, removed, matrix, masked):
    gone = removed if masked else {}
    expected = exact_kernel(small, images, gone).detach()
    vectors = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    products = kernel_products(small, *images, vectors, gone)
    torch.testing.assert_close(products, torch.einsum("ijab,pjb->pia", expected, vectors))
    assert matrix.any()  # the mask matters


def test_frozen_parameters_have_no_part_in_it(digits, images):
    model = make_network(digits[0], width=2, classes=3).double().requires_grad_(False)
    model.linear.bias.requires_grad_(True)
    assert list(trainable(model)) == ["linear.bias"]
    vectors = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0)).double()
    found = kernel_products(model, *images, vectors, {})  # the kernel is 1 where a = b
    torch.testing.assert_close(found, vectors.sum(1, keepdim=True).expand(1, 3, 3))


class Step(torch.autograd.Function):
    """A function with a gradient of its own, as autograd alone knows it."""

    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0]


class Odd(nn.Module):
    """A network whose logits go through a function."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(64, 3), function

    def forward(self, x):
        return self.function(self.linear(x.flatten(1)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: torch.cdist(x, x), "forward AD with _cdist_forward"),
        (Step.apply, "setup_context"),
        (nn.functional.dropout, "random operation"),
    ],
)
def test_what_torch_cannot_differentiate_so_is_said_in_a_line(images, function, words):
    pair = (images[0].float(), images[1].float())
    outputs = len(Odd(function)(pair[1])[0])
    with pytest.raises(UserError, match=f"kernel, which tickets need: .*{words}") as caught:
        kernel_products(Odd(function), *pair, torch.ones(1, 2, outputs), {})
    assert "\n" not in str(caught.value)


def by_products(small, images, removed, vectors):
    """`||D v_p||^2` of each vector, `[P]`."""
    with torch.no_grad():
        whole = kernel_products(small, *images, vectors, {})
        return (whole - kernel_products(small, *images, vectors, removed)).square().sum((1, 2))


def test_sign_vectors_are_unbiased_with_the_stated_variance_and_unit_vectors_exact(
    small, images, removed, matrix
):
    every = torch.tensor(list(product((-1.0, 1.0), repeat=6))).double().view(64, 2, 3)
    found, truth = by_products(small, images, removed, every), matrix.square().sum()
    torch.testing.assert_close(found.mean(), truth)
    gram = matrix.T @ matrix
    stated = 2 * (gram.square().sum() - gram.diagonal().square().sum())
    torch.testing.assert_close(found.var(unbiased=False), stated)
    outputs = torch.zeros(2, 3).double()
    units = probing_vectors(outputs, None, torch.Generator())
    assert units.shape == (6, 2, 3)
    torch.testing.assert_close(by_products(small, images, removed, units).mean(), truth)
    drawn, again, other = (
        probing_vectors(outputs, 500, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert drawn.dtype == torch.float64 and set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 4 / 3000**0.5
    assert torch.equal(again, drawn) and not torch.equal(other, drawn)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return out


def test_products_and_their_gradients_never_form_a_jacobian(digits):
    model, images = make_network(digits[0], width=4), digits[0][:2]
    layer = max(p.numel() for p in model.parameters())
    outputs, generator = torch.zeros(2, 10), torch.Generator().manual_seed(0)

    for count in (1, 3):
        vectors = probing_vectors(outputs, count, generator)
        with Largest() as mode:
            found = kernel_products(model, images, images, vectors, {})
            torch.autograd.grad(found.square().sum(), model.layer1[0].conv1.weight)
        assert layer <= mode.numel <= count * layer  # a Jacobian has 2 * 10 layers
