"""The trace of an attack on stored bits: the flips, their effect, and how to resume."""

from dataclasses import dataclass, field
from math import isclose, isfinite
from typing import Any

import pandas as pd

from advprune.attacks.flip_objective import FlipOptions, Objective
from advprune.attacks.stored_bits import Flip, StoredModel, redo

TYPES = {
    "flip": "int64",
    "step": "int64",
    "layer": "object",
    "index": "int64",
    "bit": "int64",
    "before": "int64",
    "after": "int64",
    "loss_before": "float64",
    "loss_after": "float64",
    "hamming": "int64",
    "n_b": "int64",
    "forwards": "int64",
    "gradients": "int64",
    "accuracy": "float64",
}


@dataclass(frozen=True)
class FlipTrace:
    """What an attack on the bits did.

    table: one row per flip, in order. `flip` counts from 1, `step` what was committed together;
    layer, index and bit (0 the least significant) say where, before and after are the whole numbers
    stored there. loss_before and loss_after are those of the step, on the batch. hamming: in how
    many stored bits the network now differs from the first one (a bit may flip back). n_b: bits to
    a layer in that step. forwards, gradients: passes of the batch so far. accuracy: what `evaluate`
    said, NaN where it was not asked.
    reason: why it ended: `level` (accuracy at or below `stop`), `budget`, `flat` (no flip
    raises the loss to first order), `stalled` (none of those tried raises it in fact), or
    `exhausted` (every bit was drawn, for random flips).
    clean_accuracy: what `evaluate` said before the first flip. stored: the network after the last.
    """

    table: pd.DataFrame
    reason: str
    clean_accuracy: float | None
    stored: StoredModel

    def flips_to(self, level: float) -> int | None:
        """How many flips until accuracy was at or below `level`; None where it never was.

        As fine as accuracy was asked for: with `every` k, a multiple of k. Raises ValueError where
        it was never asked.
        """
        return self._first(level, "flip")

    def bits_to(self, level: float) -> int | None:
        """In how many bits the network differed from the first one then: the published count."""
        return self._first(level, "hamming")

    def _first(self, level: float, column: str) -> int | None:
        if self.clean_accuracy is None:
            raise ValueError("the trace holds no accuracy; run the attack with evaluate=...")
        if self.clean_accuracy <= level:
            return 0
        reached = self.table.loc[self.table["accuracy"] <= level, column]
        return None if reached.empty else int(reached.iloc[0])


@dataclass
class Run:
    """The flips so far, and what is to happen after each."""

    stored: StoredModel
    objective: Objective | None
    how: FlipOptions
    rows: list[dict[str, Any]] = field(default_factory=list)
    flipped: set[Flip] = field(default_factory=set)
    clean_accuracy: float | None = None
    height: float = float("nan")

    def __post_init__(self) -> None:
        """Measure the clean network; then make the flips of an earlier trace, if there is one."""
        if self.how.evaluate is not None:
            self.clean_accuracy = float(self.how.evaluate(self.stored.model))
        if self.how.state is not None and len(self.how.state):
            self._go_on(self.how.state)
        if self.objective is not None:
            self.height = self.objective.height()
            if not isfinite(self.height):
                raise ValueError("bitflip: the loss is not finite to begin with")
            if self.rows:
                self._recall(self.objective)

    def _go_on(self, state: pd.DataFrame) -> None:
        missing = [column for column in TYPES if column not in state.columns]
        if missing:
            raise ValueError(f"bitflip: the state has no column {missing[0]}")
        redo(self.stored, state)
        for row in state[list(TYPES)].itertuples(index=False):
            self.rows.append(dict(zip(TYPES, row, strict=True)))
        for flip in self.flips():
            self.flipped ^= {flip}
        self.how.progress(len(self.rows))

    def _recall(self, objective: Objective) -> None:
        """Take loss and counts from the state, if its loss is the one that is found."""
        last, found = self.rows[-1], objective.sign * self.height
        if not isclose(found, last["loss_after"], rel_tol=1e-3, abs_tol=1e-6):
            raise ValueError(
                f"bitflip: the state ends at loss {last['loss_after']:.6g}, but these images and "
                f"options give {found:.6g}; it belongs to others, or was cut within a step"
            )
        self.height = objective.sign * last["loss_after"]
        objective.forwards, objective.gradients = last["forwards"], last["gradients"]

    def flips(self) -> list[Flip]:
        """The flips so far, in order."""
        return [_flip(row) for row in self.rows]

    def over(self) -> str | None:
        """Why the attack is over, if it is."""
        accuracy = self.rows[-1]["accuracy"] if self.rows else self.clean_accuracy
        if self.how.stop is not None and accuracy is not None and accuracy <= self.how.stop:
            return "level"
        return "budget" if len(self.rows) >= self.how.budget else None

    def turn(self, flips: list[Flip]) -> list[dict[str, Any]]:
        """Make flips; what they did to the integers, a row each."""
        made = []
        for flip in flips:
            before = self.stored.integer(flip.layer, flip.index)
            self.stored.flip(flip)
            after = self.stored.integer(flip.layer, flip.index)
            made.append({**vars(flip), "before": before, "after": after})
        return made

    def commit(self, made: list[dict[str, Any]], n_b: int, height: float) -> None:
        """Write down what was made together, and measure, save and report where that is due."""
        shared = {
            "step": self.rows[-1]["step"] + 1 if self.rows else 1,
            "loss_before": self._loss(self.height),
            "loss_after": self._loss(height),
            "n_b": n_b,
            "forwards": self.objective.forwards if self.objective else 0,
            "gradients": self.objective.gradients if self.objective else 0,
            "accuracy": float("nan"),
        }
        self.height, done = height, len(self.rows) // self.how.every
        for row in made:
            self.flipped ^= {_flip(row)}
            counts = {"flip": len(self.rows) + 1, "hamming": len(self.flipped)}
            self.rows.append({**row, **counts, **shared})
        if len(self.rows) // self.how.every > done:
            if self.how.evaluate is not None:
                self.rows[-1]["accuracy"] = float(self.how.evaluate(self.stored.model))
            if self.how.save is not None:
                self.how.save(self.table())
        self.how.progress(len(made))

    def trace(self, reason: str) -> FlipTrace:
        """The attack as it ended."""
        return FlipTrace(self.table(), reason, self.clean_accuracy, self.stored)

    def table(self) -> pd.DataFrame:
        """The rows so far."""
        return pd.DataFrame(self.rows, columns=list(TYPES)).astype(TYPES)

    def _loss(self, height: float) -> float:
        return self.objective.sign * height if self.objective else height


def _flip(row: dict[str, Any]) -> Flip:
    return Flip(row["layer"], row["index"], row["bit"])
