"""What every attack refuses: images, labels, budgets and options that make no sense."""

from typing import Any

from advprune.models.border import check_images, check_model, refuse

__all__ = ["check_budget", "check_choice", "check_images", "check_model", "check_numbers", "refuse"]


def check_budget(attack: str, eps: float, norm: str) -> None:
    """ValueError where a budget is NaN or below 0, or an Linf budget above 1."""
    check_numbers(attack, 0, eps=eps)
    above = norm == "Linf" and eps > 1
    refuse(attack, {f"eps is {eps}; an Linf budget lies between 0 and 1": above})


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
