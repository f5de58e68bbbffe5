"""docs/own-model.md, to the letter: pictures and a network of one's own, from start to report."""

import json
import subprocess

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from ruamel.yaml import YAML
from workspace import FEW_ATTACKS, FEW_STEPS, TINY, blocks, change, copy_pipeline, made_here, run

from advprune.core.files import sha256_of
from advprune.core.params import load

COMMANDS = blocks("own-model.md", "sh")
GIVEN = YAML(typ="safe").load(blocks("own-model.md", "yaml")[0])
RUN = ("GAP_layer-standard", "resnet20")  # of the guide's models
CUT = {  # what takes long, and no more
    "models": {name: GIVEN["models"][name] for name in RUN},
    "surrogates": {"resnet20": {"architecture": "resnet20", "width": 2, "epochs": 1}},
    "prune": TINY["prune"],
    "profiles/mine/train": {"epochs": 3, "batch": 32, "lr": 0.1, "flip": True, "threads": 1},
    "profiles/mine/attacks": FEW_STEPS,
    "profiles/mine/suite": FEW_ATTACKS,
    "profiles/mine/curves": {"eps": [0, "eps"], "steps": [1, 3]},
    "profiles/mine/flips": {"images": 8, "seeds": 2, "budget": 2, "random": 2},
}
# The library may not be installed where tests run.
ADVPRUNE = 'advprune() { PYTHONPATH=src python -m advprune "$@"; }'


def draw(folder):
    """Pictures of two classes, brighter above or brighter below, in colour."""
    generator = np.random.default_rng(0)
    for name, sign in (("above", 1), ("below", -1)):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(60):
            pixels = generator.integers(60, 196, (32, 32, 3))
            pixels[:16] += 8 * sign
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(folder / "train" / name / f"{number}.png")


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A copy of the pipeline in which the guide was followed, and what its last commands said: DVC
    runs transfer and the report."""
    folder = copy_pipeline(tmp_path_factory.mktemp("own") / "a clone")
    (folder / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")  # as make setup
    draw(folder / "pictures")
    *first, last = COMMANDS
    for command in first:
        subprocess.run(["bash", "-euc", command], cwd=folder, check=True)
    change(folder, CUT | GIVEN)
    assert [*load(folder / "params.yaml").models] == [*GIVEN["models"]]
    change(folder, CUT)
    dense, pruned = "dense-standard", RUN[0]
    stages = [("settings",), ("prepare",), ("train", dense), ("prune", pruned), ("train", RUN[1])]
    made_here(folder, *stages, *(("attack", name) for name in (dense, *RUN)), ("study", "flips"))
    words = ["bash", "-euc", f"{ADVPRUNE}\n{last}"]
    done = run(folder, "-c", f"import subprocess, sys; sys.exit(subprocess.call({words}))")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_the_guide_ends_in_a_report_of_the_own_network(followed):
    folder, said = followed
    metrics = {p.stem: json.loads(p.read_text()) for p in (folder / "metrics/mine").iterdir()}
    assert {*metrics, "resnet20"} == {"dense-standard", *RUN}
    dense = metrics["dense-standard"]
    assert dense["clean_accuracy"] > 0.8 and dense["n"] == 24  # a fifth of 120
    assert dense["robust_accuracy"] < dense["clean_accuracy"]
    page = (folder / "reports/mine/report.md").read_text()
    assert "## Leaderboard" in page and all(f"| {name} " in page for name in metrics)
    layers = pd.read_parquet(folder / "runs/mine/dense-standard/layers.parquet")
    assert [f"network.{n}" for n in (0, 1, 2, 3)] == layers.layer.tolist()[1:5]
    assert "against the dense network:" in said


def test_the_card_says_which_code_made_the_network(followed):
    folder, _ = followed
    for name in ("dense-standard", "GAP_layer-standard"):
        card = json.loads((folder / f"runs/mine/{name}/model.json").read_text())
        assert card["code"] == sha256_of(folder / "networks/my_model.py")
