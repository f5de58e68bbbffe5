"""Attacks: pure functions of a model, images and labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from advprune.attacks.pgd import pgd
from advprune.attacks.pixels import to_pixels

if TYPE_CHECKING:
    from advprune.attacks.bit_search import bitflip

__all__ = ["bitflip", "pgd", "to_pixels"]


def __getattr__(name: str) -> Any:
    """`bitflip` on first use: adversarial training needs `pgd` and must not depend on the other."""
    if name == "bitflip":
        return import_module("advprune.attacks.bit_search").bitflip
    raise AttributeError(f"module 'advprune.attacks' has no attribute {name!r}")
