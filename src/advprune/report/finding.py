"""A finding, and the words that findings share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from advprune.evaluate.statistics import Rate
from advprune.report.text import with_interval


@dataclass(frozen=True)
class Finding:
    """A question with its answer, what it rests on in sentences, and the figures behind them.

    folded: whether a page may show the title alone until it is asked for the text.
    """

    title: str
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    folded: bool = False


def paragraphs(*parts: Sequence[str]) -> str:
    """Parts of the text, each of sentences; empty ones are left out."""
    return "\n\n".join(" ".join(part) for part in parts if part)


def spell(rate: Rate) -> str:
    """`2.7 % (1.6–4.6)`."""
    return with_interval(rate.value, *rate.interval).replace(" (", " % (")
