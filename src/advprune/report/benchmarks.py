"""Figures that benchmarks published of compressed networks, to be shown beside one's own."""

from functools import cache
from importlib.resources import files
from typing import Any

from advprune.core.settings import yaml_of

FILE = "benchmarks.yaml"
IMAGES = 10_000  # the test images of CIFAR-10


@cache
def figures() -> dict[str, dict[str, Any]]:
    """By name (`apb/HYDRA/resnet18/90`): n, clean_accuracy, robust_accuracy (AutoAttack, Linf) in
    [0, 1], and source."""
    read = yaml_of(files("advprune.report").joinpath(FILE).read_text("utf-8"), FILE)
    found = {}
    for benchmark, held in read.items():
        for name, (clean, robust) in held["figures"].items():
            rates = {"clean_accuracy": clean / 100, "robust_accuracy": robust / 100}
            found[f"{benchmark}/{name}"] = {"n": IMAGES, **rates, "source": held["source"]}
    return found
