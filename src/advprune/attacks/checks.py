"""What every attack refuses: images, labels, budgets and options that make no sense."""

from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of, evaluated
from advprune.models.stochastic import is_randomized


def refuse(attack: str, faults: dict[str, bool]) -> None:
    """ValueError with the first fault that holds; the attack's name begins the message."""
    for fault, holds in faults.items():
        if holds:
            raise ValueError(f"{attack}: {fault}")


def check_images(attack: str, images: torch.Tensor, labels: torch.Tensor | None) -> None:
    """ValueError where images are not floating `[N, C, H, W]` in [0, 1], or labels (if any) not
    int64 `[N]` from 0."""
    refuse(attack, {f"images have shape {list(images.shape)}, not [N, C, H, W]": images.ndim != 4})
    floating = images.is_floating_point()
    refuse(attack, {f"images are {images.dtype}; give floats in [0, 1]": not floating})
    inside = not len(images) or bool(((images >= 0) & (images <= 1)).all())
    refuse(attack, {"images hold NaN or lie outside [0, 1]": not inside})
    if labels is not None:
        fits, whole = labels.shape == images.shape[:1], labels.dtype == torch.int64
        refuse(attack, {f"{len(labels)} labels for {len(images)} images": not fits})
        refuse(attack, {f"labels are {labels.dtype}; give torch.int64": not whole})
        refuse(attack, {"a label is below 0": bool((labels < 0).any())})


def check_budget(attack: str, eps: float, norm: str) -> None:
    """ValueError where a budget is NaN or below 0, or an Linf budget above 1."""
    check_numbers(attack, 0, eps=eps)
    above = norm == "Linf" and eps > 1
    refuse(attack, {f"eps is {eps}; an Linf budget lies between 0 and 1": above})


def check_model(
    attack: str,
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    random: bool = False,
) -> None:
    """ValueError where a model's weights are of another type than the images, its output is not
    one row of logits per image, a label is none of its classes, or it draws at random in a way
    that attacks do not know of (models/stochastic.py); two passes of two images. random: the attack
    asks any model several times, so that such draws are no fault.

    The model and the global random state stay as they were.
    """
    types = {p.dtype for p in model.parameters() if p.is_floating_point()} - {images.dtype}
    shown = f"the model computes in {next(iter(types), None)}, and images are {images.dtype}"
    refuse(attack, {shown: bool(types)})
    if not len(images):
        return
    device, judged = device_of(model), evaluated(model)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        logits, again = (judged(images[:2].to(device)) for _ in range(2))
    kind = type(logits).__name__
    refuse(attack, {f"the model returns {kind}, not logits": not isinstance(logits, torch.Tensor)})
    shape, count = list(logits.shape), len(images[:2])
    wrong = logits.ndim != 2 or len(logits) != count
    refuse(attack, {f"the model returns {shape} for {count} images, not [N, classes]": wrong})
    drawn = not (random or is_randomized(model)) and not torch.equal(logits, again)
    fault = "the model draws at random outside the library's random layers: it answers the same "
    refuse(attack, {f"{fault}images differently, and an attack would follow a single draw": drawn})
    largest = int(labels.max())
    outside = largest >= logits.shape[1]
    refuse(attack, {f"label {largest} is none of {logits.shape[1]} classes": outside})


def check_numbers(attack: str, least: int, **numbers: float) -> None:
    """ValueError where a number is NaN or below `least`."""
    refuse(
        attack,
        {
            f"{key} is {n}; it must be at least {least}": not n >= least
            for key, n in numbers.items()
        },
    )


def check_choice(attack: str, key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """ValueError where the option `key` is none of `allowed`."""
    known = ", ".join(map(str, allowed))
    refuse(attack, {f"{key} is {value!r}; allowed: {known}": value not in allowed})
