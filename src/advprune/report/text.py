"""How numbers and settings read in tables, figures and sentences."""

from collections.abc import Sequence
from typing import Any

NOTHING = "–"
_MARKDOWN = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
    | {sign: f"\\{sign}" for sign in "\\`*[]|$~#"}
)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a number of percent, without the sign; a dash for None."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}"


def with_interval(
    value: float | None, low: float | None, high: float | None, digits: int = 1
) -> str:
    """`2.7 (1.6–4.6)`: percent and its 95 % interval."""
    if value is None:
        return NOTHING
    return f"{percent(value, digits)} ({percent(low, digits)}–{percent(high, digits)})"


def budget(value: float) -> str:
    """An eps or a step the way people write it: `8/255` where that is short, else the number."""
    pixels = value * 255
    short = abs(pixels * 10 - round(pixels * 10)) < 1e-6
    return f"{round(pixels, 1):g}/255" if short and value else f"{value:.4g}"


def p_value(p: float) -> str:
    """`p = 0.031`, or `p < 0.001`."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.01 else f"p = {p:.2f}"


def setting_text(setting: Any) -> str:
    """A family's setting on one line; a dash where there is none."""
    if setting is None:
        return NOTHING
    if isinstance(setting, dict):
        return ", ".join(f"{key} {setting_text(value)}" for key, value in setting.items())
    return f"{setting:g}" if isinstance(setting, float) else str(setting)


def listed(words: Sequence[str]) -> str:
    """`a, b and c`."""
    *head, last = words or [""]
    return f"{', '.join(head)} and {last}" if head else last


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 model`, `2 models`; `nouns` where the plural is another."""
    return f"{number} {noun}" if number == 1 else f"{number} {nouns or noun + 's'}"


def unbroken(text: str) -> str:
    """Text in which no line ends between a number and its sign."""
    for sign in (" %", "n = ", "p = ", "p < ", "eps "):
        text = text.replace(sign, sign.replace(" ", "\u00a0"))
    return text


def markdown(value: Any) -> str:
    """Text that means itself in GitHub's markdown, in and out of tables: no markup, no HTML."""
    return str(value).translate(_MARKDOWN)
