"""The oracle of tangent kernels: a backward pass for every image and output."""

import torch
from torch import nn
from torch.func import functional_call

Masks = dict[str, torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor]


def jacobian(model: nn.Module, images: torch.Tensor, removed: Masks) -> torch.Tensor:
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


def exact_kernel(model: nn.Module, images: Pair, removed: Masks) -> torch.Tensor:
    """`Theta(clean, crafted)`, `[N, M, O, O]`."""
    rows, columns = (jacobian(model, x, removed) for x in images)
    return torch.einsum("iap,jbp->ijab", rows, columns)
