"""The verdict on each row of the leaderboard: tables of the checks, and what they say together."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from advprune.evaluate.verdict import DOUBT, FAIL, LEVELS, PASS, Check, Verdict
from advprune.report.finding import Finding, paragraphs
from advprune.report.study import Model, Study
from advprune.report.text import NOTHING, count, listed

MARKS = {PASS: "✓", DOUBT: "?", FAIL: "✗"}
RANK = list(LEVELS)  # from passed to failed


def level_text(found: Verdict) -> str:
    """`✓ reliable`, `? suspect` or `✗ broken`."""
    outcome = next(outcome for outcome, level in LEVELS.items() if level == found.level)
    return f"{MARKS[outcome]} {found.level}"


def verdict_table(study: Study) -> pd.DataFrame:
    """A row a model: its verdict, and the checks that were not passed with figure and reason."""
    return pd.DataFrame(
        {
            "family": model.family,
            "base": model.base,
            "verdict": level_text(study.verdict(model)),
            "what speaks against it": _against(study.verdict(model)),
        }
        for model in study.models
    )


def _against(found: Verdict) -> str:
    each = [f"{MARKS[c.outcome]} {c.name} ({c.figure}): {c.reason}" for c in found.against]
    return "; ".join(each) or NOTHING


def check_table(study: Study) -> pd.DataFrame:
    """All checks with their figures: a row a model, a column a check."""
    names = dict.fromkeys(c.name for m in study.models for c in study.verdict(m).checks)
    rows: list[dict[str, str]] = []
    for model in study.models:
        checks = study.verdict(model).checks
        cells = {name: _cell([c for c in checks if c.name == name]) for name in names}
        rows.append({"family": model.family, "base": model.base} | cells)
    return pd.DataFrame(rows)


def _cell(checks: list[Check]) -> str:
    """What came of a check, which a suite with several such attacks has several times."""
    return "; ".join(f"{MARKS[check.outcome]} {check.figure}" for check in checks) or NOTHING


def verdicts(study: Study) -> Iterator[Finding]:
    """How many rows can be believed, and which check speaks against which."""
    rows = {model.name: study.verdict(model) for model in study.models}
    by_level = {
        level: [name for name, found in rows.items() if found.level == level]
        for level in LEVELS.values()
    }
    against = _by_check(rows)
    passed = sum(check.outcome == PASS for found in rows.values() for check in found.checks)
    asked = sum(len(found.checks) for found in rows.values())
    n = len(study.models[0].attack(study.main))
    opening = (
        f"{count(len(rows), 'row')} went through {count(asked, 'check')} on n = {n} images, of "
        f"which {passed} were passed: {_level_words(by_level)}."
    )
    text = paragraphs([opening], _check_words(study, against), _caution(by_level))
    figures: dict[str, Any] = by_level | {"against": {k: list(v) for k, v in against.items()}}
    title = f"Can the robust accuracies be believed? {_title(by_level)}"
    yield Finding(title, text, figures)


def _by_check(rows: dict[str, Verdict]) -> dict[str, dict[str, Check]]:
    """Check -> row -> outcome, for those not passed; what fails most heavily first."""
    found: dict[str, dict[str, Check]] = {}
    for name, one in rows.items():
        for check in one.against:
            found.setdefault(check.name, {}).setdefault(name, check)

    def weight(item: tuple[str, dict[str, Check]]) -> tuple[int, int]:
        worst = max(RANK.index(check.outcome) for check in item[1].values())
        return -worst, -len(item[1])

    return dict(sorted(found.items(), key=weight))


def _level_words(by_level: dict[str, list[str]]) -> str:
    parts = [f"{len(names)} {level}" for level, names in by_level.items()]
    return f"{listed(parts)}"


def _check_words(study: Study, against: dict[str, dict[str, Check]]) -> list[str]:
    several = len(study.params.bases) > 1
    short = {model.name: model.name if several else model.family for model in study.models}
    sentences = []
    for check, rows in against.items():
        verb = "Contradicted" if any(c.outcome == FAIL for c in rows.values()) else "In doubt"
        each = [f"{short[name]} ({one.figure})" for name, one in rows.items()]
        sentences.append(f"{verb} by “{check}”: {listed(each)}.")
    return sentences


def _caution(by_level: dict[str, list[str]]) -> list[str]:
    if by_level[LEVELS[DOUBT]] or by_level[LEVELS[FAIL]]:
        return [
            "What is left of a row that is not reliable is an upper bound: a better attack may "
            "leave less."
        ]
    return []


def _title(by_level: dict[str, list[str]]) -> str:
    total = sum(len(names) for names in by_level.values())
    reliable, *others = by_level.items()
    if len(reliable[1]) == total:
        return f"{'All' if total > 1 else 'The'} {count(total, 'row')} passed every check"
    parts = [f"{len(names)} {level}" for level, names in others if names]
    return f"{len(reliable[1])} of {count(total, 'row')} reliable, {listed(parts)}"


def doubted(study: Study, model: Model) -> str:
    """A model's family, with its verdict in brackets where that is not reliable."""
    level = study.verdict(model).level
    return model.family if level == LEVELS[PASS] else f"{model.family} ({level})"
