"""Numbers become text here, by the name of their column.

A name is `quantity` or `quantity:qualifier` (`accuracy:PGD`). How it reads follows from the last
words of the quantity (`KINDS`); `quantity_low` and `quantity_high` beside it are its 95 % interval
and are merged into it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import pandas as pd

NOTHING = "–"
MOST_PLACES = 7  # of a percentage: one weight of 25 million; what is less is rounding
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
    | {sign: f"\\{sign}" for sign in "\\`*[]|$~#"}
)
_CODE = str.maketrans({"|": "\\|", "`": "'", "\n": " ", "\r": " "})


def _missing(value: Any) -> bool:
    return value is None or (not isinstance(value, str | dict | list | tuple) and pd.isna(value))


_norm: ContextVar[str] = ContextVar("norm", default="Linf")


@contextmanager
def budgets_in(norm: str) -> Iterator[None]:
    """Budgets and distances that are written inside are of this norm: those of Linf in grey levels,
    `8/255`, others as they are."""
    before = _norm.set(norm)
    try:
        yield
    finally:
        _norm.reset(before)


def budget(value: float) -> str:
    """An eps or a step: `8/255` where that is short, else the number."""
    tenths = value * 2550
    short = _norm.get() == "Linf" and abs(tenths - round(tenths)) < 1e-6
    return f"{round(value * 255, 1):g}/255" if short and value else f"{value:.4g}"


def count(value: float) -> str:
    """A number of things: `176,258`; a mean of counts to a tenth where it is small."""
    whole = float(value).is_integer() or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:,.1f}"


def number(value: Any) -> str:
    """Anything else: floats to four digits, integers whole, texts as they are."""
    if _missing(value):
        return NOTHING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, dict):
        said = (
            f"{k} ({number(v)})" if isinstance(v, dict) and v else f"{k} {number(v)}"
            for k, v in value.items()
        )
        return ", ".join(said) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(map(number, value)) or NOTHING
    if isinstance(value, float | int | np.number):
        return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
    return str(value)


@dataclass(frozen=True)
class Kind:
    """How numbers read: by a format specification, as parts of 1 / `scale`, or by a function; and
    the unit of those parts, for headings and axes."""

    form: str | Callable[[Any], str]
    unit: str = ""
    scale: float = 1.0

    def text(self, value: Any) -> str:
        """A number without its unit; a dash where there is none."""
        if _missing(value):
            return NOTHING
        if callable(self.form):
            return self.form(value)
        parts, form = self.scale * value, self.form
        if self.unit == "%" and parts not in (0, 100):
            # 4 of 10,000 are not 0.0 %, and 9,997 are not 100.0 %.
            places = (n for n in range(1, MOST_PLACES) if round(parts, n) not in (0, 100))
            form = form.replace(".1f", f".{next(places, 1)}f")
        return format(parts, form).replace("inf", "∞").removesuffix(".")


RATE, NUMBER = Kind("z.1f", "%", 100.0), Kind(number)
P_VALUE = Kind(lambda p: "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}")
percent, p_value = RATE.text, P_VALUE.text  # `54.0`, `0.031`
KINDS: dict[str, Kind] = {  # by the last words of a quantity
    name: kind
    for names, kind in {
        "accuracy rate ratio share sparsity agreement confidence": RATE,
        "difference": Kind("+z.1f", "points", 100.0),
        "deviation detectable": Kind("z.1f", "points", 100.0),
        "p p_against_dense p_distance": P_VALUE,
        "median_distance detectable_distance eps_axis": Kind("#.3g", "/255", 255.0),
        "distance_difference": Kind("+#.3g", "/255", 255.0),
        "eps step": Kind(budget),
        "ece ece_attacked nll nll_attacked brier brier_attacked": Kind(".3f"),
        "flips_to_chance flips": Kind(",.1f"),
        "flips_difference": Kind("+,.1f"),
        "forwards gradients passes n parameters nonzero macs file_bytes stored_bits": Kind(count),
        "latency": Kind(".3g", "ms", 1000.0),
    }.items()
    for name in names.split()
}


HEADINGS = {  # without their unit, where the name of a column says too much or too little
    **{f"{name}_accuracy": name for name in ("clean", "robust", "transfer", "area")},
    "recipe": "dense network",
    "median_distance": "distance",
    "distance_difference": "distance − dense",
    "robust_difference": "robust − dense",
    **dict.fromkeys(("p_distance", "p_against_dense"), "p"),
    **dict.fromkeys(("detectable_distance", "robust_detectable"), "detectable"),
    **dict.fromkeys(("counts_detectable", "counts_detectable_distance"), "threshold"),
    "counts_detectable_flips": "threshold flips",
    "eps_axis": "eps",
    "attack_success_rate": "success",
    "prediction_change_rate": "changed",
    "flips_to_chance": "flips",
    "at_least_flips": "flips, at least",
    "end_accuracy": "final accuracy",
    "highest_bit_share": "in the highest bit",
    "most_hit_layer": "layer of most flips",
    "times": "ratio",
    "seed_deviation": "SD over seeds",
    "ece": "ECE",
    "ece_attacked": "ECE attacked",
    "macs": "MACs",
}
HINTS = {  # what the columns of the leaderboard mean
    "clean_accuracy": "accuracy without an attack",
    "robust_accuracy": "not broken by any attack of the suite, 95 % interval",
    "against_dense": "robust accuracy, McNemar's test on the same images",
    "median_distance": "median of the smallest changes found that fool it",
    "distance_against_dense": "Wilcoxon's test on the same images",
    "verdict": "whether the robust accuracy can be believed",
    "transfer_accuracy": "on images crafted on the dense network",
    "sparsity": "zeros among the stored weights and biases",
    "bits": "of a stored weight",
    "flips_to_chance": "stored bits an attacker must flip to reach chance",
    "recipe": "how the network that it descends from was trained",
}


def kind_of(column: str) -> Kind:
    """The kind of a column's numbers."""
    words = column.partition(":")[0].split("_")
    ends = ("_".join(words[start:]) for start in range(len(words)))
    kind = next((KINDS[end] for end in ends if end in KINDS), NUMBER)
    return Kind(kind.form) if kind.unit == "/255" and _norm.get() != "Linf" else kind


