"""Evaluation: records (one row per sample), and metrics as pure functions of records.

`metrics` needs no torch; `score` is resolved on first use because it does.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from advprune.evaluate.measures import metrics

if TYPE_CHECKING:
    from advprune.evaluate.records import score

__all__ = ["metrics", "score"]


def __getattr__(name: str) -> Any:
    if name == "score":
        return import_module("advprune.evaluate.records").score
    raise AttributeError(f"module 'advprune.evaluate' has no attribute {name!r}")
