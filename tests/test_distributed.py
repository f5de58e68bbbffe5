"""Several processes of torchrun against one: the same bytes of attacks, the same steps of training.

Two real processes that exchange by gloo; the oracle is one process doing the same.
"""

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import shared_work
import torch
from workspace import change, copy_pipeline

from advprune.core import distributed
from advprune.core.train_settings import DataSettings
from advprune.data import SPLITS, prepare, save_split
from advprune.models.checkpoint import save_model
from advprune.training.batchnorm import normalize
from conftest import make_network

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
    distributed.barrier()
    time.sleep(300)

script(command, shared=True)
"""


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
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
def one_thread() -> Iterator[None]:
    """As many as torchrun's processes have: sums of several threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found; a training goes on that one process began."""
    folder = tmp_path_factory.mktemp("shared")
    shared_work.training("pgd", folder / "state.pt", epochs=2, killed=True)
    done = torchrun(folder, str(WORK), str(folder))
    assert done.returncode == 0, done.stderr
    assert not list(folder.glob("parts*/*")) and not (folder / "none.pt").exists()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_the_building_blocks(found: list[dict[str, Any]]) -> None:
    first, second = (one["exchange"] for one in found)
    turns = [one.pop("turns") for one in (first, second)]
    assert sorted(turns[0] + turns[1]) == [0, 1, 2]
    assert first.pop("shares") == [(slice(0, 1), 0.5), (slice(0, 1), 0.5), (slice(0, 2), 0.4)]
    assert second.pop("shares") == [(slice(0, 1), 0.5), (slice(1, 2), 0.5), (slice(2, 5), 0.6)]
    assert first == second
    assert first["spread"] == [(n, 1) for n in range(5)]  # in order, each by one that is alone
    assert first["same"] == 0 and first["total"] == (2, 1)
    assert first["found"] == "by 1" and first["nothing"] is None
    assert first["sum"] == 3.0 and first["gradient"] == 3.0


def test_attacks_give_the_same_bytes_in_every_process(found: list[dict[str, Any]]) -> None:
    expected = shared_work.attacks()
    assert len(expected) == 15 and not torch.equal(expected["fixed pgd"], expected["random pgd"])
    for one in found:
        for name, value in expected.items():
            same = torch.equal if isinstance(value, torch.Tensor) else lambda a, b: a == b
            assert same(one["attacks"][name], value), name


def test_pieces_are_made_once_and_read_by_all_without_a_common_folder(
    found: list[dict[str, Any]],
) -> None:
    for one in found:
        assert one["pieces"] == {"number": [0, 1, 2, 3, 4], "seen": [1] * 5}
    assert sorted(found[0]["kept"] + found[1]["kept"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("method", [*shared_work.METHODS, "resumed"])
def test_steps_are_those_of_one_process(found: list[dict[str, Any]], method: str) -> None:
    resumed = method == "resumed"
    expected = shared_work.training("pgd" if resumed else method, epochs=1 + resumed)
    for one in found:
        trained = one["resumed"] if resumed else one["training"][method]
        assert len(trained["history"]) == 1 + resumed
        assert trained["history"] == expected["history"]
        for name, tensor in expected["weights"].items():
            assert torch.allclose(trained["weights"][name], tensor, rtol=0, atol=1e-9), name


@pytest.mark.parametrize("shape", [(6, 3, 4, 4), (5, 2)])
def test_batchnorm_is_that_of_torch(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    channels = shape[1]
    affine = [torch.rand(channels, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    results = []
    for function in (normalize, torch.nn.functional.batch_norm):
        running = [torch.zeros(channels).double(), torch.ones(channels).double()]
        more: dict[str, Any] = {} if function is normalize else {"training": True}
        out = function(x, *running, *affine, momentum=0.3, eps=1e-4, **more)
        gradients = torch.autograd.grad((out * out.sin()).sum(), (x, *affine))
        results.append((out, *running, *gradients))
    for ours, theirs in zip(*results, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


def test_without_torchrun_there_is_one_process() -> None:
    distributed.start()
    assert distributed.processes() == 1 and distributed.is_main()
    assert distributed.share(5) == (slice(0, 5), 1.0)
    assert distributed.first_to_fail() and distributed.first_to_fail()
    assert list(distributed.turns(2)) == [0, 1]


def stage(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> None:
    """Run a stage's script in this process."""
    script = folder / "stages" / f"{name}.py"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(script.parent))
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert not end.value.code


def test_a_stage_writes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_pipeline(tmp_path / "copy")
    curves = {"eps": [0], "steps": [1]}
    # three batches: more than processes
    change(folder, {"profiles/digits/batch": 10, "profiles/digits/curves": curves})
    limits = {"train_limit": 40, "test_limit": 22}
    splits = prepare(DataSettings(source="digits", val_fraction=0.15, test_fraction=0.25, **limits))
    for name in SPLITS:
        save_split(splits[name], folder / f"data/digits/{name}.safetensors")
    images = splits["train"].images / 255
    save_model(
        make_network(images, width=2), folder / "models/digits/dense-standard/model.safetensors"
    )
    stage(folder, monkeypatch, "attacks")
    stage(folder, monkeypatch, "attack", "dense")
    records = sorted((folder / "records/digits").iterdir())
    expected = {path.name: path.read_bytes() for path in records}
    assert len(expected) == 3
    for path in records:
        path.unlink()
    done = torchrun(folder, "stages/attack.py", "dense")
    assert done.returncode == 0, done.stderr
    assert {p.name: p.read_bytes() for p in (folder / "records/digits").iterdir()} == expected
    assert not list((folder / "checkpoints").iterdir())
    assert done.stderr.count("dense-standard field") == 1  # one process shows progress


@pytest.mark.parametrize("how", ["error", "killed"])
def test_one_failing_process_ends_all_with_one_message(tmp_path: Path, how: str) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    # torchrun ends the others when it sees that one is gone: looking seldom, it leaves them time
    done = torchrun(tmp_path, "--monitor-interval", "5", "failing.py", how)
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode != 0 and len(told) == 1, done.stderr
    assert told[0] == "error: only here" if how == "error" else "a process was lost" in told[0]
