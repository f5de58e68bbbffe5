"""The verdict: can a model's robust accuracy be believed? Checks on records, no torch.

A failed check makes the number `broken`, a doubtful one `suspect`; a number that passes all is
`reliable`. How often that is wrong is measured on planted models (bench/verdict.py).
"""

from dataclasses import dataclass

from advprune.evaluate.checks import CHECKS
from advprune.evaluate.evidence import DOUBT, FAIL, PASS, Check, Evidence

LEVELS = {PASS: "reliable", DOUBT: "suspect", FAIL: "broken"}

__all__ = ["DOUBT", "FAIL", "LEVELS", "PASS", "Check", "Evidence", "Verdict", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """reliable, suspect or broken, and the checks that it follows from."""

    level: str
    checks: list[Check]

    @property
    def against(self) -> list[Check]:
        """The checks that were not passed, the worst first."""
        rank = list(LEVELS)
        return sorted(
            (c for c in self.checks if c.outcome != PASS),
            key=lambda check: -rank.index(check.outcome),
        )


def verdict(evidence: Evidence) -> Verdict:
    """All checks that the evidence allows, and the level that follows from the worst of them."""
    checks = [check for make in CHECKS for check in make(evidence)]
    worst = max((check.outcome for check in checks), key=list(LEVELS).index, default=PASS)
    return Verdict(LEVELS[worst], checks)
