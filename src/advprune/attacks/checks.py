"""What every attack refuses of its options; images and models: `models.border`."""

from typing import Any

from advprune.models.border import refuse


def check_numbers(attack: str, least: int, **numbers: float) -> None:
    """ValueError where a number is NaN or below `least`."""
    for key, n in numbers.items():
        refuse(attack, {f"{key} is {n}; it must be at least {least}": not n >= least})


def check_choice(attack: str, key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """ValueError where the option `key` is none of `allowed`."""
    known = ", ".join(map(str, allowed))
    refuse(attack, {f"{key} is {value!r}; allowed: {known}": value not in allowed})
