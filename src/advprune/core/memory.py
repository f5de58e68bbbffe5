"""A bound on memory where a file from elsewhere decides how much is taken."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from advprune.core.errors import UserError

CONTAINER = Path("/sys/fs/cgroup/memory.max")


def _stated(place: str, key: str) -> int:
    """Bytes that a file of Linux's /proc states under a key."""
    lines = Path(place).read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def free() -> int | None:
    """Bytes of memory that are free on this machine, or in its container; None where not known."""
    try:
        found = _stated("/proc/meminfo", "MemAvailable")
    except (OSError, StopIteration):  # no Linux
        return None
    limit = CONTAINER.read_text().strip() if CONTAINER.is_file() else "max"
    return min(found, int(limit)) if limit.isdecimal() else found


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Inside, whatever asks for more memory than is free ends in a UserError; the system would kill
    the process, or another one. Without effect where free memory is not known."""
    if (left := free()) is None:
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = _stated("/proc/self/status", "VmData") + left
    limits = [limit for limit in (*before, most) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "alloc" not in str(error):
            raise
        raise UserError(
            f"this takes more memory than the {left / 1e9:.1f} GB that are free; take fewer or "
            "smaller images, or a smaller network"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
