"""How to repeat the run: the settings of every attack, and the versions of the packages."""

import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

import pandas as pd

import advprune
from advprune.report.run import Run
from advprune.report.section import Part, section

PACKAGES = (
    *("torch", "torchattacks", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib", "dvc"),
)
COLUMNS = (
    *("attack", "method", "norm", "eps", "step", "steps", "queries", "restarts", "random_start"),
    *("loss", "targets", "keep", "momentum", "adam", "samples", "sigma", "draws", "backward"),
    *("version", "images", "rounding", "note"),
)


@section("Settings and versions", order=200)
def settings(run: Run) -> Iterator[Part]:
    """One row per attack that was run, and one per package."""
    from advprune.attacks.registry import attacks_of  # needs torch

    used = dict.fromkeys(name for model in run.models for name in run.attack_names(model))
    known = {name: one.model_dump() for name, one in attacks_of(run.profile).items()}
    for one in run.params.attack.extra:
        known[one.key] = {"method": "torchattacks", **one.arguments()}
    table = pd.DataFrame({"attack": name, **known.get(name, {})} for name in used)
    yield Part("Attacks", f"Seed {run.params.seed}.", table[[c for c in COLUMNS if c in table]])
    versions = {"advprune": advprune.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):  # of an extra
            versions[name] = version(name)
    yield Part("Versions", table=pd.DataFrame(versions.items(), columns=["package", "version"]))
