"""A reference network on a machine without DVC: trained or pruned, rounded to 16 bits, attacked.

Needs a profile's splits, as stage prepare writes them (train, val and test.safetensors). A dense
network has the weights of its best epoch on the first 1,000 validation images; one that a family
makes of `--parent` those of its last. Every result is written as soon as it is ready, and the same
command continues where it was stopped.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import pandas as pd
import torch
import typer
from ruamel.yaml import YAML
from torch import nn

from advprune.attacks import to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.minimum_norm import minimum_norm
from advprune.attacks.registry import given, method_of
from advprune.core.device import setup
from advprune.core.files import atomic
from advprune.core.train_settings import ModelSettings, RecipeSettings, TrainSettings
from advprune.data import load_split, read_split, to_float
from advprune.evaluate.records import score
from advprune.models.checkpoint import load_model, save_model
from advprune.pruning import Data, prune
from advprune.training.inputs import Inputs
from advprune.training.networks import begin
from advprune.training.standard import train as trained

EPS, BATCH, HELD_OUT = 8 / 255, 1024, 1000
KEPT = ["index", "label", "attack", "clean_pred", "clean_margin", "adv_pred", "adv_margin"]
SMALL = {"label": "int8", "clean_pred": "int8", "adv_pred": "int8"}
LOW = {"batch": BATCH, "precision": "bfloat16"}
LONG = {"step": EPS / 8, "steps": 50, "loss": "margin", "keep": "best", "drop": True}
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd_50_margin": ("pgd", LOW | LONG),
    "apgd_ce": ("apgd", LOW | {"pixels": True}),
    "apgd_targeted": ("apgd", LOW | {"loss": "targeted", "pixels": True}),
    "minimum_norm_linf": ("minimum_norm", LOW),
    "minimum_norm_l2": ("minimum_norm", LOW | {"norm": "L2"}),
    "autoattack": ("autoattack", {}),
}
PGD_3 = "{method: pgd, steps: 3, step: 0.625}"  # of eps
STARTED = time.perf_counter()


def now() -> float:
    """Seconds since the script began."""
    return time.perf_counter() - STARTED


@dataclass
class Results:
    """A folder's notes (times, counts) as JSON and records as parquet: found there, and added."""

    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)
    records: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __post_init__(self) -> None:
        if (self.folder / "notes.json").is_file():
            self.notes = json.loads((self.folder / "notes.json").read_text())
        if (self.folder / "records.parquet").is_file():
            self.records = pd.read_parquet(self.folder / "records.parquet")

    def write(self, **notes: Any) -> None:
        """Write all that there is so far, with these notes."""
        self.notes |= notes
        if len(self.records):
            with atomic(self.folder / "records.parquet") as path:
                self.records.to_parquet(path, index=False, compression="zstd")
        with atomic(self.folder / "notes.json") as path:
            path.write_text(json.dumps(self.notes, indent=1) + "\n")

    def add(self, name: str, frame: pd.DataFrame, cost: Cost, seconds: float) -> None:
        """Add an attack's records of some images, and what they cost to its notes."""
        self.records = pd.concat([self.records, frame[[*KEPT, "linf", "l2"]].astype(SMALL)])
        spent = {"n": len(frame), "s": seconds, **vars(cost)}
        before = self.notes.get(name, {})
        self.write(**{name: {key: before.get(key, 0) + value for key, value in spent.items()}})
        right = (frame["adv_pred"] == frame["label"]).mean()
        print(f"{now():.0f} s: {name}, {len(frame)} images, {right:.2%} not broken", flush=True)

    def of(self, name: str) -> pd.DataFrame:
        """The records of an attack."""
        return self.records[self.records["attack"] == name] if len(self.records) else self.records


Made = tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]  # network, history, notes


def dense(network: ModelSettings, recipe: RecipeSettings, how: TrainSettings, on: Inputs) -> Made:
    """The network of the best epoch."""
    model = begin(network, on.train, on.seed).to(on.device)
    return model, trained(model, on, how, recipe), {}


