"""How strong the suite is: beside official AutoAttack, as bench/strength.py measured it."""

import json
from pathlib import Path

import pandas as pd

from advprune.report.formats import NOTHING, counted
from advprune.report.section import Part, Parts, Run, section

MEASURED = "bench/strength*.json"  # one file per profile, on each of which summarize depends
GOAL = 0.003  # share of the images that the suite may leave more than AutoAttack


@section("Strength of the attacks", order=22)
def strength(run: Run) -> Parts:
    """Three rows per network; nothing for a profile that was not measured."""
    for path in sorted(run.folder.glob(MEASURED)):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["profile"] != run.params.profile:
            continue
        table = pd.DataFrame(found["rows"])
        alone = ["broken by these alone", "broken by AutoAttack alone"]
        table[alone] = table[alone].astype("Int64").where(table.attacks != "AutoAttack")
        yield Part(
            "Beside AutoAttack",
            "suite: the attacks of the suite alone; everything: with tables, curves and probes "
            f"too; AutoAttack: the official one (standard) on the same images (bench/{path.name}). "
            f"Passes: forward and backward, per image. {found['about']}",
            table,
        )


def beside_autoattack(folder: Path) -> str:
    """For docs/measurement.md: every network that was measured under any profile, in one table, and
    the images that suite and AutoAttack leave in all."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(MEASURED))]
    shown, both = [], []  # cells, and the counts of networks with a row of the suite
    for one in found:
        for name, own in pd.DataFrame(one["rows"]).groupby("model", sort=False):
            n, left = int(own.n.iloc[0]), (own.n * own.robust_accuracy).round().astype(int)
            cells = left.astype(str) + (100 * own.passes_share).map(" ({:.0f} %)".format)
            shown.append(
                {"profile": one["profile"], "model": name, "n": n}
                | dict.fromkeys(("AutoAttack", "suite", "everything"), NOTHING)
                | dict(zip(own.attacks, cells, strict=True))
            )
            counts = dict(zip(own.attacks, left, strict=True))
            both += [(n, counts["suite"], counts["AutoAttack"])] if "suite" in counts else []
    text = pd.DataFrame(shown).to_markdown(index=False, disable_numparse=True)
    if not both:
        return text
    n, suite, official = (sum(column) for column in zip(*both, strict=True))
    more = [one - other for _, one, other in both]
    missed = sum(one > GOAL * images for one, (images, *_) in zip(more, both, strict=True))
    least, most = (f"{end:+}".replace("-", "−") for end in (min(more), max(more)))
    return (
        f"{text}\n\nOver {counted(len(both), 'network')} the suite leaves {suite:,} and AutoAttack "
        f"{official:,} of {n:,} images. On single networks the difference is {least} to {most} "
        f"images; the goal of {100 * GOAL:g} points is missed on {missed or 'none'} of them."
    )
