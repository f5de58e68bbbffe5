"""Attacks: pure functions of a model, images and labels."""

from advprune.attacks.pgd import pgd
from advprune.attacks.pixels import to_pixels

__all__ = ["pgd", "to_pixels"]
