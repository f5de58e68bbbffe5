"""Several processes of torchrun against one: the same bytes of attacks, one network from training.

Two real processes that exchange by gloo; the oracle is one process doing the same.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import shared_work
import torch

from conftest import stored

WORK = Path(shared_work.__file__)
FAILING = f"""
import os, sys, time
sys.path.insert(0, {str(WORK.parent.parent / "stages")!r})
from common import script

def command(how: str) -> None:
    from advprune.core import distributed
    from advprune.core.errors import UserError
    if distributed.rank() == 1:
        if how == "error":
            raise UserError("only here")
        os.kill(os.getpid(), 9)
    distributed.from_main(list)
    time.sleep(300)

script(command, shared=True)
"""


def torchrun(folder, *command):
    """Two processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    path = os.pathsep.join(map(str, (WORK.parent.parent / "src", WORK.parent)))
    return subprocess.run(
        [*launcher, "--nproc_per_node", "2", *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As many as torchrun's processes have: sums of several threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of two processes found; a training goes on that one process began."""
    folder = tmp_path_factory.mktemp("shared")
    with stored(kill_after=1):
        shared_work.training("pgd", state=folder / "state.pt", epochs=2)
    done = torchrun(folder, str(WORK), str(folder))
    assert done.returncode == 0, done.stderr
    assert not (folder / "none.pt").exists()  # the first process alone keeps the state
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_attacks_give_the_same_bytes_in_every_process(found):
    expected = shared_work.attacks()
    assert len(expected) == 15 and not torch.equal(expected["fixed pgd"], expected["random pgd"])
    for one in found:
        for name, value in expected.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(one["attacks"][name], value), name


def test_all_processes_train_the_same_network_as_one_does_without_batchnorm(found):
    first, second = (one["training"] for one in found)
    assert first.keys() == second.keys() == {*shared_work.METHODS, "linear", "resumed", "stage"}
    for name, trained in first.items():
        assert trained["history"] == second[name]["history"]
        assert len(trained["history"]) == 1 + (name == "resumed")
        for key, tensor in trained["weights"].items():
            assert tensor.isfinite().all() and torch.equal(tensor, second[name]["weights"][key])
    expected, trained = shared_work.training("standard", True), found[0]["training"]["linear"]
    assert trained["history"] == expected["history"]
    ours, theirs = trained["weights"]["weight"], expected["weights"]["weight"]
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)


def test_parts_are_the_first_process_s_without_a_common_folder(found):
    assert [one["parts"] for one in found] == [[0, 0, 1]] * 2
    assert [one["inside"] for one in found] == [[(0, 1), (1, 1), (2, 1)]] * 2


@pytest.mark.parametrize("how", ["error", "killed"])
def test_one_failing_process_ends_all_with_one_message(tmp_path, how):
    (tmp_path / "failing.py").write_text(FAILING)
    # torchrun ends the others when it sees that one is gone: looking seldom, it leaves them time
    done = torchrun(tmp_path, "--monitor-interval", "3", "failing.py", how)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0, done.stderr
    expected = "error: only here" if how == "error" else "a process was lost"
    assert any(expected in line for line in told), done.stderr
