"""Independent pieces of a stage, done ahead in processes of their own, one a core.

Small networks on a CPU leave all but one core idle. Pieces that keep their results (`resume.Parts`)
may be done in any process and order: whoever asks for them afterwards reads them back. Under
torchrun its processes take them by turns, on whatever machines they are.
"""

import ctypes
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import torch

from advprune.core.distributed import alone, barrier, processes, turns
from advprune.core.errors import UserError
from advprune.core.progress import progress, silence, silent

WORKERS = "ADVPRUNE_WORKERS"  # environment variable: how many processes; 1 does all in this one
Job = Callable[[], object]
_jobs: Sequence[Job] | None = None  # what this process was forked for


def ahead(what: str, jobs: Sequence[Job]) -> None:
    """Do jobs whose results are kept elsewhere; what they return is dropped.

    They must be independent of each other. Each process computes with one thread. Nothing is done
    where there is a single core, job or worker, or a GPU, which is filled by one job: then the jobs
    are left to whoever asks for their results. An error in a job is raised here, and the jobs that
    had not begun are left undone.
    """
    if processes() > 1:
        if jobs:
            _by_turns(what, jobs)
        return
    workers = min(count(), len(jobs))
    if workers < 2 or _jobs is not None or torch.cuda.is_available():
        return
    start = (jobs, os.getpid())
    pool = ProcessPoolExecutor(workers, get_context("fork"), _begin, start)
    try:
        futures = [pool.submit(_do, number) for number in range(len(jobs))]
        with progress(what, len(jobs)) as advance:
            for future in as_completed(futures):
                future.result()
                advance(1)
    except BrokenProcessPool as error:
        raise UserError(
            f"{what}: a process was killed, perhaps for lack of memory; {WORKERS}=1 works in one"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def count() -> int:
    """How many processes may work: as the environment says, else one for each usable core."""
    given = os.environ.get(WORKERS)
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{WORKERS} is {given!r}; give a number of processes, 1 or more")
    return int(given)


def _by_turns(what: str, jobs: Sequence[Job]) -> None:
    """Together with the other processes of torchrun; ends when all jobs are done."""
    with progress(what, len(jobs)) as advance:
        shown = 0
        for number in turns(len(jobs)):
            advance(number - shown)
            shown = number
            with alone(), silent():
                jobs[number]()
        barrier()


def _begin(jobs: Sequence[Job], parent: int) -> None:
    """In the new process: nothing outlives the parent, and nothing is shown but by it."""
    global _jobs
    _jobs = jobs
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    if os.getppid() != parent:
        os._exit(1)
    torch.set_num_threads(1)
    silence()


def _do(number: int) -> None:
    assert _jobs is not None
    _jobs[number]()
