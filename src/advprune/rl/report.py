"""From episodes to the report: results by point, metrics, a sentence and a table, one figure.

Agents are compared in the worst case: each under the attack that costs it most reward. The attack
is chosen on half of the episodes and scored on the other half, and the reverse: one that did most
harm by chance gains nothing from it.
"""

import math
from itertools import product
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
WORST = "worst"  # instead of an attack: the one that costs an agent most
COMPARED = ("FGSM", WORST)  # under which SAP is compared with the dense agent
Games = dict[str, pd.DataFrame]  # `results` by game
INTRO = """# SAP on agents under attack

DQN agents, one per game; every observation that they act on is attacked. Mean rewards of {episodes}
episodes with 95 % t intervals (over episodes, not training seeds). SAP: fraction {sap.fraction:g},
{sap.form}, {draws} draws. lambda: in standard deviations of each observed number, or in pixel
values of pictures. *FGSM* on SAP holds the random factors constant, as published; *BPDA* is FGSM
whose backward pass skips SAP's layers; *PGD* takes ten steps with that gradient; *noise* moves each
number in a random direction. *worst*: the attack of at most this lambda that costs the agent most
reward, chosen for each half of the episodes on the other half (both are named where they differ),
so it may lie above the smallest mean of a single attack. *relative*: (SAP - dense) / |dense|, with
the interval of a paired difference and the p of a paired t-test, both for all budgets of a game
together (p by Holm). Only the worst case tells of robustness: a gain under a single attack may show
no more than that this attack is weak against SAP.

![Rewards over the budget](reward.png)
"""


def rewards(records: pd.DataFrame, agent: str, attack: str, budget: float) -> np.ndarray:
    """A point's rewards `[episodes]` in the order of their seeds; at budget 0 nothing attacks."""
    if attack == WORST:
        return worst(records, agent, budget)[0]
    known, at = (attack, budget) if budget and agent != "random" else ("none", 0)
    rows = (records.agent == agent) & (records.attack == known) & (records.budget == at)
    return records[rows].sort_values("seed").reward.to_numpy(dtype=float)


def worst(records: pd.DataFrame, agent: str, budget: float) -> tuple[np.ndarray, str]:
    """The rewards `[episodes]`, by seed, under the attack of at most this budget that costs the
    agent most, and which that is; chosen for each half on the other half."""
    known = records[(records.agent == agent) & (records.budget <= budget)]
    tried = [*known[["attack", "budget"]].drop_duplicates().itertuples(index=False, name=None)]
    found = np.stack([rewards(records, agent, *one) for one in tried])  # [attacks, episodes]
    first = np.arange(found.shape[1]) % 2 == 0
    chosen = [int(found[:, half].mean(1).argmin()) for half in (~first, first)]
    names = dict.fromkeys(f"{tried[at][0]} {tried[at][1]:g}" for at in chosen)
    return np.where(first, found[chosen[0]], found[chosen[1]]), " and ".join(names)


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

    reward: mean and t interval. chosen: which attack is the worst. relative, gain: SAP's reward
    less the dense agent's, both under FGSM or each in its worst case; under PGD, an agent's reward
    less that under FGSM. p: of that difference, Holm over the budgets above 0. useful: the reward
    is significantly above that of random play.
    """
    blind, rows = rewards(records, "random", "none", 0), []
    curves = (*CURVES, ("dense", WORST), ("SAP", WORST), ("random", "none"))
    budgets = sorted(records.budget.unique())
    for (agent, attack), budget in product(curves, budgets):
        found = rewards(records, agent, attack, budget)
        row: dict[str, Any] = {"agent": agent, "attack": attack, "budget": float(budget)}
        row |= interval("reward", found)
        row["chosen"] = worst(records, agent, budget)[1] if attack == WORST else attack
        row["useful"] = found.mean() > blind.mean() and p_value(found, blind) < 1 - LEVEL
        compared = agent == "SAP" and attack in COMPARED
        if compared or attack == "PGD":
            other = rewards(records, *(("dense", attack) if compared else (agent, "FGSM")), budget)
            row |= {"gain": found.mean() - other.mean(), "p": p_value(found, other)}
        if compared:
            row |= relative(found, other, sum(b > 0 for b in budgets) if budget > 0 else 1)
        rows.append(row)
    table = pd.DataFrame(rows)
    tested = table[table.p.notna() & (table.budget > 0)]
    for _, group in tested.groupby(["agent", "attack"], sort=False):
        for index, p in zip(group.index, holm(group.p.tolist()), strict=True):
            low, high = table.loc[index, ["relative_low", "relative_high"]]
            ends = consistent((low, high), table.relative[index], p)
            table.loc[index, ["p", "relative_low", "relative_high"]] = p, *ends
    return table


def gains(games: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What SAP gains under attack, from the episodes of each game: the claim `sap-agents` (report).

    gain: SAP's reward less the dense agent's, the mean over budgets above 0, in parts of what the
    dense agent earns unattacked above random play; error: its standard error over episodes.
    """
    rows = []
    for game, records in games.items():
        budgets = [float(budget) for budget in sorted(records.budget.unique()) if budget > 0]
        sure, blind = (rewards(records, who, "none", 0).mean() for who in ("dense", "random"))
        for attack in COMPARED:
            sap, dense = (
                np.mean([rewards(records, who, attack, at) for at in budgets], 0)
                for who in ("SAP", "dense")
            )
            each = (sap - dense) / (abs(sure - blind) or np.nan)  # [episodes]
            row = {"game": game, "attack": attack, "budgets": len(budgets)}
            row |= {"gain": each.mean(), "error": stats.sem(each), "episodes": len(each)}
            rows.append(row)
    return pd.DataFrame(rows).round(6)


