"""How often the verdict is wrong: on planted models whose gradients mislead, and on honest ones.

Needs a finished run of the digits profile (make repro). Honest models are those of its leaderboard,
by their records on the first images. Each kind of masked model (tests/masked.py) is planted on both
dense networks, goes through the suite and the probes on the same images, and gets the images that
the run's models and attackers made.

How much a trick hides: the robust accuracy that the main attack reports, minus the lowest that is
known, by everything together or by attacks on the network inside; less the same difference of the
dense network without the trick. A model counts as masked where that is above 5 points. One that is
called reliable is a false pass, an honest model that is not is a false alarm.
"""

import json
import os
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import masked
import pandas as pd
import torch
import typer
from rich.console import Console
from scipy.stats import binomtest

from advprune.attacks.registry import typed
from advprune.core import params
from advprune.core.attack_settings import OtherAttack
from advprune.core.errors import InputError
from advprune.core.progress import silence
from advprune.core.resume import Parts
from advprune.data import load_split
from advprune.evaluate.craft import craft
from advprune.evaluate.evidence import white_box
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.records import Work, predictions
from advprune.evaluate.robust import union
from advprune.evaluate.suite import Suite
from advprune.evaluate.transfer import transfer_records
from advprune.evaluate.verdict import Evidence, Verdict, verdict
from advprune.models.checkpoint import load_model, read_tensors
from advprune.report.read import read_run
from advprune.report.run import Model

ROOT = Path(__file__).resolve().parent.parent
SPARED = 0.05  # of the images: a trick that hides no more masks nothing


class Trial:
    """A run on its first images, and the images that its networks made."""

    def __init__(self, folder: Path, images: int) -> None:
        settings = params.load(ROOT / "params.yaml", profile="digits")
        self.run = read_run(settings, folder).first(images)
        data = load_split(folder / "data/digits", "test")
        self.images, self.labels = (part[:images] for part in data)
        self.runs, self.sent = folder / "runs/digits", {}
        for source in (*settings.leaderboard(), *settings.attackers()):
            kept, _ = read_tensors(self.runs / source / "adversarial.safetensors")
            for attack in settings.active().transferred():
                self.sent[source, attack] = kept[attack][:images]

    def honest(self, model: Model) -> dict[str, Any]:
        """The verdict on a model of the run, and what its attacks leave."""
        told = self._told(model.records, self.run.verdict(model), self.run.robust(model))
        return {"kind": "honest"} | told

    def planted(self, make: masked.Planted, recipe: str) -> dict[str, Any]:
        """The same of a masked model on a dense network, and how much its trick hides."""
        dense, run = self.run.model(f"dense-{recipe}"), self.run
        network = load_model(self.runs / dense.name / "model.safetensors")
        model, work = make(network).eval(), Work(batch=run.profile.batch)
        with TemporaryDirectory() as place:
            known = run.profile, run.params.attack, 0, Parts(Path(place), files=[]), network
            records, _ = Suite(self.images, self.labels, *known).attack("planted", model)
        table = transfer_records(model, self.images, self.labels, self.sent, work)
        found: dict[Any, pd.DataFrame] = dict(iter(table.groupby(["source", "attack"])))
        evidence = Evidence(records, run.main, len(run.classes), found, dense.attack(run.main))
        budget = run.main_attack.norm, run.main_attack.eps
        robust = union(records, found.values(), *budget)
        row = self._told(records, verdict(evidence), robust)
        # Attacks on the network inside: the main one, and both of APGD.
        apgd = {"method": "apgd", "eps": run.profile.eps}
        left = torch.ones(len(self.images), dtype=torch.bool)
        attacks = [OtherAttack.model_validate(apgd | {"loss": x}) for x in ("ce", "targeted")]
        for setting in (run.main_attack, *attacks):
            made = craft(model.model, self.images, self.labels, typed("known", setting), work)
            left &= predictions(model, made.pixels / 255) == self.labels
        row["knowing"] = float(left.double().mean())
        plain = self.honest(dense)
        gaps = [one["main"] - min(one["robust"], one.get("knowing", 1)) for one in (row, plain)]
        return row | {"hidden": round(gaps[0] - gaps[1], 6)}

    def _told(self, records: pd.DataFrame, found: Verdict, robust: pd.DataFrame) -> dict[str, Any]:
        own = records[records.attack == self.run.main]
        tables = {"main": own, "white_box": white_box(records, self.run.main), "robust": robust}
        left = {name: remnant_accuracy(table).value for name, table in tables.items()}
        against = {check.name: check.figure for check in found.against}
        return {"level": found.level, **left, "against": against}


