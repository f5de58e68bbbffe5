"""Sparse networks that are trained to be robust: accuracy over seeds, pairs, published results.

Every number is a mean over seeds and test images, with the interval of `evaluate.crossed`, which
holds for other seeds and other images. Two ways of pruning are compared on the same images and on
dense networks of the same seeds: the differences are paired in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from advprune.core.params import DENSE
from advprune.evaluate.compare import ALPHA, holm, right
from advprune.evaluate.crossed import Mean, mean
from advprune.evaluate.verdict import worst_case
from advprune.report.finding import Finding, paragraphs
from advprune.report.published import ADVERSARIAL_PRUNING
from advprune.report.study import Study
from advprune.report.text import NOTHING, budget, count, listed, p_value, percent, setting_text

# Families that learn which weights stay, and those that show what the learning is good for.
CONTROLS = {
    "HYDRA": ("LWM",),
    "AWT": ("NTT", "inherited_ticket", "magnitude_ticket", "random_ticket"),
}


@dataclass(frozen=True, eq=False)
class Entry:
    """A point of the study: which images its networks have right, `[S, n]`, a row a seed.

    sparsity: as it was set, None where the family has no such setting. zeros: share of all weights
    and biases that is zero, the mean over seeds.
    """

    name: str
    family: str
    base: str
    setting: dict[str, Any]
    zeros: float
    clean: np.ndarray
    robust: np.ndarray

    @property
    def sparsity(self) -> float | None:
        """The share of weights that goes, as set; 0 of the dense network."""
        return 0.0 if self.family == DENSE else self.setting.get("sparsity")

    @property
    def is_tuned(self) -> bool:
        """Whether weights were trained after pruning, or there was none."""
        return self.family == DENSE or any(self.setting.get(key) for key in ("finetune", "train"))


@dataclass(frozen=True, eq=False)
class Pair:
    """A point against a control: differences of accuracy, and p of the robust one (Holm)."""

    point: Entry
    control: Entry
    clean: Mean
    robust: Mean
    p: float
    void: bool

    @property
    def outcome(self) -> str:
        """better, worse, same, or void where both are at chance."""
        if self.void:
            return "void"
        if self.p >= ALPHA:
            return "same"
        return "better" if self.robust.value > 0 else "worse"


@cache
def entries(study: Study) -> list[Entry]:
    """The dense networks, then the points in params order; empty where there is no study."""
    if study.sparsity.empty:
        return []
    points = study.params.sparsity_study.points
    settings: dict[str, dict[str, Any]] = {DENSE: {}}
    settings |= {name: as_mapping(point.setting) for name, point in points.items()}
    of_point = {str(name): own for name, own in study.sparsity.groupby("point")}
    return [
        _entry(study, own, setting)
        for name, setting in settings.items()
        if name in of_point
        for _, own in of_point[name].groupby("base", sort=False)
    ]


def _entry(study: Study, records: pd.DataFrame, setting: dict[str, Any]) -> Entry:
    first, clean, robust = records.iloc[0], [], []
    for _, own in records.groupby("seed", sort=True):
        main = own[own.attack == study.main].sort_values("index")
        clean.append(right(main, "clean"))
        robust.append(right(worst_case(own, study.main)))
    zeros = float(records.groupby("seed").sparsity.first().mean())
    tables = np.stack(clean), np.stack(robust)
    return Entry(first["point"], first.family, first.base, setting, zeros, *tables)


def as_mapping(setting: Any) -> dict[str, Any]:
    """A setting as a mapping: a bare number is a sparsity."""
    return setting if isinstance(setting, dict) else {"sparsity": setting}


def dense_of(study: Study, base: str) -> Entry:
    """The dense network of a recipe."""
    return next(one for one in entries(study) if (one.name, one.base) == (DENSE, base))


def difference(one: Entry, other: Entry, side: str) -> np.ndarray:
    """By seed and image, 1 where only the first is right, -1 where only the second, else 0."""
    return getattr(one, side).astype(float) - getattr(other, side)


def shown(found: Mean) -> str:
    """`60.3 ± 1.2 (55.9–64.7)`: percent, standard deviation over seeds, 95 % interval."""
    low, high = np.clip(found.interval, 0, 1)
    spread = "" if found.deviation is None else f" ± {percent(found.deviation)}"
    return f"{percent(found.value)}{spread} ({percent(low)}–{percent(high)})"


def signed(found: Mean) -> str:
    """`+16.3 (+4.1 to +28.5)`: a difference in points and its 95 % interval."""
    low, high = found.interval
    return f"{100 * found.value:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def at_chance(study: Study, entry: Entry) -> bool:
    """Whether the clean accuracy's interval reaches down to guessing."""
    return mean(entry.clean).interval[0] <= 1 / len(study.classes)


# --- tables --------------------------------------------------------------------------------------


