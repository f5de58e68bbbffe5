"""Where and how to compute."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import workspace

from advprune.core.params import load

SIZE = 1 << 24  # bytes of a feature map
HELD = f"""
import ctypes, sys, torch
from advprune.core.device import setup
class Info(ctypes.Structure):
    _fields_ = [(f"count_{{i}}", ctypes.c_size_t) for i in range(10)]  # the first: the heap's bytes
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "after setup":
    setup()
before = libc.mallinfo2().count_0
torch.ones({SIZE // 4})
print(libc.mallinfo2().count_0 - before)
"""
ASKED = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")


def held(when):
    """How many more bytes a process keeps for itself after a tensor of SIZE bytes has gone."""
    command = [sys.executable, "-c", HELD, when]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not ASKED, reason="asks a C library that counts")
def test_memory_of_a_tensor_is_kept_for_the_next():
    # Some of it lay in what the process had already.
    assert held("before setup") < SIZE / 2 < held("after setup")


@pytest.mark.parametrize(("processes", "expected"), [(1, 3), (2, 1)])
def test_training_takes_the_threads_of_the_profile_but_under_torchrun(
    monkeypatch, processes, expected
):
    profile = SimpleNamespace(train=SimpleNamespace(threads=3))
    monkeypatch.setattr(workspace.common.Workspace, "profile", profile)
    monkeypatch.setattr("advprune.core.distributed.processes", lambda: processes)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        workspace.common.Workspace(load(workspace.ROOT / "params.yaml")).device()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