def heading(column: str) -> str:
    """A column's heading with its unit: `robust %`; of `accuracy:PGD` the qualifier, `PGD %`."""
    quantity, _, qualifier = column.partition(":")
    name = HEADINGS.get(quantity, quantity.replace("_", " "))
    shown = (qualifier,) if quantity == "accuracy" and qualifier else (name, qualifier)
    return f"{', '.join(filter(None, shown))} {kind_of(column).unit}".strip()


def bounds(column: str) -> tuple[str, str]:
    """The names of the ends of a column's interval: `a_low:q` and `a_high:q` of `a:q`."""
    quantity, colon, qualifier = column.partition(":")
    return f"{quantity}_low{colon}{qualifier}", f"{quantity}_high{colon}{qualifier}"


def with_interval(column: str, value: Any, low: Any, high: Any) -> dict[str, Any]:
    """A number and its interval as columns: `a:q`, `a_low:q` and `a_high:q`."""
    return dict(zip((column, *bounds(column)), (value, low, high), strict=True))


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table of raw numbers as text: cells formatted, intervals merged, columns still by name."""
    names, found = list(map(str, table.columns)), {}
    merged = {end for column in names for end in bounds(column)}
    for name in (shown := [column for column in names if column not in merged]):
        cells = table[[c for c in (name, *bounds(name)) if c in table]].astype(object)
        found[name] = [cell_text(kind_of(name), *row) for row in cells.to_numpy()]
    return pd.DataFrame(found, columns=shown)


def cell_text(kind: Kind, value: Any, low: Any = None, high: Any = None) -> str:
    """One cell, such as `54.0 (50.1–57.9)`; a text is a name and stays."""
    if isinstance(value, str):
        return value
    if _missing(value) or _missing(low) or _missing(high):
        return kind.text(value)
    # Signs and dashes do not read together.
    between = " to " if str(kind.form).startswith("+") else "–"
    return f"{kind.text(value)} ({kind.text(low)}{between}{kind.text(high)})"


def sort_value(value: Any) -> float | str | None:
    """What a cell is sorted by; None comes last."""
    if _missing(value):
        return None
    return value if isinstance(value, str) else float(value) if isfinite(value) else None


def rate_text(rate: Any) -> str:
    """A `Rate` within a sentence: `2.7 % (1.6–4.6)`."""
    return cell_text(RATE, rate.value, *rate.interval).replace(" (", " % (")


def p_text(p: float) -> str:
    """Within a sentence: `p = 0.031`, `p < 0.001`."""
    text = p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *head, last = words or [""]
    return f"{', '.join(head)} and {last}" if head else last


def counted(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 model`, `2 models`; `nouns` where the plural is irregular."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def markdown(value: Any) -> str:
    """Text that means itself in GitHub's markdown, in and out of tables: no markup, no HTML."""
    return str(value).translate(_MARKDOWN)


def code(text: str) -> str:
    """The same as code, which can be copied as it is."""
    return f"`{text.translate(_CODE)}`"