def rate(wrong: list[bool]) -> dict[str, Any]:
    """How many verdicts are wrong, with the interval of Clopper and Pearson (95 %)."""
    hits, n = sum(wrong), len(wrong)
    found = binomtest(hits, n).proportion_ci(0.95, "exact")
    ends = {"rate_low": round(float(found.low), 6), "rate_high": round(float(found.high), 6)}
    return {"hits": hits, "n": n, "rate": round(hits / n, 6)} | ends


def summary(rows: list[dict[str, Any]], images: int) -> dict[str, Any]:
    """Rates of false passes and false alarms; of how many kinds the masked models are.

    false_pass: masked models that are reliable. false_number: masked ones that are reliable with a
    reported robust accuracy more than `SPARED` above the lowest that is known. false_pass_suite:
    false passes among the models whose tricks deceive the suite's attacks by gradient by as much.
    """
    judged = [row for row in rows if "refused" not in row]
    planted = [row for row in judged if "hidden" in row]
    planted = [row | {"known": min(row["robust"], row["knowing"])} for row in planted]
    hiding = [row for row in planted if row["hidden"] > SPARED]
    honest = [row for row in judged if "hidden" not in row]
    deceived = [row for row in planted if row["white_box"] - row["known"] > SPARED]
    passed = [row["level"] == "reliable" for row in hiding]
    above = [row["robust"] - row["known"] > SPARED for row in hiding]
    return {
        "false_pass": rate(passed),
        "false_number": rate([a and b for a, b in zip(passed, above, strict=True)]),
        "false_pass_suite": rate([row["level"] == "reliable" for row in deceived]),
        "false_alarm": rate([row["level"] != "reliable" for row in honest]),
        "kinds": len({row["kind"] for row in hiding}),
        "images": images,
        "seconds": sum(row["seconds"] for row in rows),
    }


def main(
    folder: Annotated[Path, typer.Option(help="Where a finished run lies.")] = ROOT,
    images: Annotated[int, typer.Option(help="How many test images.")] = 100,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT / "bench/verdict.json",
) -> None:
    """Judge all models, print each verdict and write both rates; a killed bench resumes."""
    os.environ["ADVPRUNE_WORKERS"] = "1"
    torch.set_num_threads(1)
    silence()
    trial, console = Trial(folder, images), Console()
    kept = out.with_suffix(".part")
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.is_file() else []
    done = {row["name"]: row for row in map(json.loads, lines)}
    kinds = masked.KINDS
    jobs = {model.name: partial(trial.honest, model) for model in trial.run.models}
    for recipe, kind in product(("standard", "robust"), kinds):
        jobs[f"{kind}, {recipe}"] = partial(trial.planted, kinds[kind], recipe)
    for name, judge in jobs.items():
        if name in done:
            continue
        started = time.process_time()
        try:
            row = judge()
        except InputError as error:  # the border for models says no: there is no verdict
            row = {"refused": str(error)}
        row |= {"seconds": round(time.process_time() - started)}
        done[name] = {"name": name, "kind": name.partition(",")[0], **row}
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[name]) + "\n")
        console.print(done[name])
    found = summary(list(done.values()), images)
    console.print(found)
    out.write_text(json.dumps(found | {"models": list(done.values())}, indent=1) + "\n")
    kept.unlink()


if __name__ == "__main__":
    typer.run(main)
