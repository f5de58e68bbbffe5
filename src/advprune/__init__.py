"""adversarial-prune: what does compressing a network do to its adversarial robustness?

The public face is small::

    from advprune import attacks, benchmark, evaluate, load_model, load_split, prune

Names are resolved on first use, so that `import advprune` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advprune import attacks, evaluate
    from advprune.benchmarking import benchmark
    from advprune.data import load_split
    from advprune.models.checkpoint import load_model
    from advprune.pruning import Pruned, prune

__version__ = "0.6.0"
__all__ = ["Pruned", "attacks", "benchmark", "evaluate", "load_model", "load_split", "prune"]

_HOMES = {
    "Pruned": "advprune.pruning",
    "benchmark": "advprune.benchmarking",
    "load_model": "advprune.models.checkpoint",
    "load_split": "advprune.data",
    "prune": "advprune.pruning",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in __all__:
        return import_module(f"advprune.{name}")
    raise AttributeError(f"module 'advprune' has no attribute {name!r}")