def point_table(study: Study) -> pd.DataFrame:
    """A row a point: clean and robust accuracy, and the robust one against the dense network."""
    return pd.DataFrame(_row(study, one) for one in entries(study))


def _row(study: Study, entry: Entry) -> dict[str, str]:
    dense = dense_of(study, study.params.sparsity_study.dense)
    against = mean(difference(entry, dense, "robust"))
    return {
        "point": entry.name,
        "family": entry.family,
        "of": entry.base,
        "sparsity %": percent(entry.sparsity),
        "zeros %": percent(entry.zeros),
        "clean %": shown(mean(entry.clean)),
        "robust %": shown(mean(entry.robust)),
        f"robust, against dense {dense.base}": NOTHING if entry is dense else signed(against),
        "setting": setting_text(entry.setting) if entry.setting else NOTHING,
    }


def pair_table(study: Study) -> pd.DataFrame:
    """A row a point and control: the paired differences and Holm's p within each family."""
    return pd.DataFrame(
        {
            "point": pair.point.name,
            "control": pair.control.name,
            "sparsity %": percent(pair.point.sparsity),
            "clean, difference": signed(pair.clean),
            "robust, difference": signed(pair.robust),
            "p": p_value(pair.p).removeprefix("p ").removeprefix("= "),
            "robust": _MARKS[pair.outcome],
        }
        for family in CONTROLS
        for pair in pairs(study, family)
    )


_MARKS = {"better": "▲ more", "worse": "▼ less", "same": "=", "void": "at chance"}


def published_table(study: Study) -> pd.DataFrame:
    """Clean / robust accuracy by sparsity: what others published, then ours; empty without ours."""
    board, ours = ADVERSARIAL_PRUNING, _ours(study)
    if not ours:
        return pd.DataFrame()
    rows = [
        {"method": method, "whose": "published"}
        | {
            _column(s): f"{c:.2f} / {r:.2f}"
            for s, (c, r) in zip(board.sparsities, row, strict=True)
        }
        for method, row in board.rows.items()
    ]
    for family, found in ours.items():
        cells = {_column(s): _both(found[s]) if s in found else NOTHING for s in board.sparsities}
        rows.append({"method": family, "whose": "ours"} | cells)
    return pd.DataFrame(rows)


def _ours(study: Study) -> dict[str, dict[float, Entry]]:
    """By family, the first trained point at each published sparsity, on the study's base."""
    found: dict[str, dict[float, Entry]] = {}
    for one in entries(study):
        is_ours = one.is_tuned and one.base == study.params.sparsity_study.dense
        for sparsity in ADVERSARIAL_PRUNING.sparsities:
            if is_ours and one.sparsity is not None and abs(one.sparsity - sparsity) < 1e-9:
                found.setdefault(one.family, {}).setdefault(sparsity, one)
    return found


def _column(sparsity: float) -> str:
    return f"{percent(sparsity, 0)} %, clean / robust"


def _both(entry: Entry) -> str:
    return f"{percent(mean(entry.clean).value)} / {percent(mean(entry.robust).value)}"


def number_table(study: Study) -> pd.DataFrame:
    """The points as numbers, for curves/sparsity.csv: rates are fractions, rounded to 4 places."""
    return pd.DataFrame(
        {
            "point": one.name,
            "family": one.family,
            "base": one.base,
            "sparsity": one.sparsity,
            "seeds": len(one.clean),
            "n": one.clean.shape[1],
        }
        | _numbers("clean", mean(one.clean))
        | _numbers("robust", mean(one.robust))
        for one in entries(study)
    )


def _numbers(name: str, found: Mean) -> dict[str, float | None]:
    low, high = (round(float(end), 4) for end in np.clip(found.interval, 0, 1))
    spread = None if found.deviation is None else round(found.deviation, 4)
    value = round(found.value, 4)
    return {name: value, f"{name}_low": low, f"{name}_high": high, f"{name}_deviation": spread}


# --- words ---------------------------------------------------------------------------------------


def conditions(study: Study) -> str:
    """What the numbers are about: attacks, budget, images, seeds and how intervals were made."""
    first, eps = entries(study)[0], budget(study.main_attack.eps)
    seeds, n = first.clean.shape
    attacks = dict.fromkeys([study.main, *study.params.sparsity_study.attacks])
    over = (
        "each with a dense network of its own. ± is the standard deviation over seeds; brackets "
        "hold 95 % intervals for other seeds and other images (two-way random effects, "
        "Satterthwaite's t)."
        if seeds > 1
        else "so that brackets hold 95 % intervals for other images alone: another training may "
        "differ by more."
    )
    return (
        f"Robust: what is left per image after the worst of {listed(list(attacks))} "
        f"({study.main_attack.norm}, eps {eps}); n = {n} test images and {count(seeds, 'seed')}, "
        f"{over}"
    )


