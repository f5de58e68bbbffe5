"""The suite beside official AutoAttack: images that each leaves, passes and seconds, one by one.

Needs a finished run of the profile (make repro). Both work through their attacks on the images that
the attacks before have not broken, on one thread, on the same images. Images are rounded to 8 bits
and scored on the model itself: an int8 network by its integers.
"""

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import torch
import typer
from tabulate import tabulate
from torch import nn

from advprune.attacks.registry import typed
from advprune.core import params
from advprune.core.attack_settings import Attack, OtherAttack
from advprune.core.profile import Profile
from advprune.data import load_split
from advprune.evaluate.craft import Work, craft, kind_of
from advprune.evaluate.records import predictions
from advprune.models.checkpoint import load_model
from advprune.quantization.post_training import quantize

ROOT = Path(__file__).resolve().parent.parent
Images = tuple[torch.Tensor, torch.Tensor]
CALIBRATION = 512  # training images


def suite_of(profile: Profile, kind: str) -> list[Attack]:
    """The attacks of a kind of model, without those that every model gets for other reasons."""
    names = getattr(profile.suite, kind)
    return [typed(name, profile.attacks[name]) for name in names]


def official(eps: float) -> list[Attack]:
    """AutoAttack, standard."""
    settings = OtherAttack.model_validate({"method": "autoattack", "eps": eps})
    return [typed("autoattack", settings)]


def measured(model: nn.Module, pair: Images, attacks: list[Attack], work: Work) -> dict[str, Any]:
    """What is not broken after all attacks, passes per image, and seconds."""
    images, labels = pair
    left = torch.arange(len(labels))
    passes, started = 0, time.perf_counter()
    for attack in attacks:
        made = craft(model, images[left], labels[left], attack, work)
        passes += made.cost.forwards + made.cost.gradients
        right = predictions(model, made.pixels / 255, work.scoring) == labels[left]
        left = left[right]
    seconds = time.perf_counter() - started
    broken = sorted(set(range(len(labels))) - set(left.tolist()))
    return {
        "robust_accuracy": len(left) / len(labels),
        "passes": passes / len(labels),
        "seconds": round(seconds, 1),
        "broken": broken,
    }


def main(
    out: Annotated[Path, typer.Argument(help="JSON file for the results.")],
    models: Annotated[
        str, typer.Option(help="Of the leaderboard; int8 of one as int8:<model>.")
    ] = "dense-robust,HYDRA-robust,int8:dense-robust",
    images: Annotated[int, typer.Option(help="Test images.")] = 300,
) -> None:
    """Measure, print a table and write it, model by model."""
    torch.set_num_threads(1)
    settings = params.load(ROOT / "params.yaml")
    name, profile = settings.profile, settings.active()
    test = load_split(ROOT / "data" / name, "test")
    pair: Images = (test[0][:images], test[1][:images])
    rows: list[dict[str, Any]] = []
    for model_name in models.split(","):
        bits, _, of = model_name.rpartition(":")
        network = load_model(ROOT / "runs" / name / of / "model.safetensors")
        parent = network if bits else None
        if bits:
            train, _ = load_split(ROOT / "data" / name, "train")
            network = quantize(network, train[:CALIBRATION])
        work = Work(settings.seed, profile.batch, settings.attack.score_draws, parent=parent)
        ours = measured(network, pair, suite_of(profile, kind_of(network)), work)
        theirs = measured(network, pair, official(profile.eps), work)
        missed = sorted(set(theirs["broken"]) - set(ours["broken"]))
        more = sorted(set(ours["broken"]) - set(theirs["broken"]))
        row = {"model": model_name.replace(":", " of "), "n": len(pair[1])}
        row |= {f"{key}:suite": value for key, value in ours.items() if key != "broken"}
        row |= {f"{key}:AutoAttack": value for key, value in theirs.items() if key != "broken"}
        row |= {"images only AutoAttack breaks": len(missed), "images only the suite": len(more)}
        row["share of its passes"] = row["passes:suite"] / row["passes:AutoAttack"]
        rows.append(row)
        print(tabulate(rows, "keys", "github"))
        out.write_text(json.dumps({"profile": name, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
