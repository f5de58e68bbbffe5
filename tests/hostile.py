"""Hostile and damaged input: what hypothesis draws for each border, and how long."""

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from advprune.core.errors import UserError

SECONDS = float(os.environ.get("ADVPRUNE_FUZZ", "0"))  # for each border; 0: a fixed, short run
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


@st.composite
def damaged(draw: st.DrawFn, contents: bytes) -> bytes:
    """Bytes that are cut short, repeated, or changed at some places."""
    found = bytearray(contents)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(found) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "insert", "repeat"])):
            case "cut":
                del found[at:]
            case "flip" if found:
                found[at % len(found)] = draw(st.integers(0, 255))
            case "insert":
                found[at:at] = draw(st.binary(max_size=8))
            case _:
                found += found[at : at + 64]
    return bytes(found)


def fuzz(border: str, inputs: st.SearchStrategy[Any], check: Callable[[Any], Any], n: int) -> None:
    """Every input is taken, or refused by a UserError of one line.

    n: inputs of a short run, the same each time; a long one draws others until its time is up.
    """
    counts = COUNTS.setdefault(border, {"taken": 0, "refused": 0})

    def once(value: Any) -> None:
        begun = time.monotonic()
        try:
            check(value)
        except UserError as error:
            said = str(error)
            assert said.strip() and "\n" not in said and len(said) < 2000, said
            counts["refused"] += 1
        else:
            counts["taken"] += 1
        assert time.monotonic() - begun < 20, "too slow"

    phases = (Phase.explicit, Phase.generate, Phase.shrink)
    known = {"deadline": None, "database": None, "phases": phases, "max_examples": n}
    quiet = {"suppress_health_check": list(HealthCheck), "derandomize": not SECONDS}
    run = settings(**known, **quiet)(given(inputs)(once))
    end = time.monotonic() + SECONDS
    run()
    while time.monotonic() < end:
        run()
    print(border, json.dumps(counts))
