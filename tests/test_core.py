"""What everything stands on: workers, devices, files, progress."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import workspace

from advprune.core import files
from advprune.core.ahead import ahead
from advprune.core.errors import UserError
from advprune.core.files import fingerprint, sha256_of, write_json
from advprune.core.params import load
from advprune.core.progress import progress
from advprune.core.resume import Parts

# --- work ahead in other processes ----------------------------------------------------------------
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


def test_nothing_is_done_ahead_on_a_gpu_or_inside_of_a_job(tmp_path, monkeypatch):
    work = [partial(Path.touch, tmp_path / f"{n}") for n in range(2)]
    ahead("outer", [partial(ahead, "inner", work)] * 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ahead("jobs", work)
    assert not list(tmp_path.iterdir())


def test_what_goes_wrong_in_a_process_is_told_here():
    def wrong():
        raise UserError("prune.E is wrong")

    with pytest.raises(UserError, match=r"prune\.E is wrong"):
        ahead("jobs", [wrong, wrong])

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


# --- where and how to compute ---------------------------------------------------------------------
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


# --- files are known by content -------------------------------------------------------------------
def test_a_number_that_is_none_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_file_takes_the_place_of_no_folder_and_of_no_pipe(tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "thesis.txt").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("keep", "directory"), ("pipe", "device or a pipe")):
        with pytest.raises(UserError, match=f"cannot write .*{name}: .*{words}"):
            write_json(tmp_path / name, {})
    assert (tmp_path / "keep" / "thesis.txt").read_text() == "x"
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


def test_hashes_follow_content_names_and_links(tmp_path):
    def folder(name, **held):
        (tmp_path / name).mkdir(parents=True)
        for file, text in held.items():
            (tmp_path / name / file).write_text(text)
        return tmp_path / name

    one, linked = folder("one", x="1"), folder("linked")
    hashes = [sha256_of(one)]
    folder("one/__pycache__", y="2")
    assert sha256_of(one) == hashes[0]
    hashes += [sha256_of(folder(f"of {n}", **{n: t})) for n, t in (("y", "1"), ("x", "2"))]
    # A boundary between name and content is part of the hash.
    hashes += [sha256_of(folder(f"of {n}", **{n: t})) for n, t in (("ab", "c"), ("a", "bc"))]
    # A data set behind links is known by what lies there; a link back does no harm.
    (linked / "train").symlink_to(one)
    (linked / "loop").symlink_to(linked)
    (linked / os.fsdecode(b"\xff")).write_text("")
    hashes.append(sha256_of(linked))
    (one / "x").write_text("2")
    hashes.append(sha256_of(linked))
    assert len(set(hashes)) == len(hashes) == 7
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2})
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        sha256_of(tmp_path / "absent")


def test_the_key_of_unfinished_work_follows_every_module_and_version(tmp_path, monkeypatch):
    library = tmp_path / "advprune"
    shutil.copytree(Path(files.__file__).parent.parent, library)
    monkeypatch.setattr(files, "__file__", str(library / "core" / "files.py"))
    monkeypatch.setattr(files, "version", cache(files.version))
    keys = {fingerprint(1)}
    modules = sorted(library.rglob("*.py"))
    for module in modules:
        module.write_text(module.read_text() + "# changed\n")
        keys.add(fingerprint(1))
    monkeypatch.setattr(files, "version", lambda package: "0")
    keys.add(fingerprint(1))
    assert len(modules) > 100 and len(keys) == len(modules) + 2


def test_the_rate_is_that_of_all_the_time(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with progress("probes", 5) as advance:
        time.sleep(0.5)  # then all at once
        for _ in range(5):
            advance(1)
    (rate,) = re.findall(r" 5/5 ([\d,]+)/s ", capsys.readouterr().err)
    assert int(rate.replace(",", "")) <= 10


def test_a_narrow_terminal_cuts_the_words_and_no_numbers(monkeypatch, capsys):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    what = "ESR={'E': 0.01} [field] eps 0.031 steps 40"
    for columns in (80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        with progress(what, 11460) as advance:
            advance(11460)
        (line,) = filter(None, capsys.readouterr().err.splitlines())
        shown, _, numbers = line.partition(" ━")
        assert numbers.split()[1] == "11460/11460" and "…" not in numbers
        assert len(line) <= columns
        assert shown == what if columns == 200 else what.startswith(shown.removesuffix("…"))
        assert ("…" in shown) == (columns == 80)
