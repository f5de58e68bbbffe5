"""A copy of the pipeline in a folder of its own, at a size that runs in seconds."""

import copy
import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import common

ROOT = Path(__file__).parent.parent
WRITTEN = (ROOT / "params.yaml").read_text(encoding="utf-8")
RAW: dict[str, Any] = YAML(typ="safe", pure=True).load(WRITTEN)
PARTS = (
    *("dvc.yaml", "params.yaml", "claims.yaml", "params", "stages", "src", "docs", "networks"),
    *("bench", "rl/gains.csv", ".dvcignore", ".gitignore"),
)
GAP = {"compression": 4, "finetune": {"epochs": 1}}
LWM = {"family": "LWM", "setting": {"sparsity": 0.5, "finetune": {"epochs": 1}}}
DROPOUT = {"family": "dropout", "setting": 0.1}
FEW_STEPS = {
    **{"apgd_ce": {"steps": 10, "restarts": 1}, "apgd_t": {"steps": 10, "targets": 1}},
    **{
        "apgd_parent": {"steps": 10},
        "apgd_both": {"steps": 10},
        "apgd_near": {"steps": 10},
        "apgd_wide": {"steps": 10},
    },
    **{"eot_ce": {"steps": 20, "draws": 1}, "eot_margin": {"steps": 20, "draws": 1}},
    **{"distance": {"steps": 10, "restarts": 1}, "square": {"queries": 5}},
    "published_40": {"steps": 12},
}
# Each attack takes time to begin, whatever its size: one of each chain and of each kind.
FEW_ATTACKS = {
    **{"table": ["field", "published_40"], "deterministic": ["apgd_ce", "square", "distance"]},
    "quantized": ["apgd_t", "apgd_parent", "square", "distance", "apgd_both"],
    "binary": ["apgd_t", "apgd_wide", "square", "distance"],
}
TINY = {
    "recipes": {"standard": {"method": "standard"}},
    "prune": {"E": 1e-2, "clamp": {"sigmas": 3}, "GAP_layer": GAP},
    "quantize": {"int8": {"bits": 8}},
    "binary": {"BNN": {"channels": "base", "epochs": 1}},
    "surrogates": {},
    "substitutes": {"short": {"epochs": 1}},
    "models": {
        "E-standard": {"do": "prune", "of": "dense-standard", "by": "prune.E"},
        "GAP_layer-standard": {"do": "prune", "of": "dense-standard", "by": "prune.GAP_layer"},
        "GAP_int8": {"do": "quantize", "of": "GAP_layer-standard", "by": "quantize.int8"},
        "BNN-standard": {"do": "train", "of": "dense-standard", "by": "binary.BNN"},
        "GAP_copy": {"do": "train", "of": "GAP_layer-standard", "by": "substitutes.short"},
    },
    "studies": {
        name: {"of": "dense-standard", **study}
        for name, study in {
            "sweep": {"study": "sweep", "points": {"E": [1e-3, 5e-2], "R": [1e-2]}},
            "curve": {"study": "compression", "points": {"random": [2]}},
            "protocol": {"study": "protocol", "members": {"dense": {}, "dropout": DROPOUT}},
            "seeds": {"study": "seeds", "seeds": 2, "points": {"LWM_50": LWM}},
            "flips": {"study": "bitflip", "bits": 4, "variants": ["margin"]},
        }.items()
    },
    "profiles/digits/flips": {"images": 16, "seeds": 2, "budget": 3, "random": 2},
    "profiles/digits/attacks": FEW_STEPS,
    "profiles/digits/suite": FEW_ATTACKS,
    "profiles/digits/protocol": {"images": 10, "draws": 3, "eps": [0, "eps"]},
    "profiles/digits/sweep_images": 30,
    "profiles/digits/data/train_limit": 200,
    "profiles/digits/data/test_limit": 40,
    "profiles/digits/model/width": 4,
    "profiles/digits/train/epochs": 3,
    "profiles/digits/train/threads": 1,
    "profiles/digits/curves": {"eps": [0, "eps"], "steps": [1, 3]},
}


def blocks(page: str, language: str) -> list[str]:
    """The blocks of code in a language on a page of docs/, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def git(folder: Path, *command: str) -> str:
    """Run git, as somebody who has not configured it; its output."""
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.invalid")
    words = ["git", *identity, *command]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def copy_pipeline(folder: Path) -> Path:
    """The pipeline's own files under `folder`, with DVC's settings and tiny params."""
    # With compiled code, which would take each copy seconds to make.
    skip = shutil.ignore_patterns("tmp", "cache", "config.local")
    folder.mkdir(parents=True)
    for part in PARTS:
        source = ROOT / part
        (folder / part).parent.mkdir(exist_ok=True)
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / part, **({"ignore": skip} if source.is_dir() else {}))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=skip)
    change(folder, TINY)
    return folder


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Set keys (with slashes) of the folder's params.yaml."""
    yaml, path = YAML(typ="safe", pure=True), folder / "params.yaml"
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # models are in order
    yaml.default_flow_style = False  # inside braces DVC takes no colon
    text = path.read_text(encoding="utf-8")
    content = copy.deepcopy(RAW) if text == WRITTEN else yaml.load(text)
    for key, value in changes.items():
        *parents, last = key.split("/")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def environment() -> dict[str, str]:
    """That of this process, with this Python first on the path."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "ADVPRUNE_WORKERS": "2"}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run `python <command>` in the folder."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def stage(folder: Path, name: str, *arguments: str) -> Any:
    """The exit status of `python stages/<name>.py <arguments>` in the folder, in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.chdir(folder)
        patch.setattr("sys.argv", [name, *arguments])
        common.script(getattr(importlib.import_module(name), name))
    return ended.value.code


def made_here(folder: Path, *commands: tuple[str, ...]) -> None:
    """Run stages, each a script with its argument, in this process, as starting one takes seconds;
    DVC notes them, and would run them again if what it makes for them differed by a byte."""
    names = []
    for script, *rest in commands:
        assert stage(folder, script, *rest) == 0
        block = script if script in ("attack", "study") else "model"
        if rest and rest[0].startswith("dense-"):
            block = "attack_dense" if script == "attack" else script
        names.append(f"{block}@{rest[0].removeprefix('dense-')}" if rest else script)
    done = run(folder, "-m", "dvc", "commit", "-f", *names)
    assert done.returncode == 0, done.stdout + done.stderr
