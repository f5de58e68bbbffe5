"""What the bit-flip attack found, and two networks compared: pure functions of its records.

Records are one row per flip, variant and seed (which batch of training images the attacker had,
counted on over the `training`s of the network). flip 0 is the network before the first; `depth` is
the layer's place among those that are stored; step, index, bit, loss, hamming, accuracy and passes
are as in `FlipTrace.table`; reason, layers and stored_bits are of the whole run. A seed whose
accuracy never came down to chance is *censored*: its count is a lower bound.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import pairwise
from math import comb, inf
from statistics import fmean
from typing import TypeVar

import numpy as np
import pandas as pd

from advprune.evaluate.compare import Compared
from advprune.evaluate.means import Mean, mean
from advprune.evaluate.statistics import with_ends

End = tuple[float, bool]  # a count of bits, and whether it is censored
VARIANTS = ("untargeted", "margin", "targeted", "random")
START = {
    **{"flip": 0, "step": 0, "layer": "", "depth": -1, "index": -1, "bit": -1, "loss": 0.0},
    **{"hamming": 0, "accuracy": 0.0, "n_b": 0, "forwards": 0, "gradients": 0},
}  # the row of a network before any flip


@dataclass(frozen=True, eq=False)
class Stored:
    """A bit-flip study: the model, in how many bits its weights are stored, with which scale."""

    name: str
    model: str
    bits: int
    scale: str


Entry = TypeVar("Entry", bound=Stored)


def pairs_of(found: Sequence[Entry], root: str) -> list[tuple[Entry, Entry]]:
    """What is compared: each study with the first, and with the model `root` if stored alike."""
    pairs = []
    for entry in found[1:]:
        stored = root, entry.bits, entry.scale
        alike = [one for one in found if (one.model, one.bits, one.scale) == stored][:1]
        references = dict.fromkeys([found[0], *alike])
        pairs += [(entry, one) for one in references if one is not entry]
    return pairs


@dataclass(frozen=True)
class Reached:
    """How many stored bits had to differ until a network was at chance, seed by seed: None where it
    never was. tried: the bits that differed when the attack ended."""

    bits: tuple[int | None, ...]
    tried: tuple[int, ...]
    trainings: int = 1

    @cached_property
    def uncensored(self) -> list[int]:
        """The counts of the seeds that came down."""
        return [count for count in self.bits if count is not None]

    @cached_property
    def mean(self) -> Mean | None:
        """Over all seeds; None where any is censored, or where there is none."""
        return mean(np.array(self.bits)[:, None]) if self.bits and None not in self.bits else None

    @property
    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """The 95 % t interval of the mean; None for a single seed and where there is no mean."""
        return self.mean.interval if self.mean and len(self.bits) > 1 else (None, None)

    @property
    def ends(self) -> list[End]:
        """The count of each seed, what was tried where it is censored, and whether it is."""
        pairs = zip(self.bits, self.tried, strict=True)
        return [(tried, True) if bits is None else (bits, False) for bits, tried in pairs]

    @property
    def least(self) -> float:
        """The mean, with what was tried and not enough instead of censored counts."""
        return fmean(count for count, _ in self.ends)


def guessing(stop: float, classes: int, labels: Sequence[int]) -> float:
    """The accuracy at which a network counts as guessing: `stop / classes`, where stop is 1 or more
    at least that of always answering the most frequent of `labels`, those of the test images."""
    always = max(Counter(labels).values(), default=0) / max(len(labels), 1)
    return max(stop / classes, always if stop >= 1 else 0.0)


def to_chance(records: pd.DataFrame, level: float, variant: str = "untargeted") -> Reached:
    """Stored bits that differed at the first accuracy at or below `level`, for each seed; 0 of a
    network that is there before any flip."""
    runs = _runs(records, variant)
    down = [run.hamming[run.accuracy <= level].tolist() for run in runs]
    bits = tuple(int(counts[0]) if counts else None for counts in down)
    trainings = records.training.nunique() if "training" in records else 1
    return Reached(bits, tuple(int(run.hamming.iloc[-1]) for run in runs), trainings)


def _runs(records: pd.DataFrame, variant: str) -> list[pd.DataFrame]:
    """The rows of a variant, seed by seed, in the order of flips."""
    rows = records[records.variant == variant].sort_values(["seed", "flip"])
    return [run for _, run in rows.groupby("seed")]


def start_accuracy(records: pd.DataFrame) -> float:
    """Accuracy of the stored network before any flip."""
    return float(records.loc[records.flip == 0, "accuracy"].iloc[0])


def over_flips(records: pd.DataFrame, variant: str = "untargeted") -> pd.DataFrame:
    """Accuracy after each number of flips: columns flips, mean, low, high (the range over seeds).
    Where it was not asked for, and after a seed's end, its last value stands."""
    runs = _runs(records, variant)
    columns = {place: run.set_index("flip").accuracy.ffill() for place, run in enumerate(runs)}
    table = pd.DataFrame(columns).sort_index().ffill()
    wide = {"mean": table.mean(axis=1), "low": table.min(axis=1), "high": table.max(axis=1)}
    return pd.DataFrame(wide).rename_axis("flips").reset_index()


