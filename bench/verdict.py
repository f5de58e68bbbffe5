"""How often the verdict is wrong: on planted models whose gradients mislead, and on honest ones.

Needs a finished run of the digits profile (make repro). Honest models are all of its networks;
masked ones are planted on its dense networks (tests/masked.py), half of them written before the
checks, half after. Each goes through the suite and the probes on the first images and gets the
images of the others, as in the pipeline. A masked model that is called reliable is a false pass, an
honest one that is not is a false alarm. What is masked is told by attacks that know the trick: they
leave at least five points less than the main attack does, or than the suite's attacks by gradient.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import masked
import pandas as pd
import torch
import typer
from rich.console import Console
from torch import nn

from advprune.attacks.registry import typed
from advprune.core import params
from advprune.core.attack_settings import OtherAttack
from advprune.core.errors import InputError
from advprune.core.progress import silence
from advprune.core.resume import Parts
from advprune.data import load_split
from advprune.evaluate.craft import Work, craft
from advprune.evaluate.evidence import white_box
from advprune.evaluate.exchange import received
from advprune.evaluate.records import predictions
from advprune.evaluate.robust import union, worst_case
from advprune.evaluate.statistics import Rate
from advprune.evaluate.suite import Suite
from advprune.evaluate.verdict import Evidence, verdict
from advprune.models.checkpoint import load_model
from advprune.models.stochastic import is_randomized

ROOT = Path(__file__).resolve().parent.parent
SPARED = 0.05  # of the images: a trick that saves no more masks nothing
Sent = dict[tuple[str, str], torch.Tensor]


class Trial:
    """The digits profile on the first images, and what the models send to each other."""

    def __init__(self, runs: Path, data: Path, images: int) -> None:
        self.settings = params.load(ROOT / "params.yaml", profile="digits")
        self.images, self.labels = (part[:images] for part in load_split(data, "test"))
        self.runs, self.sent, self.parents = runs, Sent(), {}

    @property
    def main(self) -> str:
        """The main attack's name."""
        return self.settings.attack.main

    def honest(self) -> Iterator[tuple[str, nn.Module, str]]:
        """Every network of the run with the recipe of its dense network, those first."""
        names = sorted(path.parent.name for path in self.runs.glob("*/model.safetensors"))
        for name in sorted(names, key=lambda name: not name.startswith("dense-")):
            recipe = "robust" if name.endswith("robust") else "standard"
            yield name, load_model(self.runs / name / "model.safetensors"), recipe

    def planted(self) -> Iterator[tuple[str, nn.Module, str]]:
        """The masked models."""
        for name, (make, recipe) in (masked.BEFORE | masked.AFTER).items():
            path = self.runs / f"dense-{recipe}" / "model.safetensors"
            yield name, make(load_model(path)).eval(), recipe

    def records(
        self, name: str, model: nn.Module, recipe: str
    ) -> tuple[pd.DataFrame, dict[str, torch.Tensor]]:
        """What the suite, the probes and the curves find, and the images that are sent."""
        parent = load_model(self.runs / f"dense-{recipe}" / "model.safetensors")
        profile, choice = self.settings.active(), self.settings.attack
        with tempfile.TemporaryDirectory() as folder:
            parts = Parts(Path(folder), name, files=[])
            suite = Suite(self.images, self.labels, profile, choice, 0, parts, parent)
            records, adv = suite.attack(name, model)
        return records, {key: adv[key] for key in profile.suite.transfer}

    def judge(
        self, name: str, model: nn.Module, records: pd.DataFrame, recipe: str
    ) -> dict[str, Any]:
        """The verdict and the numbers that it is about."""
        others = {key: pixels for key, pixels in self.sent.items() if key[0] != name}
        found = received(model, self.images, self.labels, others, Work(batch=1000))
        by = dict(iter(found.groupby(["source", "attack"])))
        path = self.runs / name / "model.json"
        card = json.loads(path.read_text()) if path.is_file() else {}
        own = records[records.attack == self.main]
        parent = self.parents.get(recipe) if name != f"dense-{recipe}" else None
        evidence = Evidence(records, self.main, 10, by, parent, card.get("twin_agreement"))
        judgement = verdict(evidence)
        robust = union(
            records, by.values(), own.norm.iloc[0], own.eps.iloc[0], is_randomized(model)
        )
        white = white_box(records, self.main)
        return {
            "name": name,
            "level": judgement.level,
            "main": float((own.adv_pred == own.label).mean()),
            "white_box": float((white.adv_pred == white.label).mean()),
            "robust": float((robust.adv_pred == robust.label).mean()),
            "against": {check.name: check.figure for check in judgement.against},
        }

    def knowing(self, model: nn.Module) -> dict[str, float]:
        """Robust accuracy under attacks on what the trick hides: the main one, and with APGD."""
        known, profile = model.model, self.settings.active()
        apgd = {"method": "apgd", "eps": profile.eps, "drop": False}
        attacks = [profile.attacks[self.main]]
        attacks += [OtherAttack.model_validate(apgd | {"loss": x}) for x in ("ce", "targeted")]
        found, left = [], torch.ones(len(self.images), dtype=torch.bool)
        for setting in attacks:
            work = Work(batch=1000)
            adv = craft(known, self.images, self.labels, typed("known", setting), work).pixels
            left &= predictions(model, adv / 255) == self.labels
            found.append(float(left.float().mean()))
        return {"main_known": found[0], "truth": found[-1]}


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """False passes and false alarms, with Wilson's intervals."""
    hidden = [row for row in rows if row["kind"] == "masked" and row["masks"]]
    honest = [row for row in rows if row["kind"] == "honest"]
    passes = Rate(sum(row["level"] == "reliable" for row in hidden), len(hidden))
    alarms = Rate(sum(row["level"] != "reliable" for row in honest), len(honest))
    named = {"false_pass": passes, "false_alarm": alarms}
    return {
        name: {"hits": rate.hits, "n": rate.n} | rate.columns("rate")
        for name, rate in named.items()
    }


