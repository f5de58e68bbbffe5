"""Published claims judged on the records of reference networks: writes FOLDER/claims.csv.

python bench/claims.py weights/cifar10-w32

The folder holds pruned.records.parquet and pruned.notes.json (bench/reference.py): a family at some
sparsity over several seeds, all from one parent. Robust: not broken by APGD on the cross-entropy,
which was run on every network. docs/published.md shows the outcomes beside those of the pipeline.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer

from advprune.core.claims import FILE, Claim, read_claims
from advprune.core.errors import UserError
from advprune.core.params import FILE as PARAMS
from advprune.core.params import Params
from advprune.core.settings import parse, text_of, yaml_of
from advprune.models.checkpoint import load_model
from advprune.models.spec import spec_of
from advprune.report.results import CLAIMS
from advprune.report.run import Run
from advprune.report.sections.claims import outcomes

ROOT = Path(__file__).parent.parent
PROFILE, STUDY, PARENT, ATTACK = "cifar10-small", "seeds", "dense-robust", "apgd_ce"


def run_of(folder: Path) -> Run:
    """The networks of a folder as a run with one study, to be judged as any other run."""
    notes = json.loads((folder / "pruned.notes.json").read_text(encoding="utf-8"))
    del notes["run"]
    points, seeds = {}, {}
    for network, facts in notes.items():  # HYDRA-95-seed0
        family, percent, seed = network.split("-")
        point = f"{family}_{percent}"
        points[point] = {"family": family, "setting": facts["setting"][family]}
        seeds[network] = {"point": point, "family": family, "seed": int(seed.removeprefix("seed"))}
        seeds[network] |= {"sparsity": facts["prune_ratio"]}
    params = params_of(folder, points)
    table = pd.read_parquet(folder / "pruned.records.parquet")
    table = table[table.attack == ATTACK].astype({"network": str})
    if set(table.network) != set(notes):
        raise UserError(f"{folder}: {ATTACK} was not run on every network")
    fooled = table.adv_pred != table.label
    facts = {"distance": np.nan, "forwards": 0, "gradients": 0}  # columns that a study has
    table = table.assign(chosen_margin=np.where(fooled, -1.0, 1.0), **facts)
    known = pd.DataFrame(table.network.map(seeds).tolist(), index=table.index)
    how = {"run": f"python bench/claims.py weights/{folder.name}"}
    asked = (one for one in read_claims(ROOT / FILE) if asks(one, points))
    claims = tuple(one.model_copy(update=how) for one in asked)
    about = "CIFAR-10", [str(label) for label in range(10)], np.empty(0, np.uint8)
    return Run(params, [], {}, {STUDY: table.join(known)}, *about, folder=ROOT, claims=claims)


def asks(claim: Claim, points: dict[str, Any]) -> bool:
    """Whether a claim compares two of the points."""
    return claim.study == STUDY and {claim.model, claim.control} <= points.keys()


def params_of(folder: Path, points: dict[str, Any]) -> Params:
    """params.yaml with the folder's network, all test images, and the points as its study."""
    spec = spec_of(load_model(folder / f"{PARENT}.fp16.safetensors"))
    raw = yaml_of(text_of(ROOT / PARAMS), PARAMS)
    profile = raw["profiles"][PROFILE]
    profile["model"] = {"architecture": spec.architecture, "width": spec.width}
    study = {"study": "seeds", "of": PARENT, "points": points}
    return parse(Params, {**raw, "profile": PROFILE, "studies": {STUDY: study}}, where=PARAMS)


def main(folder: Annotated[Path, typer.Argument(help="A folder of weights/.")]) -> None:
    """Judge the claims that a folder's networks can answer."""
    table = outcomes(run_of(folder))
    table.to_csv(folder / CLAIMS, index=False)
    print(table[["id", "outcome", "reason", "difference", "p"]].to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
