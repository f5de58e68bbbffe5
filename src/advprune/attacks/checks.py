"""What is refused of numbers that no settings class has checked."""

from numbers import Integral

from advprune.models.border import refuse

MOST = 1 << 31


def check_counts(who: str, **counts: int) -> None:
    """ValueError where one is no whole number of at least 1."""
    for key, n in counts.items():
        sound = isinstance(n, Integral) and not isinstance(n, bool) and 1 <= n < MOST
        refuse(who, {f"{key} is {n!r}; it must be a whole number, at least 1": not sound})