def pruned(parent: Path, family: dict[str, Any], how: TrainSettings, on: Inputs) -> Made:
    """What the one family in `family` makes of the parent."""
    ((name, setting),) = family.items()
    data = Data(to_float(on.train.images), on.train.labels, how, on.state)
    made = prune(name, load_model(parent).to(on.device), setting, data, on.seed)
    phases = {phase: made.notes.pop(phase, []) for phase in ("scores", "finetune")}
    history = [{"phase": phase} | row for phase, rows in phases.items() for row in rows]
    return made.model, history, {"prune_ratio": made.ratio, "setting": family, **made.notes}


def evaluate(model: nn.Module, data: Path, attacks: list[str], out: Results) -> None:
    """Attack the test images; Linf images of 8 bits, scored in float32.

    Targeted APGD, written every `BATCH` images, works on those that APGD on the cross-entropy has
    not broken. Minimum-norm images are not rounded: `linf` and `l2` are the distances.
    """
    x, y = load_split(data, "test")
    for name in attacks:
        rows, targeted = torch.arange(len(y)), name == "apgd_targeted"
        if targeted:
            plain = out.of("apgd_ce")
            rows = torch.tensor(plain["index"][plain["adv_pred"] == plain["label"]].to_numpy())
        elif name == "autoattack":
            rows = rows[:1000]
        if len(done := out.of(name)):
            rows = rows[~torch.isin(rows, torch.tensor(done["index"].to_numpy()))]
        for part in rows.split(BATCH if targeted else max(len(rows), 1)):
            if not len(part):
                continue
            cost, started, clean = Cost(), now(), x[part]
            kind, options = KNOWN[name]
            how = given(kind, eps=EPS, cost=cost, **options)
            if kind == "minimum_norm":
                adv, _ = minimum_norm(model, clean, y[part], *how)
            else:
                adv = method_of(how[0]).function(model, clean, y[part], *how)
                adv = to_pixels(adv, clean, EPS) / 255
            frame = score(model, clean, adv, y[part], batch=BATCH, attack=name)
            frame["index"] = part.numpy()
            out.add(name, frame, cost, now() - started)


def main(
    data: Annotated[Path, typer.Argument(help="Folder of the splits.")],
    out: Annotated[Path, typer.Argument(help="Folder for weights, history, records, notes.")],
    width: Annotated[int, typer.Option(help="Of the ResNet18.")] = 16,
    recipe: Annotated[str, typer.Option(help="As in params.yaml.")] = PGD_3,
    train: Annotated[str, typer.Option(help="As in params.yaml.")] = "{lr: 0.2}",
    parent: Annotated[Path | None, typer.Option(help="Prune these weights instead.")] = None,
    family: Annotated[str, typer.Option(help="How, as in params.yaml: {HYDRA: {…}}.")] = "{}",
    seed: Annotated[int, typer.Option(help="Of training.")] = 0,
    attacks: Annotated[str, typer.Option(help="Which, in this order.")] = " ".join(KNOWN),
) -> None:
    """Make, save and evaluate one network."""
    out.mkdir(parents=True, exist_ok=True)
    read, results, weights = YAML(typ="safe").load, Results(out), out / "model.fp16.safetensors"
    settings = TrainSettings(**{"flip": True, "crop": 4, "eps": EPS} | read(train))
    if not weights.is_file():
        whole, val = (read_split(data / f"{name}.safetensors") for name in ("train", "val"))
        held_out = val.pick(torch.arange(len(val.labels))[:HELD_OUT])
        inputs = Inputs(whole, held_out, seed, setup(), out / "training.pt")
        if parent is None:
            network = ModelSettings(architecture="resnet18", width=width)
            found = dense(network, RecipeSettings(**read(recipe)), settings, inputs)
        else:
            found = pruned(parent, read(family), settings, inputs)
        model, history, notes = found
        pd.DataFrame(history).to_csv(out / "history.csv", index=False)
        results.write(**{"trained s": now(), "seed": seed}, **notes)
        print(f"{now():.0f} s: trained, {notes}", flush=True)
        save_model(model, weights, torch.float16)
        for state in out.glob("*training.pt"):
            state.unlink()
    device = setup()
    torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    evaluate(load_model(weights).to(device), data, attacks.split(), results)


if __name__ == "__main__":
    typer.run(main)