def accuracy_after(records: pd.DataFrame, flips: float, variant: str = "random") -> Sequence[float]:
    """Accuracies by seed at the first number of at least `flips` after which accuracy was asked
    for, or else at the last; empty where there is none."""
    asked = records[(records.variant == variant) & records.accuracy.notna()].sort_values("seed")
    later = asked.flip[asked.flip >= flips]
    return asked.accuracy[asked.flip == (later.min() if len(later) else asked.flip.max())].tolist()


def at_the_end(records: pd.DataFrame, variant: str) -> list[float]:
    """The last accuracy of each seed."""
    return [float(run.accuracy.dropna().iloc[-1]) for run in _runs(records, variant)]


@dataclass(frozen=True, eq=False)
class FlipComparison(Compared):
    """Two networks' bits to chance, by `compare_flips`. difference: how many bits more the first
    needs, the median over pairs; infinite or NaN if unknown."""

    first: Reached
    second: Reached

    @property
    def ratio(self) -> float | None:
        """The first mean over the second; None where either is censored."""
        own, other = self.first.mean, self.second.mean
        return own.value / other.value if own and other and other.value else None


def smallest_flip_p(first: int, second: int) -> float:
    """The least p that `compare_flips` can give for so many batches: all of one above the other."""
    return 2 / comb(first + second, first)


def compare_flips(first: Reached, second: Reached) -> FlipComparison:
    """Do two networks need different numbers of bits? Gehan's rank test, exact by permutation.

    Each seed scores the seeds of both that surely needed fewer bits, minus those that surely needed
    more; a censored seed needs more than what was tried on it. p: of all ways to share out the
    scores, how many part the sums as far (two-sided); without censoring, Wilcoxon's test with
    midranks. ValueError without a seed. Gehan, A generalized Wilcoxon test for comparing
    arbitrarily singly-censored samples (Biometrika, 1965).
    """
    if not first.bits or not second.bits:
        raise ValueError("compare_flips: an entry has no seeds")
    own, others = first.ends, second.ends
    p, higher = _gehan(own, others)
    bits, known = ([inf if b is None else b for b in one.bits] for one in (first, second))
    difference = float(np.median([a - b for a in bits for b in known]))

    def ends_at(alpha: float) -> tuple[float, float]:
        # p changes only at differences of two counts, and falls away from the middle.
        steps = sorted({count - other for count, _ in own for other, _ in others})
        between = [steps[0] - 1, *((a + b) / 2 for a, b in pairwise(steps)), steps[-1] + 1]
        places = [i for i, s in enumerate(between) if _gehan(own, others, s)[0] >= alpha]
        bounds = [-inf, *map(float, steps), inf]
        return (bounds[places[0]], bounds[places[-1] + 1]) if places else (steps[0], steps[-1])

    return FlipComparison(
        first, second, p=p, direction=higher, difference=difference, ends_at=cache(ends_at)
    )


def _gehan(own: list[End], others: list[End], shift: float = 0.0) -> tuple[float, float]:
    """p, and the mean score of `own`, each `shift` less, minus that of the others."""
    ends = [*((count - shift, censored) for count, censored in own), *others]
    scores = [
        sum(_surely_more(one, other) - _surely_more(other, one) for other in ends) for one in ends
    ]
    higher = fmean(scores[: len(own)]) - fmean(scores[len(own) :])
    # Of all choices of so many scores, the share whose sum is as far from 0.
    ways = [Counter({0: 1}), *(Counter[int]() for _ in own)]  # of each size, by sum
    for score in scores:
        for size in range(len(own), 0, -1):
            for total, count in ways[size - 1].items():
                ways[size][total + score] += count
    seen = abs(sum(scores[: len(own)]))
    far = sum(count for total, count in ways[-1].items() if abs(total) >= seen)
    return far / comb(len(scores), len(own)), higher


def _surely_more(one: End, other: End) -> int:
    """1 where the first needs more bits than the second, whatever was not seen."""
    (count, censored), (limit, unknown) = one, other
    return int(not unknown and (count > limit or (censored and count >= limit)))


def flips_metric(reached: Reached | None) -> dict[str, float | None]:
    """`flips_to_chance` with its interval for the leaderboard; None where it is not known."""
    found = (reached.mean.value, *reached.interval) if reached and reached.mean else (None,) * 3
    return with_ends("flips_to_chance", found, 2)
