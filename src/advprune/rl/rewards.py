"""What the episodes say: mean rewards, relative rewards, and whether SAP's gain is shown.

Intervals are over episodes of one trained agent. Nothing in this module needs torch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95
RESAMPLES = 4999
DENSE, SAP = ("dense", "exact"), ("SAP", "constant")
BPDA = ("SAP", "identity")
RANDOM = ("random", "none")  # its episodes, which see nothing, are noted at budget 0


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; both are None where it is not defined."""

    value: float | None
    low: float | None
    high: float | None


def mean_interval(values: np.ndarray, level: float = LEVEL) -> Estimate:
    """Mean with Student's t interval `m +- t s / sqrt(n)`."""
    mean, n = float(np.mean(values)), len(values)
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half)


def relative(pruned: np.ndarray, dense: np.ndarray, axis: int = -1) -> np.ndarray:
    """(R_SAP - R_dense) / |R_dense| of mean rewards; NaN where the dense agent's mean is 0.

    The size in the denominator keeps the sign right in games whose rewards are negative.
    """
    below = np.mean(dense, axis=axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (np.mean(pruned, axis=axis) - below) / np.abs(below)
    return np.where(below == 0, np.nan, ratio)


def difference(pruned: np.ndarray, dense: np.ndarray, axis: int = -1) -> np.ndarray:
    """R_SAP - R_dense of mean rewards."""
    return np.asarray(np.mean(pruned, axis=axis) - np.mean(dense, axis=axis))


def relative_interval(pruned: np.ndarray, dense: np.ndarray) -> Estimate:
    """Relative reward with its percentile bootstrap interval over paired episodes."""
    return _bootstrap(relative, pruned, dense, LEVEL)


def gain_interval(pruned: np.ndarray, dense: np.ndarray, comparisons: int) -> Estimate:
    """R_SAP - R_dense, its interval widened for so many comparisons (Bonferroni)."""
    return _bootstrap(difference, pruned, dense, 1 - (1 - LEVEL) / comparisons)


def _bootstrap(
    statistic: Callable[..., np.ndarray], pruned: np.ndarray, dense: np.ndarray, level: float
) -> Estimate:
    """A statistic of two rewards a pair of episodes, resampled by the pair."""
    value = float(statistic(pruned, dense))
    if not math.isfinite(value):
        return Estimate(None, None, None)
    found = stats.bootstrap(
        (pruned, dense),
        statistic,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    ends = [float(end) if math.isfinite(end) else None for end in found]
    return Estimate(value, *ends)


def rewards(records: pd.DataFrame, who: tuple[str, str], budget: float) -> np.ndarray:
    """The rewards of an (agent, rule) at a budget, in the order of the episodes' seeds."""
    agent, rule = who
    rows = records[(records.agent == agent) & (records.rule == rule) & (records.budget == budget)]
    return rows.sort_values("seed").reward.to_numpy(dtype=float)


def budgets(records: pd.DataFrame) -> list[float]:
    """All budgets at which agents were attacked, rising."""
    return sorted(float(b) for b in records[records.agent == "dense"].budget.unique())


@dataclass(frozen=True)
class Verdict:
    """At which attacked budgets SAP earns more, and less, than the dense agent; others: unshown."""

    more: list[float]
    less: list[float]


def verdict(records: pd.DataFrame, who: tuple[str, str]) -> Verdict:
    """Compare SAP under a rule with the dense agent at every budget above 0, jointly at 95 %."""
    attacked = [budget for budget in budgets(records) if budget > 0]
    more, less = [], []
    for budget in attacked:
        pair = rewards(records, who, budget), rewards(records, DENSE, budget)
        gain = gain_interval(*pair, comparisons=len(attacked))
        more += [budget] if (gain.low or 0) > 0 else []
        less += [budget] if (gain.high or 0) < 0 else []
    return Verdict(more, less)


def beats_random(records: pd.DataFrame, who: tuple[str, str], budget: float) -> bool:
    """Whether SAP under a rule is shown to earn more than random play, at 95 %."""
    pair = rewards(records, who, budget), rewards(records, RANDOM, 0.0)
    return (gain_interval(*pair, comparisons=1).low or 0) > 0


def metrics(records: pd.DataFrame) -> dict[str, float | None]:
    """Flat: mean rewards by agent, rule and budget, and SAP's relative rewards."""
    found: dict[str, float | None] = {
        "random_reward": _rounded(mean_interval(rewards(records, RANDOM, 0.0)).value)
    }
    for budget in budgets(records):
        for agent, rule in (DENSE, SAP, BPDA):
            mean = mean_interval(rewards(records, (agent, rule), budget)).value
            found[f"{agent}_{rule}_reward_{budget:g}"] = _rounded(mean)
        for agent, rule in (SAP, BPDA):
            pair = rewards(records, (agent, rule), budget), rewards(records, DENSE, budget)
            found[f"{agent}_{rule}_relative_{budget:g}"] = _rounded(relative_interval(*pair).value)
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
