"""Run what is out of date of the pipeline, two branches at a time.

    python stages/warm.py python stages/repro.py

`dvc repro` runs one stage after the other, and most stages fill one core. DVC may be started
several times at once, for stages that do not need each other. What a branch leaves undone, for
whatever reason, the last `dvc repro` does, or says why it cannot.
"""

import os
import subprocess
import sys

# Groups of dvc.yaml. The branches of a step are run side by side, the steps one after the other.
STEPS = (
    (("prepare", "attacks"),),
    (("train",), ("binary", "surrogate")),
    (
        ("sparsity", "protocol", "ticket", "attack-unpruned", "attack", "attack-ticket"),
        ("compression", "attack-masked", "quantized", "attack-quantized", "sweep", "attack-binary"),
    ),
)
DVC = (sys.executable, "-m", "dvc")


def main() -> int:
    """The exit status of the last `dvc repro`."""
    if (os.cpu_count() or 1) > 1 and os.environ.get("ADVPRUNE_WORKERS") != "1":
        for step in _steps():
            branches = [
                subprocess.Popen([*DVC, "--wait-for-lock", "repro", *groups]) for groups in step
            ]
            for branch in branches:
                branch.wait()
    return subprocess.run([*DVC, "repro"]).returncode


def _steps() -> list[list[list[str]]]:
    """The steps, of groups that the settings leave something of; none where all is up to date."""
    from dvc.repo import Repo

    with Repo() as repo:
        if not repo.status(targets=["summarize"], with_deps=True):
            return []
        there = {stage.addressing.split("@")[0] for stage in repo.index.stages}
    left = [[[group for group in branch if group in there] for branch in step] for step in STEPS]
    return [[branch for branch in step if branch] for step in left]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # DVC and the stages have heard it, too
        sys.exit(130)
