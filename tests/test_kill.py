"""A pipeline that is killed, interrupted, or meets a full disk: the next run gives the same bytes.

`make fuzz` does it at other moments.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
from hostile import SECONDS
from workspace import TINY, change, copy_pipeline, environment, made_here, run

from advprune.core.files import sha256_of

MADE = ("data", "runs", "records", "metrics", "reports", "dvc.lock")
CHAINS = 2 if SECONDS else 1  # pipelines that are broken off four times each
PATIENCE = 600  # seconds, on a busy machine too
FAULTS = ("kill", "interrupt", "full", "terminate")
# Each stage takes seconds to start: a pruned model beside the dense one is for `make fuzz`.
PRUNED = ["GAP_layer-standard"] if SECONDS else []
SMALL = {
    "models": {name: TINY["models"][name] for name in PRUNED},
    **{key: {} for key in ("studies", "substitutes", "binary")},
    "profiles/digits/model/width": 2,
    "profiles/digits/suite": {"table": ["field"], "deterministic": ["square", "distance"]},
    "profiles/digits/curves": {"eps": ["eps"], "steps": [1]},
}


def small(folder):
    change(copy_pipeline(folder), SMALL)
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return folder


def seen(folder):
    """What the stages made, and what else lies there."""
    places = [folder / name for name in MADE]
    files = [p for place in places for p in (place, *place.rglob("*")) if p.is_file()]
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """What the stages make in this process, with what DVC notes of them."""
    folder = small(tmp_path_factory.mktemp("whole") / "work")
    dense = "dense-standard"
    words = [("settings",), ("prepare",), ("train", dense), ("attack", dense)]
    words += [(script, name) for name in PRUNED for script in ("prune", "attack")]
    made_here(folder, *words, ("transfer",), ("summarize",))
    return seen(folder)


def members(group):
    """The processes of a group that have not ended."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, found = entry.read_text().rpartition(")")[2].split()[:3]
            if int(found) == group and state != "Z":
                yield int(entry.parent.name)


def break_off(process, fault):
    """What happens to a running `dvc repro`; returns when nothing of it runs any more."""
    group, running = process.pid, set[int]()
    if fault == "terminate":  # as a supervisor does, who knows of DVC alone
        process.terminate()
    elif fault == "full":  # of a stage; a full disk leaves DVC's own lock file damaged
        while process.poll() is None and not (running := set(members(group)) - {group}):
            time.sleep(0.01)
        for member in running:
            with suppress(ProcessLookupError):
                resource.prlimit(member, resource.RLIMIT_FSIZE, (500, 500))
    else:
        os.killpg(group, signal.SIGKILL if fault == "kill" else signal.SIGINT)
    process.wait(timeout=PATIENCE)
    end = time.monotonic() + PATIENCE
    while list(members(group)):
        assert time.monotonic() < end, "a stage goes on"
        time.sleep(0.05)


@pytest.mark.parametrize("chain", range(CHAINS))
def test_after_any_fault_the_next_run_gives_the_same_bytes(chain, unbroken, tmp_path):
    folder, draw = small(tmp_path / "work"), random.Random(time.time_ns() if SECONDS else 0)
    for fault in draw.sample(FAULTS, 4) if SECONDS else FAULTS:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro"],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            # A shell that starts tests in the background has them ignore interrupts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        assert process.stdout is not None
        said = (time.monotonic() for line in process.stdout if line.startswith("Running stage"))
        begun = [*islice(said, draw.randint(2, 4 if SECONDS else 3))]
        if len(begun) < 2:  # all was done before
            break
        time.sleep(draw.uniform(0.1, 1.5) * (begun[1] - begun[0]))  # that of settings
        break_off(process, fault)
    done = run(folder, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert seen(folder) == unbroken
    left = list((folder / "checkpoints").rglob("*")) if (folder / "checkpoints").exists() else []
    assert all("writing" in path.parts for path in left if path.is_file()), left
