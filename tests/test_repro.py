"""The pipeline on two branches: what is started, with what, and when nothing is."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
import repro
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent


class Started:
    """Commands that were started, in order; `+` where others may run meanwhile, `.` at the end."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def popen(self, command: list[str]) -> Any:
        self.log.append("+ " + " ".join(command[1:]))
        return type("Branch", (), {"wait": lambda _: self.log.append(".")})()

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        self.log.append(" ".join(command[1:]))
        return subprocess.CompletedProcess(command, 3)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    log = Started()
    monkeypatch.setattr(repro.subprocess, "Popen", log.popen)
    monkeypatch.setattr(repro.subprocess, "run", log.run)
    monkeypatch.setattr(repro.os, "cpu_count", lambda: 2)
    monkeypatch.delenv("ADVPRUNE_WORKERS", raising=False)
    return log


def test_groups_are_those_of_the_pipeline_and_in_one_branch_each() -> None:
    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    groups = [group for step in repro.STEPS for branch in step for group in branch]
    assert set(groups) <= set(stages) and len(groups) == len(set(groups))


def test_branches_of_a_step_run_side_by_side_and_the_rest_at_the_end(
    started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repro, "_steps", lambda: [[["prepare"]], [["train"], ["binary", "sweep"]]])
    assert repro.main() == 3
    side = "+ -m dvc --wait-for-lock repro"
    assert started.log == [
        *(f"{side} prepare", "."),
        *(f"{side} train", f"{side} binary sweep", ".", "."),
        "-m dvc repro",
    ]


@pytest.mark.parametrize(("cores", "workers"), [(1, "2"), (2, "1")])
def test_a_single_core_or_worker_runs_one_stage_after_the_other(
    started: Started, monkeypatch: pytest.MonkeyPatch, cores: int, workers: str
) -> None:
    monkeypatch.setattr(repro.os, "cpu_count", lambda: cores)
    monkeypatch.setenv("ADVPRUNE_WORKERS", workers)
    assert repro.main() == 3
    assert started.log == ["-m dvc repro"]


def test_groups_without_stages_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Repo:
        changed: bool = True

        def __enter__(self) -> "Repo":
            return self

        def __exit__(self, *_: object) -> None: ...

        def status(self, targets: list[str], with_deps: bool) -> dict[str, Any]:
            assert targets == ["summarize"] and with_deps
            return {"train@standard": []} if self.changed else {}

        @property
        def index(self) -> Any:
            stages = ["prepare", "attacks", "train@standard", "sweep@E-standard"]
            named = [type("Stage", (), {"addressing": name})() for name in stages]
            return type("Index", (), {"stages": named})()

    monkeypatch.setattr("dvc.repo.Repo", Repo)
    assert repro._steps() == [[["prepare", "attacks"]], [["train"]], [["sweep"]]]
    Repo.changed = False
    assert repro._steps() == []
