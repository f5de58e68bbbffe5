"""Work done ahead in other processes: the same results, errors told, nothing left running."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from advprune.core.ahead import ahead
from advprune.core.errors import UserError
from advprune.core.resume import Parts

FAILING = """
import sys, time
from pathlib import Path
sys.path.insert(0, "src")
from advprune.core.ahead import ahead
def job(number):
    Path(sys.argv[1], f"{number}").touch()
    time.sleep(60)
ahead("jobs", [lambda: job(0), lambda: job(1)])
"""


@pytest.fixture(autouse=True)
def two(monkeypatch):
    monkeypatch.setenv("ADVPRUNE_WORKERS", "2")


def square(value):
    """With a gradient, as jobs have; and by whom."""
    x = torch.full((64, 64), value, requires_grad=True)
    (x @ x).sum().backward()
    assert x.grad is not None
    facts = {"process": [os.getpid()], "threads": [torch.get_num_threads()]}
    return pd.DataFrame({"value": [float(x.grad[0, 0])]} | facts)


def jobs(parts):
    return [partial(parts.frame, f"{n}", partial(square, float(n))) for n in range(4)]


def test_jobs_are_done_elsewhere_and_found_here(tmp_path):
    square(1.0)  # gradients were taken here before the fork
    work = jobs(Parts(tmp_path, "test", files=[]))
    ahead("squares", work)
    found = pd.concat([job() for job in work])
    assert os.getpid() not in set(found.process) and found.process.nunique() <= 2
    assert found.value.tolist() == [128.0 * n for n in range(4)]
    assert set(found.threads) == {1}


def test_one_worker_computes_as_several_do(tmp_path, monkeypatch):
    """With one thread, so that the number of cores does not change how sums round."""
    monkeypatch.setenv("ADVPRUNE_WORKERS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    ahead("squares", work := jobs(Parts(tmp_path, "test", files=[])))
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    found = pd.concat([job() for job in work])
    assert set(found.process) == {os.getpid()} and set(found.threads) == {1}


def test_a_gpu_leaves_the_work_to_the_caller(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ahead("squares", jobs(Parts(tmp_path, "test", files=[])))
    assert not list(tmp_path.rglob("*.parquet"))


def test_work_ahead_does_not_split_again(tmp_path):
    def inner():
        ahead("inner", [partial(Path.touch, tmp_path / f"{n}") for n in range(2)])

    ahead("outer", [inner, inner])
    assert not list(tmp_path.iterdir())


def test_an_error_is_raised_here():
    def wrong():
        raise UserError("prune.E is wrong")

    with pytest.raises(UserError, match=r"prune\.E is wrong"):
        ahead("jobs", [wrong, wrong])


def test_a_killed_process_is_told():
    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match=r"jobs: a process was killed.*ADVPRUNE_WORKERS=1"):
        ahead("jobs", [die, die])


@pytest.mark.parametrize("text", ["0", "two", "-1"])
def test_a_wrong_number_of_workers_is_refused(monkeypatch, text):
    monkeypatch.setenv("ADVPRUNE_WORKERS", text)
    with pytest.raises(UserError, match=f"ADVPRUNE_WORKERS is '{text}'"):
        ahead("jobs", [])


def test_nothing_outlives_a_killed_parent(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", FAILING, str(tmp_path)])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert len(children) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 10
    while any(running(int(child)) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(running(int(child)) for child in children)


def running(process):
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False
