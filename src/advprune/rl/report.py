"""From episodes to the report: results by point, metrics, a sentence and a table, one figure."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from advprune.evaluate.compare import holm
from advprune.evaluate.statistics import consistent
from advprune.rl.settings import CURVES, RlParams

LEVEL = 0.95
LINES = {"dense": "-", "SAP": "--", "random": ":"}
ATTACKS = ("FGSM", "BPDA", "PGD")  # on SAP
Games = dict[str, pd.DataFrame]  # `results` by game
INTRO = """# SAP on agents under attack

DQN agents, one per game; every observation that they act on is attacked. Mean rewards of {episodes}
episodes with 95 % t intervals (over episodes, not training seeds). SAP: fraction {sap.fraction:g},
{sap.form}, {draws} draws. lambda: in standard deviations of each observed number, or in pixel
values of pictures. *FGSM* on SAP holds the random factors constant, as published; *BPDA* is FGSM
whose backward pass skips SAP's layers; *PGD* takes ten steps with that gradient; *noise* moves each
number in a random direction. *relative*: (SAP - dense) / |dense|, dense under PGD for PGD and under
FGSM otherwise, with the interval of a paired difference and the p of a paired t-test, both for all
budgets of a game together (p by Holm).

![Rewards over the budget](reward.png)
"""


def rewards(records: pd.DataFrame, agent: str, attack: str, budget: float) -> np.ndarray:
    """A point's rewards `[episodes]` in the order of their seeds; at budget 0 nothing attacks."""
    known, at = (attack, budget) if budget and agent != "random" else ("none", 0)
    rows = (records.agent == agent) & (records.attack == known) & (records.budget == at)
    return records[rows].sort_values("seed").reward.to_numpy(dtype=float)


def interval(name: str, values: np.ndarray, tests: int = 1) -> dict[str, float]:
    """Mean and Student's t interval `m +- t s / sqrt(n)`, as `name`, `name_low`, `name_high`; at
    the level that holds for so many `tests` together."""
    mean, reach = float(np.mean(values)), stats.t.ppf(1 - (1 - LEVEL) / 2 / tests, len(values) - 1)
    half = float(reach * stats.sem(values))
    return {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}


def relative(pruned: np.ndarray, dense: np.ndarray, tests: int = 1) -> dict[str, float]:
    """(R_SAP - R_dense) / |R_dense| of mean rewards, and its paired interval; NaN at R_dense = 0.
    |R_dense| keeps the sign right where rewards are negative; the interval takes it as given."""
    return interval("relative", (pruned - dense) / (abs(dense.mean()) or np.nan), tests)


def p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Two-sided p of the difference of mean rewards, paired t-test; 1 where no pair differs."""
    return float(stats.ttest_rel(one, other).pvalue) if np.any(one != other) else 1.0


def results(records: pd.DataFrame) -> pd.DataFrame:
    """One row per agent, attack and budget of a game, from its episodes.

    reward: mean and t interval. relative, gain: SAP's reward less the dense agent's at the same
    budget, under PGD for PGD and under FGSM otherwise. p: of that difference, Holm over the budgets
    above 0. useful: the reward is significantly above that of random play.
    """
    blind, rows = rewards(records, "random", "none", 0), []
    tests = int(np.sum(records.budget.unique() > 0))
    for agent, attack in (*CURVES, ("random", "none")):
        for budget in sorted(records.budget.unique()):
            found = rewards(records, agent, attack, budget)
            row: dict[str, Any] = {"agent": agent, "attack": attack, "budget": float(budget)}
            row |= interval("reward", found)
            row["useful"] = found.mean() > blind.mean() and p_value(found, blind) < 1 - LEVEL
            if agent == "SAP":
                against = "PGD" if attack == "PGD" else "FGSM"
                dense = rewards(records, "dense", against, budget)
                row |= relative(found, dense, tests if budget > 0 else 1)
                row |= {"gain": found.mean() - dense.mean(), "p": p_value(found, dense)}
            rows.append(row)
    table = pd.DataFrame(rows)
    for _, group in table[(table.agent == "SAP") & (table.budget > 0)].groupby("attack"):
        for index, p in zip(group.index, holm(group.p.tolist()), strict=True):
            low, high = table.loc[index, ["relative_low", "relative_high"]]
            ends = consistent((low, high), table.relative[index], p)
            table.loc[index, ["p", "relative_low", "relative_high"]] = p, *ends
    return table


def metrics(games: Games) -> dict[str, float | None]:
    """Flat: mean rewards, and SAP's relative rewards under FGSM; None where not defined."""
    found: dict[str, float] = {}
    for game, table in games.items():
        row: Any
        for row in table[(table.agent != "random") | (table.budget == 0)].itertuples():
            found[f"{game}_{row.agent}_{row.attack}_reward_{row.budget:g}"] = row.reward
            if row.agent == "SAP" and row.attack != "noise":
                found[f"{game}_SAP_{row.attack}_relative_{row.budget:g}"] = row.relative
    return {key: round(v, 4) if math.isfinite(v) else None for key, v in found.items()}