def metrics(games: Games) -> dict[str, float | None]:
    """Flat: mean rewards, and SAP's relative ones where compared; None where not defined."""
    found: dict[str, float] = {}
    for game, table in games.items():
        row: Any
        for row in table[(table.agent != "random") | (table.budget == 0)].itertuples():
            found[f"{game}_{row.agent}_{row.attack}_reward_{row.budget:g}"] = row.reward
            if row.agent == "SAP" and row.attack in COMPARED:
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
        which = f": {row.chosen}" if row.attack == WORST and row.budget else ""
        cells[f"{row.agent}, {row.attack}"] = f"{row.reward:.1f} {ends}{which}"
        if row.agent == "SAP" and row.attack in COMPARED:
            ends = f"({row.relative_low:+.0%} to {row.relative_high:+.0%})"
            p = f"p = {row.p:.2g}" if row.p >= 0.001 else "p < 0.001"
            change = f"{row.relative:+.0%} {ends}" if math.isfinite(row.relative) else "–"
            cells[f"relative, {row.attack}"] = f"{change}, {p}"
    return pd.DataFrame(rows).T.rename_axis("lambda")


def sentence(table: pd.DataFrame) -> str:
    """SAP's cost unattacked, and where it earns significantly more or less under attack."""
    cost = str(wide(table).loc["0", f"relative, {WORST}"])
    sure = table[(table.budget > 0) & (table.p < 1 - LEVEL)]
    failed = sure[(sure.attack == "PGD") & (sure.gain > 0)]
    weak = [f"{row.agent} at {row.budget:g}" for row in failed.itertuples()]
    check = f"Failed check: PGD costs less than FGSM ({', '.join(weak)})." if weak else ""

    def at(attack: str, rows: pd.Series) -> str:
        chosen = sure[(sure.attack == attack) & rows.loc[sure.index]].budget
        return ", ".join(f"{budget:g}" for budget in chosen) or "none"

    more, less = table.gain > 0, table.gain < 0
    return (
        f"Unattacked, SAP earns {cost}, relative to the dense agent. Budgets at which it earns "
        f"significantly more, each agent under its worst attack: {at(WORST, more)}; less: "
        f"{at(WORST, less)}; more, and more than random play: {at(WORST, more & table.useful)}. "
        f"Under FGSM alone, as published, more: {at('FGSM', more)}; less: {at('FGSM', less)}. "
        f"{check or 'PGD nowhere costs significantly less than FGSM.'}"
    )


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
