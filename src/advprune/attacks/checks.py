"""What every attack refuses: images, labels, budgets and options that make no sense."""

from typing import Any

import torch


def refuse(attack: str, faults: dict[str, bool]) -> None:
    """ValueError with the first fault that holds; the attack's name begins the message."""
    for fault, holds in faults.items():
        if holds:
            raise ValueError(f"{attack}: {fault}")


def check_images(attack: str, images: torch.Tensor, labels: torch.Tensor | None) -> None:
    """ValueError where images are not `[N, C, H, W]` in [0, 1], or labels (if any) not `[N]`."""
    refuse(attack, {f"images have shape {list(images.shape)}, not [N, C, H, W]": images.ndim != 4})
    inside = not len(images) or bool(((images >= 0) & (images <= 1)).all())
    refuse(attack, {"images hold NaN or lie outside [0, 1]": not inside})
    if labels is not None:
        fits = labels.shape == images.shape[:1]
        refuse(attack, {f"{len(labels)} labels for {len(images)} images": not fits})


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
