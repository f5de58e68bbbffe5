"""How the model of a claim is compared with its control: one function each, by name."""

from collections.abc import Callable
from functools import partial
from math import hypot, inf, isclose
from typing import Any

import numpy as np
import pandas as pd

from advprune.core.claims import Claim
from advprune.core.settings import parse_fraction, relative
from advprune.evaluate.acting import LOOKED_AT, last_stage
from advprune.evaluate.compare import Compared, compare
from advprune.evaluate.distances import compare_distances
from advprune.evaluate.flips import Reached, compare_flips
from advprune.evaluate.means import Mean, against_zero, compare_calibration
from advprune.evaluate.seeds import SeededPoint, guarded
from advprune.evaluate.verdict import beside_one_step
from advprune.report.run import NOT_RUN, Model, Run
from advprune.report.sections.masks import by_family, nearest, point_of
from advprune.report.sections.protocol import models_of
from advprune.report.sections.seeds import points_of

NOT_HERE = "not reproduced here"
AGENTS = "rl/gains.csv"  # what the pipeline of agents found (advprune.rl.report.gains)
Metric = Callable[[Run, Claim], Compared]


class Missing(Exception):
    """A comparison cannot be made: (outcome, reason)."""


def clean(run: Run, claim: Claim) -> Compared:
    """Clean accuracy."""
    first, second = arms(run, claim)
    if isinstance(first, SeededPoint):
        return first.against(second, "clean", claim.counts)
    return compare(run.robust(first), run.robust(second), "clean", claim.counts)


def robust(run: Run, claim: Claim) -> Compared:
    """Robust accuracy: the union of all attacks."""
    first, second = arms(run, claim)
    if isinstance(first, SeededPoint):
        return guarded(first, second, "robust", claim.counts, len(run.classes))
    return compare(run.robust(first), run.robust(second), "adv", claim.counts)


def distance(run: Run, claim: Claim) -> Compared:
    """The smallest change of an image that fools the model."""
    first, second = arms(run, claim)
    return compare_distances(run.distances(first), run.distances(second))


def attacked(run: Run, claim: Claim) -> Compared:
    """Accuracy under `attack` alone, at the budget `eps`; of a model of the protocol, by default at
    the largest."""
    first, second = _attacked(run, claim)
    return compare(first, second, margin=claim.counts)


def falls_behind(run: Run, claim: Claim) -> bool:
    """Whether the attack of a protocol's claim does less harm than FGSM at the same budget."""
    if claim.study != "protocol":
        return False
    eps, tests = _attacked(run, claim)[0].eps.iloc[0], beside_one_step(arms(run, claim)[0].rows)
    known = {name: test for (name, at), test in tests.items() if isclose(at, eps, rel_tol=1e-6)}
    return claim.attack in known and known[claim.attack].better


def transfer(run: Run, claim: Claim) -> Compared:
    """Accuracy on images that `attack` crafted on the dense network; of that itself, white-box.

    matched: the control is the setting of its family that `nearest` chooses.
    """
    first, second = arms(run, claim)
    name = claim.attack or run.main
    if isinstance(first, SeededPoint):
        if not len(first.transfer):
            raise Missing(NOT_RUN, f"images of the dense network were not tried on {first.name}")
        return first.against(second, "transfer", claim.counts)
    tables = [one.transferred(name, first.root) for one in (first, second)]
    if claim.matched:
        swept = run.swept
        point, other = (point_of(swept, swept.by_name[one.name]) for one in (first, second))
        pair = point, nearest(swept, point, by_family(swept).get(second.family) or [other])
        tables = [one.transferred.get(name, pd.DataFrame()) for one in pair]
    own, there = _recorded(claim, name, tables)
    return compare(own, there, margin=claim.counts)


def flips(run: Run, claim: Claim) -> Compared:
    """Bits to chance, against `factor` times those of the control under the search `variant`."""
    first, second = arms(run, claim)
    found = run.flips(first), run.flips(second, claim.variant)
    for name, reached in zip((claim.model, claim.control), found, strict=True):
        if reached is None or not reached.bits:
            raise Missing(NOT_RUN, f"no bit flips of {name} in this run")
    own, other = (one for one in found if one is not None)
    many = [None if count is None else round(claim.factor * count) for count in other.bits]
    tried = tuple(round(claim.factor * count) for count in other.tried)
    asked = Reached(tuple(many), tried, other.trainings)
    least, most = min(count for count, _ in asked.ends), max(own.tried)
    if not own.uncensored and (most < least or not other.uncensored):  # nothing can be shown
        why = f"{claim.factor:,g} times its control's are at least {least:,}"
        raise Missing(NOT_RUN, f"the search on {claim.model} ended at {most:,} flips; {why}")
    return compare_flips(own, asked)


