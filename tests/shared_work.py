"""What tests/test_distributed.py has done by one process and, run as a script, by several.

Each of several processes writes what it found to `<folder>/<rank>.pt`.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from advprune.attacks import attack, pgd
from advprune.attacks.cost import Cost
from advprune.core import distributed
from advprune.core.attack_settings import AttackSettings
from advprune.core.resume import Parts, unfinished
from advprune.core.train_settings import RecipeSettings, TrainSettings
from advprune.evaluate.craft import craft
from advprune.evaluate.probes import Probe
from advprune.evaluate.records import Work, all_logits
from advprune.pruning import prune
from advprune.training.standard import Trainer, accuracy
from conftest import Linear, make_network

BATCH = 7  # of 24 images: the last is smaller, and one process has more than the other
METHODS = ("standard", "pgd", "trades", "mixed")
SETTINGS = TrainSettings(batch=16, lr=0.02, crop=1, flip=True, eps=0.1)


def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random uint8 images `[count, 1, 8, 8]` and labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return images, torch.randint(10, (count,), generator=generator)


def attacks() -> dict[str, Any]:
    """Every attack, on a deterministic model and where it matters on a random one; with costs."""
    images, labels = pictures(24)[0] / 255, pictures(24)[1]
    model = make_network(images)
    random = prune("SAP", model, 1.0).model
    found: dict[str, Any] = {}
    for name, network in (("fixed", model), ("random", random)):
        cost = Cost()
        several = partial(pgd, network, images, labels, 0.1, 0.03, 3, batch=BATCH, cost=cost)
        found[f"{name} pgd"] = several(restarts=2, drop=name == "fixed", loss="margin")
        queries = {"eps": 0.05, "queries": 4, "batch": BATCH, "cost": cost}
        found[f"{name} square"] = attack("square", network, images, labels, **queries)
        found[f"{name} logits"] = all_logits(network, images, Work(batch=BATCH, draws=3))
        main = AttackSettings(eps=0.1, step=0.1, steps=1, drop=True)
        work = Work(batch=BATCH, draws=3)
        crafted = craft(network, images, labels, main, work)
        found[f"{name} pixels"] = crafted.pixels
        probed = Probe(network, images, labels, main, work).gradient()
        found[f"{name} gradient"] = probed.gradient.tolist()
        spent = cost.forwards, cost.gradients, crafted.cost.forwards, crafted.cost.gradients
        found[f"{name} cost"] = spent
    said, cost = model(images).argmax(1), Cost()  # all are right, and fall to the first attack
    counts, how = dict[str, int](), {"eps": 0.5, "batch": 2, "cost": cost}
    published = attack("autoattack", model, images[:5], said[:5], **how, breakdown=counts)
    found["published"], found["published counts"] = published, (counts, cost.forwards)
    found["accuracy"] = accuracy(model, images, labels, batch=BATCH)
    return found


def training(
    method: str, linear: bool = False, state: Path | None = None, epochs: int = 1
) -> dict[str, Any]:
    """Weights and history, in float64, where rounding does not hide a wrong formula.

    Of 35 images in batches of 16: the last holds 3. linear: a model without batch-norm, on 32
    images.
    """
    torch.set_default_dtype(torch.float64)
    try:
        images, labels = pictures(32 if linear else 35)
        weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
        model = Linear(weight) if linear else make_network(images[:32] / 255, width=2)
        recipe = RecipeSettings(method=method, epochs=epochs, steps=2)
        trainer = Trainer(model.double(), (images, labels), None, SETTINGS, recipe, 0, state)
        return {"history": trainer.run(), "weights": model.state_dict()}
    finally:
        torch.set_default_dtype(torch.float32)


def main(folder: Path) -> None:
    """Everything, in each of several processes; with folders of parts that the others lack."""
    distributed.start()
    rank = distributed.rank()
    found: dict[str, Any] = {"attacks": attacks(), "training": {m: training(m) for m in METHODS}}
    found["training"]["linear"] = training("standard", linear=True)
    state = folder / "state.pt" if rank == 0 else folder / "none.pt"
    found["training"]["resumed"] = training("pgd", state=state, epochs=2)
    parts = Parts(folder / f"parts{rank}", files=[])
    table = partial(parts.frame, "table", lambda: pd.DataFrame({"by": [rank]}))
    with unfinished("training", files=[]) as kept:  # of which only the first is to be there alone
        found["training"]["stage"] = training("pgd", state=kept, epochs=1)
    found["parts"] = [int(table().by[0]), int(table().by[0]), len(list(folder.glob("parts*/*/*")))]
    found["inside"] = distributed.spread(range(3), lambda n: (n, distributed.processes()))
    torch.save(found, folder / f"{rank}.pt")
    distributed.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