def protocol_words(study: Study) -> str:
    """How the published results beside ours were made, and how ours."""
    model, board = study.params.active().model, ADVERSARIAL_PRUNING
    first = entries(study)[0]
    seeds, n = first.clean.shape
    attacks = list(dict.fromkeys([study.main, *study.params.sparsity_study.attacks]))
    return (
        f"Published: {board.source}; {board.protocol}. Ours: {study.source}, {model.described}, "
        f"{listed(attacks)} at eps {budget(study.main_attack.eps)}, "
        f"n = {n}, the mean of {count(seeds, 'seed')}. Data, width, attack and budget differ: rows "
        "compare among the published ones or among ours, not between the two."
    )


def claims(study: Study) -> Iterator[Finding]:
    """For each family that learns its mask: does it keep more robustness than its controls?"""
    for family in CONTROLS:
        found = pairs(study, family)
        if found:
            yield _claim(study, family, found)


@cache
def pairs(study: Study, family: str) -> list[Pair]:
    """A family's points against controls of the same base and sparsity, both tuned or neither.

    p-values are corrected over the family's pairs (Holm), those at chance apart.
    """
    found = [
        _pair(study, one, other)
        for one in entries(study)
        if one.family == family
        for other in entries(study)
        if other.family in CONTROLS[family] and _comparable(one, other)
    ]
    corrected = iter(holm([pair.p for pair in found if not pair.void]))
    return [pair if pair.void else replace(pair, p=next(corrected)) for pair in found]


def _comparable(one: Entry, other: Entry) -> bool:
    keys = ("base", "sparsity", "is_tuned")
    return all(getattr(one, key) == getattr(other, key) for key in keys)


def _pair(study: Study, one: Entry, other: Entry) -> Pair:
    clean, robust = (mean(difference(one, other, side)) for side in ("clean", "robust"))
    void = at_chance(study, one) and at_chance(study, other)
    return Pair(one, other, clean, robust, robust.p, void)


def _claim(study: Study, family: str, found: list[Pair]) -> Finding:
    by_outcome = {
        outcome: [pair.control.name for pair in found if pair.outcome == outcome]
        for outcome in _OUTCOMES
    }
    told = [words.format(listed(by_outcome[k])) for k, words in _OUTCOMES.items() if by_outcome[k]]
    answer = "; ".join(told)
    text = paragraphs(
        [_against(pair) for pair in found],
        [_dense_words(study), *_sub_networks(study, family)],
        [conditions(study)],
    )
    question = f"Does {family} keep more robustness than its controls at the same sparsity?"
    figures = {pair.point.name: (pair.control.name, pair.outcome, pair.p) for pair in found}
    return Finding(f"{question} {answer[0].upper()}{answer[1:]}", text, {"pairs": figures})


_OUTCOMES = {
    "better": "more than {}",
    "worse": "less than {}",
    "same": "no difference from {} is shown",
    "void": "at chance beside {}, so nothing is concluded",
}


def _against(pair: Pair) -> str:
    one, other = pair.point, pair.control
    return (
        f"At {percent(one.sparsity)} % sparsity {one.name} keeps {shown(mean(one.robust))} % and "
        f"{other.name} {shown(mean(other.robust))} %: a difference of {signed(pair.robust)} points "
        f"({p_value(pair.p)}); clean {percent(mean(one.clean).value)} and "
        f"{percent(mean(other.clean).value)} %."
    )


def _dense_words(study: Study) -> str:
    dense = dense_of(study, study.params.sparsity_study.dense)
    return (
        f"The dense networks ({dense.base}) keep {shown(mean(dense.robust))} %, clean "
        f"{shown(mean(dense.clean))} %."
    )


def _sub_networks(study: Study, family: str) -> Iterator[str]:
    """Points whose weights are those of their dense network, beside it and beside the same training
    with nothing pruned."""
    alike = [one for one in entries(study) if one.family == family and not one.is_tuned]
    for one in (one for one in alike if one.sparsity):
        dense = dense_of(study, one.base)
        gain = mean(difference(one, dense, "robust"))
        yield (
            f"{one.name} picks {percent(1 - (one.sparsity or 0.0))} % of the weights of networks "
            f"trained by {one.base} and changes none of them: it keeps {shown(mean(one.robust))} "
            f"%, {signed(gain)} points against the whole network ({p_value(gain.p)}), clean "
            f"{shown(mean(one.clean))} %."
        )
        for whole in (w for w in alike if w.sparsity == 0 and w.base == one.base):
            gain = mean(difference(one, whole, "robust"))
            yield (
                f"The same training with nothing pruned ({whole.name}), of batch-norm alone, keeps "
                f"{shown(mean(whole.robust))} %: the mask makes a difference of {signed(gain)} "
                f"points ({p_value(gain.p)})."
            )
