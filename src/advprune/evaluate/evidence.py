"""What a verdict is drawn from: the records of one model, and what each attack adds to the others.

Pure functions of records; the registry of attacks says which of them follow the model's gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property

import pandas as pd

from advprune.core.profile import RESERVED
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.robust import ROUNDING, SIZES, worst_rows

PASS, DOUBT, FAIL = "pass", "doubt", "fail"
TOLERATED = 0.01  # share of the images that something weaker may break alone: chance, not masking
CONTRADICTION = 0.05  # from this share on a check that finds them is failed


@dataclass(frozen=True)
class Check:
    """What was asked, the outcome (pass, doubt, fail), its figure, and why it is not passed."""

    name: str
    outcome: str
    figure: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict is drawn from.

    records: all rows of one model. main: the name of the main attack. classes: how many there are.
    transfers: the model's rows on images of other networks, by (source, attack). parent: the dense
    network's rows under the main attack. twin_agreement: of a quantized model. pixels: C * H * W,
    by which budgets in L2 are judged.
    """

    records: pd.DataFrame
    main: str
    classes: int
    transfers: Mapping[tuple[str, str], pd.DataFrame] = field(default_factory=dict)
    parent: pd.DataFrame | None = None
    twin_agreement: float | None = None
    pixels: int = 1

    def of(self, attack: str) -> pd.DataFrame | None:
        """The rows of one attack by image; None where it was not run."""
        found = self.records[self.records.attack == attack]
        return None if found.empty else found.sort_values("index", ignore_index=True)

    def curve(self, name: str, column: str) -> list[tuple[float, pd.DataFrame]]:
        """The points of a curve in rising order."""
        found = self.records[self.records.attack == name].sort_values("index")
        parts = dict(iter(found.groupby(found[column].astype(float), sort=True)))
        return [(value, part.reset_index(drop=True)) for value, part in parts.items()]

    @property
    def is_blackbox(self) -> bool:
        """Whether the model has no gradient: the main attack's rows are then of a random point."""
        return bool((self.records.steps[self.records.attack == self.main] == 0).all())

    @cached_property
    def white_box(self) -> pd.DataFrame:
        """Per image, the worst of the suite's attacks that follow the gradient."""
        return white_box(self.records, self.main)

    @cached_property
    def searches(self) -> dict[str, pd.DataFrame]:
        """The suite's attacks that do not follow the gradient, by name."""
        others = self.records[~_follows(self.records) & ~self.records.attack.isin(RESERVED)]
        return {str(name): part for name, part in others.groupby("attack", sort=False)}

    def added(self, other: pd.DataFrame) -> pd.Index:
        """The images that only `other` breaks, none of the white-box attacks, within the budget.

        Both sets of draws of a random model must agree on what breaks an image and what does not.
        """
        own = self.records[self.records.attack == self.main].iloc[0]
        inside = other[other[SIZES[own.norm]] <= own.eps + ROUNDING]
        white = self.white_box.set_index("index")
        kept = white.index[(white.adv_pred == white.label) & (white.chosen_margin >= 0)]
        fools = (inside.adv_pred != inside.label) & (inside.chosen_margin <= 0)
        return pd.Index(inside["index"][fools]).unique().intersection(kept)


def white_box(records: pd.DataFrame, main: str) -> pd.DataFrame:
    """Per image, the worst of the suite's attacks that follow the gradient, of the norm of the main
    attack and at most its budget. One that was run on some images takes part for those."""
    own = records[records.attack == main].iloc[0]
    fits = (records.norm == own.norm) & (records.eps <= own.eps + 1e-9)
    return worst_rows(records[fits & _follows(records) & ~records.attack.isin(RESERVED)])


def _follows(records: pd.DataFrame) -> pd.Series:
    from advprune.attacks.registry import follows_gradient  # needs torch

    pairs = zip(records.method, records.breakdown, strict=True)
    return pd.Series([follows_gradient(*pair) for pair in pairs], records.index, dtype=bool)


@cache
def more_than_tolerated(count: int, n: int) -> float:
    """One-sided p-value of `count` images of `n` if the true share is `TOLERATED` (binomial)."""
    from scipy.stats import binomtest

    return float(binomtest(count, n, TOLERATED, alternative="greater").pvalue) if n else 1.0


def judged(count: int, n: int, name: str, what: str, worst: str = FAIL) -> Check:
    """The check that `what` alone fools the model on no more than a tolerated share of `n`. In
    doubt where the images are so few that a share which would fail the check may be chance."""
    figure = f"{count} of {n} images only it breaks"
    is_large = count >= CONTRADICTION * n and count > 0
    if more_than_tolerated(count, n) < 0.05:
        reason = f"{what} breaks images that attacks by gradient do not"
        return Check(name, worst if is_large else DOUBT, figure, reason)
    if is_large:
        reason = f"too few images to rule out chance: {what} breaks some that gradients do not"
        return Check(name, DOUBT, figure, reason)
    return Check(name, PASS, figure)


def accuracy(records: pd.DataFrame) -> str:
    """The accuracy under attack, as text."""
    return f"{100 * (remnant_accuracy(records).value or 0.0):.1f} %"