def main(
    runs: Annotated[Path, typer.Option(help="Networks of a finished run.")] = ROOT / "runs/digits",
    data: Annotated[Path, typer.Option(help="Its splits.")] = ROOT / "data/digits",
    images: Annotated[int, typer.Option(help="How many test images.")] = 100,
    out: Annotated[Path, typer.Option(help="Where the figures go.")] = ROOT / "bench/verdict.json",
) -> None:
    """Judge all models, print each verdict and write both rates."""
    os.environ["ADVPRUNE_WORKERS"] = "1"
    torch.set_num_threads(1)
    silence()
    trial, rows, console, started = Trial(runs, data, images), [], Console(), time.process_time()
    own = {}
    for name, model, recipe in trial.honest():
        own[name], adv = trial.records(name, model, recipe)
        trial.sent |= {(name, attack): pixels for attack, pixels in adv.items()}
        if name == f"dense-{recipe}":
            trial.parents[recipe] = worst_case(own[name], trial.main)
    for name, model, recipe in trial.honest():
        rows.append({"kind": "honest"} | trial.judge(name, model, own[name], recipe))
        console.print(rows[-1])
    for name, model, recipe in trial.planted():
        try:
            row = trial.judge(name, model, trial.records(name, model, recipe)[0], recipe)
        except InputError as error:  # the border for models says no: there is no verdict
            rows.append({"model": name, "kind": "masked", "masks": False, "refused": str(error)})
            console.print(rows[-1])
            continue
        row |= {"kind": "masked", "written": "before" if name in masked.BEFORE else "after"}
        row |= trial.knowing(model)
        row["truth"] = min(row["truth"], row["robust"])
        hidden = row["main"] - row["main_known"], row["white_box"] - row["truth"]
        rows.append(row | {"masks": max(hidden) > SPARED})
        console.print(rows[-1])
    found = rates(rows) | {"images": images, "seconds": round(time.process_time() - started)}
    console.print(found)
    out.write_text(json.dumps(found | {"models": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
