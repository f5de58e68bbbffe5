"""Compression curve: masks at many compressions, attacked directly and by the parent's images.

The published claim about GAP is a comparison at equal clean accuracy, so the control (random) needs
points of its own along the curve.
"""

from advprune.studies.base import Given, Tables, study
from advprune.studies.sweep import Points, SweepSettings


@study("compression", SweepSettings)
def compression(settings: SweepSettings, given: Given) -> Tables:
    """Every point under the main attack and under the exchanged images of its parent."""
    main, profile = given.params.attack.main, given.profile
    carried = {attack: given.adversarial[attack] for attack in profile.exchanged()}
    points = Points(given, {main: profile.table()[main]}, carried)
    return {"records": points.records(settings)}
