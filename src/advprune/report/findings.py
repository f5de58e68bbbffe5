"""What was found, in sentences: each one computed from the study, with its numbers and its n.

A difference is called one only where McNemar's exact test on the same images gives p < 0.05.
"""

from collections.abc import Callable, Iterator

from advprune.report.anatomy import clamped_spread, where_it_acts
from advprune.report.finding import Finding
from advprune.report.robustness import answer, schedules
from advprune.report.study import Study
from advprune.report.trust import quantized, sanity


def findings(study: Study) -> list[Finding]:
    """All findings that this study allows, base by base, the answer first."""
    makers: list[Callable[[Study, str], Iterator[Finding]]] = [
        answer,
        schedules,
        where_it_acts,
        clamped_spread,
        quantized,
        sanity,
    ]
    return [
        _titled(finding, base, study)
        for base in study.params.bases
        for make in makers
        for finding in make(study, base)
    ]


def _titled(finding: Finding, base: str, study: Study) -> Finding:
    if len(study.params.bases) == 1:
        return finding
    return Finding(f"{base}: {finding.title}", finding.text, finding.figures)
