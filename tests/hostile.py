"""Hostile and damaged input: what hypothesis draws for each border, and how long."""

import copy
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from advprune.core.errors import UserError
from advprune.core.progress import silence

SECONDS = float(os.environ.get("ADVPRUNE_FUZZ", "0"))  # of CPU, by border; 0: a fixed, short run
COUNTS: dict[str, dict[str, int]] = {}  # by border: how many were taken and refused

TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["", "x;touch PWNED;", "$(id)", "../x", "é", "E\u0301", "a" * 400, "\x1b[2J"]),
)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([True, False, -1, 0, 2**31, 2**70, -(2**70), 10**400, 1e308, float("nan")]),
)
LEAVES = st.one_of(st.none(), NUMBERS, TEXTS, st.sampled_from(["eps/0", "8/0", "1e999", "nan"]))
VALUES = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=3) | st.dictionaries(TEXTS | st.integers(), inside, max_size=3)
    ),
    max_leaves=6,
)


def paths(value: Any, so_far: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all values inside of mappings and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in pairs:
        yield (*so_far, key)
        if isinstance(inside, dict | list):
            yield from paths(inside, (*so_far, key))


@st.composite
def changed(draw: st.DrawFn, value: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A copy of mappings and lists in which one to three values are others, gone or doubled."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from(list(paths(found)) or [("x",)]))
        place = found
        for key in way:
            place = place[key]
        kind = draw(st.sampled_from(["other", "gone", "more"]))
        if kind == "gone" and isinstance(place, dict):
            place.pop(last, None)
        elif kind == "more" and isinstance(place, dict):
            place[draw(TEXTS)] = copy.deepcopy(draw(values))
        else:
            place[last] = copy.deepcopy(draw(values))  # drawn lists are shared
    return found


def damaged(contents: bytes, draw: random.Random) -> bytes:
    """Bytes that are cut short, repeated, or changed at one to four places."""
    found = bytearray(contents)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(found) + 1)
        kind = draw.choice(("cut", "flip", "flip", "insert", "repeat", "zero"))
        if kind == "cut":
            del found[at:]
        elif kind == "flip":
            found[at : at + 1] = draw.randbytes(1)
        elif kind == "insert":
            found[at:at] = draw.randbytes(draw.randint(1, 8))
        elif kind == "zero":
            found[at : at + 8] = bytes(8)
        else:
            found += found[at : at + 64]
    return bytes(found)


def fuzz_bytes(border: str, files: Sequence[bytes], check: Callable[[bytes], Any], n: int) -> None:
    """`n` damaged copies of files, a hundredth of them in a short run, are taken or refused."""
    draw = random.Random(time.time_ns() if SECONDS else 0)
    for _ in range(n if SECONDS else n // 100):
        contents = damaged(draw.choice(files), draw)
        try:
            once(border, contents, check)
        except BaseException:
            Path(f"found-{border.replace(' ', '-')}.bin").write_bytes(contents)
            raise
    print(border, json.dumps(COUNTS[border]))


def fuzz_files(
    border: str, files: Sequence[bytes], path: Path, check: Callable[[], Any], n: int
) -> None:
    """The same, where the bytes are what lies at a path."""
    fuzz_bytes(border, files, lambda contents: [path.write_bytes(contents), check()], n)


def once(border: str, value: Any, check: Callable[[Any], Any]) -> None:
    """An input is taken, or refused by a UserError of one line, and soon."""
    counts, begun = COUNTS.setdefault(border, {"taken": 0, "refused": 0}), time.process_time()
    silence()
    try:
        check(value)
    except UserError as error:
        said = str(error)
        assert said.strip() and "\n" not in said and len(said) < 2000, said
        counts["refused"] += 1
    else:
        counts["taken"] += 1
    finally:
        silence(False)
    assert time.process_time() - begun < 20, "too slow"


def fuzz(border: str, inputs: st.SearchStrategy[Any], check: Callable[[Any], Any], n: int) -> None:
    """Every input that hypothesis draws is taken or refused.

    n: inputs of a short run, the same each time; a long one draws others until its time is up.
    """
    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    known = {"deadline": None, "database": None, "phases": phases, "max_examples": n}
    quiet = {"suppress_health_check": list(HealthCheck), "derandomize": not SECONDS}
    run = settings(**known, **quiet)(given(inputs)(lambda value: once(border, value, check)))
    end = time.process_time() + SECONDS
    run()
    while time.process_time() < end:
        run()
    print(border, json.dumps(COUNTS[border]))
