"""What was found, in sentences: each one computed from the study, with its numbers and its n.

A difference is called one only where McNemar's exact test on the same images gives p < 0.05.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from advprune.report.anatomy import clamped_spread, where_it_acts
from advprune.report.bits import flips_finding
from advprune.report.finding import Finding
from advprune.report.growth import beyond_width
from advprune.report.masks import claims
from advprune.report.randomized import gain, variant
from advprune.report.robustness import answer, bases, schedules
from advprune.report.sparse import claims as sparse_claims
from advprune.report.study import Study
from advprune.report.trust import quantized, sanity
from advprune.report.verdicts import verdicts

OfBase = Callable[[Study, str], Iterator[Finding]]
OfAll = Callable[[Study], Iterator[Finding]]


def findings(study: Study) -> list[Finding]:
    """All findings that this study allows: the answers, what is about all rows, then the rest."""
    of_all: list[OfAll] = [bases, verdicts, claims, sparse_claims, gain, variant]
    of_all += [flips_finding, beyond_width]
    rest: list[OfBase] = [schedules, where_it_acts, clamped_spread, quantized, sanity]
    return [
        *_by_base(study, [answer]),
        *(finding for make in of_all for finding in make(study)),
        *(replace(finding, folded=True) for finding in _by_base(study, rest)),
    ]


def _by_base(study: Study, makers: list[OfBase]) -> Iterator[Finding]:
    for base in study.params.bases:
        for make in makers:
            for finding in make(study, base):
                yield _titled(finding, base, study)


def _titled(finding: Finding, base: str, study: Study) -> Finding:
    if len(study.params.bases) == 1:
        return finding
    return replace(finding, title=f"{base}: {finding.title}")
