"""What every attack refuses of its options; images and models: `models.border`."""

from numbers import Integral
from typing import Any

import numpy as np

from advprune.models.border import refuse

MOST = 1 << 31
REAL = ("eps", "step", "momentum")  # the others are counts


def check_numbers(attack: str, least: int, **numbers: float) -> None:
    """ValueError where a number is none, NaN, infinite or below `least`, or a count not whole."""
    for key, n in numbers.items():
        kinds = (float, np.floating, Integral) if key in REAL else (Integral,)
        sound = isinstance(n, kinds) and not isinstance(n, bool) and least <= n < MOST
        what = "a number" if key in REAL else "a whole number"
        refuse(attack, {f"{key} is {n!r}; it must be {what}, at least {least}": not sound})


def check_choice(attack: str, key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """ValueError where the option `key` is none of `allowed`."""
    known = ", ".join(map(str, allowed))
    refuse(attack, {f"{key} is {value!r}; allowed: {known}": value not in allowed})
