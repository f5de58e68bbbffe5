"""The trace of an attack on stored bits: the flips and their effect."""

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Any

from advprune.attacks.flip_objective import FlipOptions, Objective
from advprune.attacks.stored_bits import Flip, StoredModel

if TYPE_CHECKING:  # as in core/resume.py
    import pandas as pd

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

    table: "pd.DataFrame"
    reason: str
    clean_accuracy: float | None
    stored: StoredModel

    def flips_to(self, level: float, counted: str = "flip") -> int | None:
        """How many flips until accuracy was at or below `level`; None where it never was.

        As fine as accuracy was asked for: with `every` k, a multiple of k. Raises ValueError where
        it was never asked.
        """
        if self.clean_accuracy is None:
            raise ValueError("the trace holds no accuracy; run the attack with evaluate=...")
        if self.clean_accuracy <= level:
            return 0
        reached = self.table.loc[self.table["accuracy"] <= level, counted]
        return None if reached.empty else int(reached.iloc[0])

    def bits_to(self, level: float) -> int | None:
        """In how many bits the network differed from the first one then: the published count."""
        return self.flips_to(level, "hamming")


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
        """Measure the clean network."""
        if self.how.evaluate is not None:
            self.clean_accuracy = float(self.how.evaluate(self.stored.model))
        if self.objective is not None:
            self.height = self.objective.height()
            if not isfinite(self.height):
                raise ValueError("bitflip: the loss is not finite to begin with")

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
        """Write down what was made together, and measure and report where that is due."""
        sign = self.objective.sign if self.objective else 1
        shared = {
            "step": self.rows[-1]["step"] + 1 if self.rows else 1,
            "loss_before": sign * self.height,
            "loss_after": sign * height,
            "n_b": n_b,
            "forwards": self.objective.forwards if self.objective else 0,
            "gradients": self.objective.gradients if self.objective else 0,
            "accuracy": float("nan"),
        }
        self.height, done = height, len(self.rows) // self.how.every
        for row in made:
            self.flipped ^= {Flip(row["layer"], row["index"], row["bit"])}
            counts = {"flip": len(self.rows) + 1, "hamming": len(self.flipped)}
            self.rows.append({**row, **counts, **shared})
        if self.how.evaluate is not None and len(self.rows) // self.how.every > done:
            self.rows[-1]["accuracy"] = float(self.how.evaluate(self.stored.model))
        self.how.progress(len(made))

    def trace(self, reason: str) -> FlipTrace:
        """The attack as it ended."""
        import pandas as pd

        table = pd.DataFrame(self.rows, columns=list(TYPES)).astype(TYPES)
        return FlipTrace(table, reason, self.clean_accuracy, self.stored)