def markdown(games: Games, params: RlParams) -> str:
    """The report's text."""
    parts = [INTRO.format(**dict(params))]
    for game, table in games.items():
        text = wide(table).to_markdown(disable_numparse=True)
        parts += [f"## {game} ({params.games[game].env})\n", f"{sentence(table)}\n", f"{text}\n"]
    return "\n".join(parts)


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """Text for the report: one row per budget, a column per curve and per comparison.

    –: a dense agent that earns nothing has no relative reward.
    """
    rows: dict[str, dict[str, str]] = {}
    row: Any
    for row in table.itertuples():
        cells = rows.setdefault(f"{row.budget:g}", {})
        ends = f"({row.reward_low:.1f} to {row.reward_high:.1f})"
        cells[f"{row.agent}, {row.attack}"] = f"{row.reward:.1f} {ends}"
        if row.agent == "SAP" and row.attack != "noise":
            ends = f"({row.relative_low:+.0%} to {row.relative_high:+.0%})"
            p = f"p = {row.p:.2g}" if row.p >= 0.001 else "p < 0.001"
            change = f"{row.relative:+.0%} {ends}" if math.isfinite(row.relative) else "–"
            cells[f"relative, {row.attack}"] = f"{change}, {p}"
    return pd.DataFrame(rows).T.rename_axis("lambda")


def sentence(table: pd.DataFrame) -> str:
    """SAP's cost unattacked, where it earns significantly more or less, or beats random play."""
    cost = str(wide(table).loc["0", "relative, FGSM"])
    sure = table[(table.budget > 0) & (table.p < 1 - LEVEL)].set_index("budget")
    own = {attack: sure[sure.attack == attack] for attack in ATTACKS}
    more = {attack: rows.index[rows.gain > 0] for attack, rows in own.items()}
    less = {attack: rows.index[rows.gain < 0] for attack, rows in own.items()}
    useful = own["PGD"].index[(own["PGD"].gain > 0) & own["PGD"].useful]
    everywhere = [f"{at:g}" for at in useful if all(at in budgets for budgets in more.values())]
    return (
        f"Unattacked, SAP earns {cost}, relative to the dense agent. Budgets at which it earns "
        f"significantly more: {_listed(more)}; less: {_listed(less)}. More under all three, and "
        f"significantly more than random play: {', '.join(everywhere) or 'none'}."
    )


def _listed(budgets: dict[str, Any]) -> str:
    """Budgets by attack, in words."""
    named = {attack: ", ".join(f"{x:g}" for x in some) for attack, some in budgets.items()}
    return ", ".join(f"{some or 'none'} ({attack})" for attack, some in named.items())


def figure(games: Games) -> Figure:
    """Mean rewards over the budget, one panel per game."""
    drawn = Figure(figsize=(4.8 * len(games), 3.6), dpi=120, layout="constrained")
    panels = drawn.subplots(1, len(games), squeeze=False)[0]
    for axes, (game, table) in zip(panels, games.items(), strict=True):
        for (agent, attack), rows in table.groupby(["agent", "attack"], sort=False):
            half, look = rows.reward_high - rows.reward, LINES[str(agent)]
            axes.errorbar(rows.budget, rows.reward, half, ls=look, label=f"{agent}, {attack}")
        axes.set(title=game, xlabel="lambda", ylabel="mean reward")
    drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6)
    return drawn
