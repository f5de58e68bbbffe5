"""Tangent kernels: how a gradient step on some images moves a network's outputs on others.

With J(X) the derivative of the outputs f(X) by the trainable parameters, the mixed tangent kernel
between clean images X and attacked ones X~ is `Theta = J(X) J(X~)^T` (Shi et al., Finding Dynamics
Preserving Adversarial Winning Tickets, 2022). Under gradient flow on the loss at X~ it is all that
decides how f(X) moves, `df(X)/dt = -Theta dL/df(X~)`: two networks of equal outputs and equal
kernel start to learn alike.

It is never formed: Jacobians would take `N O n` numbers for N images, O outputs and n parameters.
Each of its products `Theta v = J(X) (J(X~)^T v)` with P vectors v of random signs takes a backward
pass at X~ and a forward derivative at X. For any matrix D `E ||D v||^2 = ||D||_F^2`, so distances
of kernels are estimated without bias. With `A = D^T D`, the variance of one product is
`2 (||A||_F^2 - sum_k A_kk^2)`, small where D has many directions (Hutchinson, 1989). Products can
be differentiated by the parameters once more.

Parameters that a mask removes have no derivative: f is a function of `mask * w`. Networks are in
evaluation mode, where batch-norm is a fixed map and images do not depend on each other.
"""

import warnings
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call, jvp, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from advprune.core.errors import UserError, first_line

Tensors = dict[str, torch.Tensor]  # by parameter name
Removed = Mapping[str, torch.Tensor]  # bool by parameter name, True where a weight is removed


def trainable(model: nn.Module) -> Tensors:
    """theta: the parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def kernel_products(
    model: nn.Module,
    clean: torch.Tensor,
    crafted: torch.Tensor,
    vectors: torch.Tensor,
    removed: Removed,
) -> torch.Tensor:
    """`Theta(clean, crafted) v` for each of the vectors `[P, M, O]`: `[P, N, O]`.

    With v the gradient of a loss by the outputs at the crafted images: how fast a step against it
    moves the outputs at the clean ones (up to the sign). It takes about `P n + (1 + P) (N + M) A`
    numbers, n parameters and A activations per image, three times that where a gradient is taken
    (Jacobians: `(N + M) O n`): give many vectors a few at a time. UserError, with torch's words,
    where an operation has no forward derivative or cannot be mapped over vectors.
    """
    parameters = trainable(model)

    def logits(values: Tensors, images: torch.Tensor) -> torch.Tensor:
        return functional_call(model, values, (images,))

    def product(vector: torch.Tensor) -> torch.Tensor:
        (gradient,) = pull(vector)
        kept = {
            name: g.masked_fill(removed[name], 0.0) if name in removed else g
            for name, g in gradient.items()
        }
        return jvp(lambda values: logits(values, clean), (parameters,), (kept,))[1]

    # Other kernels of attention have no second and no forward derivatives.
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")  # torch's own use
        try:
            pull = vjp(lambda values: logits(values, crafted), parameters)[1]
            return vmap(product)(vectors)
        except RuntimeError as error:
            raise UserError(
                "torch cannot compute the network's tangent kernel, which tickets need: "
                f"{first_line(error)}"
            ) from error


def probing_vectors(
    outputs: torch.Tensor, count: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Vectors `[count, N, O]`, for outputs `[N, O]`, with `mean_p ||D v_p||^2 = ||D||_F^2`. D is
    any matrix. With independent random signs, drawn on the CPU, it is so in expectation; where
    `count` is None, with all the unit vectors times `sqrt(N O)`, exactly."""
    size = outputs.numel()
    if count is None:
        found = torch.eye(size) * size**0.5
    else:
        found = torch.randint(2, (count, size), generator=generator) * 2 - 1
    return found.to(outputs).view(-1, *outputs.shape)