def calibration(run: Run, claim: Claim) -> Compared:
    """Calibration error under `attack`; standard error by the bootstrap over images."""
    first, second = _attacked(run, claim)
    return compare_calibration(first, second, claim.counts)


def transfer_back(run: Run, claim: Claim) -> Compared:
    """Accuracy of the control on images that `attack` crafted on the model, against white-box."""
    first, second = arms(run, claim)
    name = claim.attack or run.main
    tables = [second.transferred(name, first.name), second.attack(name)]
    there, own = _recorded(claim, name, tables)
    return compare(there, own, margin=claim.counts)


def agents(run: Run, claim: Claim) -> Compared:
    """Reward of agents with SAP less that of dense ones, in the game where that is least (it is
    claimed of every game), in parts of what dense ones earn unattacked above random play."""
    path = run.folder / AGENTS
    games = pd.read_csv(path).query("attack == @claim.attack") if path.exists() else pd.DataFrame()
    if games.empty:
        raise Missing(NOT_RUN, f"{AGENTS} holds no game under {claim.attack}")
    row: Any = games.sort_values("gain").iloc[0]
    mean = Mean(row.gain, None, row.error, row.episodes - 1, 1, int(row.episodes))
    return against_zero(mean, claim.counts)


def layers(run: Run, claim: Claim, of: str, chosen: Callable[[pd.DataFrame], Any]) -> Compared:
    """What layers gain under attack above noise, image by image: the mean over the `chosen` ones;
    less that of another control."""
    found = []
    for one in dict.fromkeys(arms(run, claim)):
        if f"{of}_gain" not in one.layers:
            raise Missing(NOT_HERE, "control missing: no error of it under noise is recorded")
        table = chosen(one.layers[one.layers.kind != "Normalize"].sort_values("depth"))
        if table.empty:
            raise Missing(NOT_HERE, f"{one.name} has no such layers")
        found.append((float(table[f"{of}_gain"].mean()), float(table[f"{of}_gain_error"].mean())))
    value = found[0][0] - sum(gain for gain, _ in found[1:])
    mean = Mean(value, None, hypot(*(error for _, error in found)), inf, 1, min(run.n, LOOKED_AT))
    return against_zero(mean, claim.counts)


METRICS: dict[str, Metric] = {
    **{one.__name__: one for one in (clean, robust, distance, attacked, transfer, flips)},
    **{one.__name__: one for one in (calibration, transfer_back, agents)},
    # Units that change behind the input, the largest value before the classifier, and sigma of the
    # last stage under attack above the clean one, in parts of that.
    "input_changes": partial(layers, of="changed", chosen=lambda table: table.iloc[:1]),
    "last_grows": partial(layers, of="top", chosen=lambda table: table.iloc[-2:-1]),
    "stage_spreads": partial(layers, of="sigma", chosen=last_stage),
}


def arms(run: Run, claim: Claim) -> tuple[Any, Any]:
    """Model and control: of the leaderboard, or models or points of one study."""
    known: list[dict[str, Any]] = [dict(run.by_name)]
    if claim.study == "protocol":
        known = [{one.name: one for one in models_of(run)}]
    elif claim.study == "seeds":
        known = [{p.name: p for p in points_of(run, name)} for name in run.studies_of("seeds")]
    for models in known:
        if claim.model in models:
            if claim.control not in models:
                raise Missing(NOT_RUN, f"{claim.control}, its control, is not part of this run")
            return models[claim.model], models[claim.control]
    raise Missing(NOT_RUN, f"{claim.model} is not part of this run")


def _attacked(run: Run, claim: Claim) -> list[pd.DataFrame]:
    """The records of model and control under the claim's attack."""
    name, tables = claim.attack or run.main, []
    for one in arms(run, claim):
        if isinstance(one, Model):
            table = one.attack(name)
            if claim.eps:
                at = parse_fraction(relative(claim.eps, run.profile.eps))
                table = table[np.isclose(table.eps, at, rtol=1e-6, atol=0)]
            if not table["index"].is_unique:  # of a curve
                raise Missing(NOT_RUN, f"{name} has several budgets or numbers of steps")
            tables.append(table)
        else:
            found = one.over_budgets(name)
            known = relative(claim.eps, run.profile.eps) if claim.eps else max(found, default=0)
            eps = parse_fraction(known)
            alike = [table for at, table in found.items() if isclose(at, eps, rel_tol=1e-6)]
            tables.append(alike[0] if alike else one.rows.iloc[:0])
    return _recorded(claim, name, tables)


def _recorded(claim: Claim, attack: str, tables: list[pd.DataFrame]) -> list[pd.DataFrame]:
    for name, table in zip((claim.model, claim.control), tables, strict=True):
        if table.empty:
            at = f" at {claim.eps}" if claim.eps else ""
            raise Missing(NOT_RUN, f"{attack}{at} was not run on {name}")
    return tables
