"""The report of the reinforcement-learning extra: a table and a sentence a game, and one figure."""

from io import BytesIO

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from advprune.rl.rewards import (
    BPDA,
    DENSE,
    RANDOM,
    SAP,
    Estimate,
    Verdict,
    beats_random,
    budgets,
    mean_interval,
    relative_interval,
    rewards,
    verdict,
)
from advprune.rl.settings import RlParams

Records = dict[str, pd.DataFrame]  # by game
NAMES = {DENSE: "dense", SAP: "SAP, its own gradient", BPDA: "SAP, BPDA"}
LOOKS = {DENSE: ("#000000", "o", "-"), SAP: ("#0072B2", "s", "--"), BPDA: ("#D55E00", "D", ":")}
INTRO = """# SAP on agents under attack

Agents trained by double DQN; FGSM on every observation that they act on. Mean rewards of
{episodes} episodes a point, with 95 % t intervals; SAP's gradients and values are averaged over
{draws} draws, its fraction is {fraction:g} ({form}). *Relative*: (SAP - dense) / |dense|, with
paired bootstrap intervals. "-": not defined (the dense agent earns nothing).

SAP is attacked twice: with its published gradient (the random factors held constant) and with BPDA
(its layers passed over in the backward pass). A gain that is not there under BPDA is owed to the
gradient, not to the agent. The attacker chooses, so the last column is the one that counts. An
attacked agent may do worse than random play: being random is then a gain in itself.
"""
LIMITS = """## What these numbers do not say

Intervals are over episodes of one trained agent a game; another seed gives another agent. FGSM is
a single step, as published; a gain that it leaves standing may fall to a stronger attack. The
sentences compare all attacked budgets of a game and a gradient jointly (Bonferroni), so an interval
in the table may exclude 0 where the sentence shows nothing.
"""


def markdown(records: Records, params: RlParams) -> str:
    """The report's text."""
    settings = {**params.evaluate.model_dump(), **params.sap.model_dump()}
    parts = [INTRO.format(**settings), "![Rewards over the budget](reward.png)\n"]
    for game, table in records.items():
        parts += [f"## {game} ({params.games[game].env})\n", f"{sentence(table)}\n"]
        parts += [f"{_scale(table, unit(params, game))}\n", f"{rows(table)}\n"]
    return "\n".join([*parts, LIMITS])


def _scale(table: pd.DataFrame, budget_unit: str) -> str:
    """What budgets and rewards are to be measured by."""
    blind = _reward(mean_interval(rewards(table, RANDOM, 0.0)))
    return f"Budgets: lambda, {budget_unit}. Random play earns {blind}."


def unit(params: RlParams, game: str) -> str:
    """What a game's budgets are measured in."""
    images = params.games[game].env.startswith("ALE/")
    return "as a share of the pixel range" if images else "in standard deviations of each number"


def rows(table: pd.DataFrame) -> str:
    """A row a budget: rewards of all three, and SAP's relative rewards."""
    found = []
    for budget in budgets(table):
        row = {"lambda": f"{budget:g}"}
        for who in (DENSE, SAP, BPDA):
            row[NAMES[who]] = _reward(mean_interval(rewards(table, who, budget)))
        for who in (SAP, BPDA):
            pair = rewards(table, who, budget), rewards(table, DENSE, budget)
            row[f"relative: {NAMES[who]}"] = _percent(relative_interval(*pair))
        found.append(row)
    return pd.DataFrame(found).to_markdown(index=False, disable_numparse=True)


def sentence(table: pd.DataFrame) -> str:
    """Whether SAP's gain over the dense agent is shown, computed from the episodes."""
    own, bpda = verdict(table, SAP), verdict(table, BPDA)
    text = f"Under FGSM with SAP's own gradient {_finding(own)}; under BPDA {_finding(bpda)}."
    lost = [budget for budget in own.more if budget not in bpda.more]
    if lost:
        text += f" Not believed, since BPDA does not bear it out: the gain at {_list(lost)}."
    if blind := [budget for budget in bpda.more if not beats_random(table, BPDA, budget)]:
        text += f" No better than random play under BPDA, so no use: the gain at {_list(blind)}."
    return f"**{_unattacked(table)}{text}**"


def _unattacked(table: pd.DataFrame) -> str:
    """What SAP costs where nobody attacks; nothing where budget 0 was not played."""
    if 0 not in budgets(table):
        return ""
    found = relative_interval(rewards(table, SAP, 0), rewards(table, DENSE, 0))
    return f"Unattacked, SAP's reward relative to the dense agent's is {_percent(found)}. "


def _finding(found: Verdict) -> str:
    if not found.more and not found.less:
        return "no gain of SAP over the dense agent is shown"
    more = f"SAP earns more than the dense agent at {_list(found.more)}" if found.more else ""
    start = "less at" if found.more else "SAP shows no gain, and earns less at"
    less = f"{start} {_list(found.less)}" if found.less else ""
    return " and ".join(part for part in (more, less) if part)


def _list(values: list[float]) -> str:
    return "lambda " + ", ".join(f"{value:g}" for value in values)


def _reward(found: Estimate) -> str:
    return f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})"


def _percent(found: Estimate) -> str:
    if found.value is None:
        return "-"
    ends = [f"{end:+.0%}" if end is not None else "?" for end in (found.low, found.high)]
    return f"{found.value:+.0%} ({ends[0]} to {ends[1]})"


def figure(records: Records) -> Figure:
    """A row a game: mean rewards over the budget on the left, relative rewards on the right."""
    drawn = Figure(figsize=(9.0, 3.4 * len(records)), dpi=150, layout="constrained")
    axes = drawn.subplots(len(records), 2, squeeze=False)
    for (left, right), (game, table) in zip(axes, records.items(), strict=True):
        _draw_rewards(left, table)
        _draw_relative(right, table)
        left.set_title(game, loc="left", fontweight="bold")
        for side in (left, right):
            side.set_xlabel("lambda")
            side.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False)
    return drawn


def _draw_rewards(axes: Axes, table: pd.DataFrame) -> None:
    for who in (DENSE, SAP, BPDA):
        found = [mean_interval(rewards(table, who, budget)) for budget in budgets(table)]
        _draw(axes, who, budgets(table), found)
    blind = float(np.mean(rewards(table, RANDOM, 0.0)))
    axes.axhline(blind, color="#999999", linewidth=1, linestyle="-.", label="random play")
    axes.set_ylabel("mean reward")


def _draw_relative(axes: Axes, table: pd.DataFrame) -> None:
    axes.axhline(0, color="#666666", linewidth=0.8)
    for who in (SAP, BPDA):
        pairs = [(rewards(table, who, b), rewards(table, DENSE, b)) for b in budgets(table)]
        _draw(axes, who, budgets(table), [relative_interval(*pair) for pair in pairs])
    axes.yaxis.set_major_formatter("{x:+.0%}")
    axes.set_ylabel("SAP relative to dense")


def _draw(axes: Axes, who: tuple[str, str], x: list[float], found: list[Estimate]) -> None:
    """A line with a band for its intervals; points that are not defined are left out."""
    colour, marker, line = LOOKS[who]
    value, low, high = (
        np.array([getattr(e, end) for e in found], dtype=float) for end in ("value", "low", "high")
    )
    axes.plot(x, value, color=colour, marker=marker, linestyle=line, label=NAMES[who])
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def png(drawn: Figure) -> bytes:
    """A figure as PNG: 256 colours, without metadata, the same bytes each time."""
    canvas, buffer = FigureCanvasAgg(drawn), BytesIO()
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return buffer.getvalue()
