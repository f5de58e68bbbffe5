"""dvc.yaml against the code: every stage depends on the rooms that it really uses, and no others.

A room is a folder of src/advprune.
"""

import ast
import fnmatch
import re
import shutil
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from ruamel.yaml import YAML

from advprune.core import params
from advprune.report.sections.strength import MEASURED

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
# packages that import all their files
FOUND_BY_LOOKING = {"advprune.attacks", "advprune.pruning", "advprune.studies"}
# Models with inserted layers or integers are rebuilt by name (models/checkpoint.py), which no
# import shows: stages that open a model that may be compressed use these as well.
REBUILT = {"advprune.pruning", "advprune.quantization.post_training"}
OPENS = {"model", "attack", "transfer", "study"}  # by block of dvc.yaml


@pytest.fixture(scope="module")
def stages():
    """The stages of dvc.yaml by address; nothing is run."""
    return {stage.addressing: stage for stage in Repo(str(ROOT)).stage.load_all("dvc.yaml")}


@pytest.fixture(scope="module")
def every_stage(stages):
    """Those of the reinforcement-learning extra as well, where it is there."""
    extra = Repo(str(ROOT)).stage.load_all("rl/dvc.yaml") if (ROOT / "rl/dvc.yaml").exists() else []
    there = [stage for stage in extra if script_of(stage).is_file()]
    return stages | {stage.addressing: stage for stage in there}


@pytest.fixture(scope="module")
def settings():
    return params.load(ROOT / "params.yaml")


def file_of(module):
    """The file of a module of the library, if it is one."""
    path = SOURCE.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def imports_of(file, step=""):
    """Library modules that a file imports anywhere in it, functions included.

    step: where a script has a function of that name for each step, the others are left out.
    """
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    steps = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for name, function in steps.items():
        if step in steps and name != step:
            function.body = [ast.Pass()]
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]  # for the type checker alone
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "advprune" and file_of(name)}


def script_of(stage):
    """A stage's script: stages/attack.py of both attack blocks."""
    return ROOT / stage.cmd.split()[2]


def used_by(stage):
    """All files that a stage's script uses, directly or through others, the script's own too."""
    scripts, step = [script_of(stage), ROOT / "stages" / "common.py"], stage.cmd.split()[3:4]
    opens = stage.addressing.split("@")[0] in OPENS
    todo = set().union(*(imports_of(script, *step) for script in scripts))
    todo |= REBUILT if opens else set()
    seen = {"advprune"}
    while todo - seen:
        module = (todo - seen).pop()
        seen.add(module)
        file = file_of(module)
        assert file is not None
        todo |= imports_of(file) | {module.rpartition(".")[0]}
        if module in FOUND_BY_LOOKING:
            todo |= {f"{module}.{path.stem}" for path in file.parent.glob("[a-z]*.py")}
    files = [file_of(module) for module in seen]
    return {path.relative_to(ROOT).as_posix() for path in [*scripts, *files] if path}


def code_of(stage):
    """The code among a stage's dependencies."""
    paths = {dep.def_path for dep in stage.deps if hasattr(dep, "def_path")}
    return {path for path in paths if path.startswith(("src/", "stages/"))}


def covered(file, deps):
    """Whether a file is a dependency, or lies in a folder that is."""
    return any(file == dep or file.startswith(dep + "/") for dep in deps)


def tracked(stage):
    """The settings that a stage depends on."""
    return {key for dep in stage.deps if hasattr(dep, "params") for key in dep.params}


def test_a_stage_depends_on_the_code_that_it_uses_and_on_no_other(every_stage):
    for name, stage in every_stage.items():
        needed, code = used_by(stage), code_of(stage)
        missing = sorted(file for file in needed if not covered(file, code))
        assert not missing, f"{name} uses {missing}, which are not among its deps"
        assert all((ROOT / dep).exists() for dep in code), name
        idle = sorted(dep for dep in code if not any(covered(file, {dep}) for file in needed))
        assert not idle, f"{name} depends on {idle} but does not use them"


def test_networks_of_ones_own_are_watched_and_editing_a_family_trains_no_dense_one_anew(stages):
    own = {"src/advprune/pruning", "src/advprune/quantization", "src/advprune/studies"}
    assert not any(own & code_of(one) for name, one in stages.items() if name.startswith("train@"))
    assert own & code_of(stages["model@E-standard"])
    blind = {
        name
        for name, stage in stages.items()
        if "networks" not in {getattr(dep, "def_path", None) for dep in stage.deps}
    }
    assert blind == {"prepare", "settings", "summarize"}


def test_stages_are_exactly_what_params_declare(stages, settings):
    expected = {"prepare", "settings", "transfer", "summarize"}
    expected |= {f"{stage}@{name}" for stage in ("model", "attack") for name in settings.models}
    expected |= {f"{stage}@{r}" for stage in ("train", "attack_dense") for r in settings.recipes}
    expected |= {f"study@{name}" for name in settings.studies}
    assert set(stages) == expected
    raw = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))
    assert len(raw["stages"]) <= 9
    assert not any(
        "${"
        in block.get("do", block)["cmd"]
        .replace("\\${DVC_STAGE#*@}", "")
        .replace("stages/${item.do}.py", "")
        for block in raw["stages"].values()
    )  # a shell reads commands
    for name, entry in settings.models.items():
        stage = stages[f"model@{name}"]
        assert stage.cmd.split()[2:] == [f"stages/{entry.do}.py", '"${DVC_STAGE#*@}"']
        parent = f"runs/{settings.profile}/{entry.of}/model.safetensors"
        assert parent in {getattr(dep, "def_path", None) for dep in stage.deps}


def test_the_lock_file_lists_these_stages_and_no_former_ones(stages):
    lock = YAML(typ="safe").load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    assert set(lock["stages"]) == set(stages)


def test_the_sides_of_a_first_run_share_no_stage_and_keep_the_order(stages, settings):
    """The dense networks are the first thing that each side makes and attacks."""
    lines = re.findall(r"call SIDE,\w+,(.+?)\)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    sides = [
        [name for one in line.split() for name in fnmatch.filter(stages, one.strip("'"))]
        for line in lines
    ]
    after = {"settings", "prepare", "transfer", "summarize"}
    assert len(sides) == 2 and sorted(sides[0] + sides[1]) == sorted(set(stages) - after)
    for side, recipe in zip(sides, ("robust", "standard"), strict=True):
        assert side[:2] == [f"train@{recipe}", f"attack_dense@{recipe}"]
        for at, name in enumerate(side):
            block, _, key = name.partition("@")
            if block == "attack":
                assert f"model@{key}" in side[:at]
            if block == "study" and (of := settings.studies[key].of) not in settings.dense():
                assert f"attack@{of}" in side[:at]


def test_each_stage_depends_on_its_own_settings_alone(stages, settings):
    training = {f"profiles.{settings.profile}.{key}" for key in ("eps", "model", "train")}
    for name, entry in settings.models.items():
        own = {"seed", f"models.{name}", entry.by}
        assert tracked(stages[f"model@{name}"]) == own | training
        assert tracked(stages[f"attack@{name}"]) == {"seed"}  # the rest is in attacks.json
    for recipe in settings.recipes:
        assert tracked(stages[f"train@{recipe}"]) == {"seed", f"recipes.{recipe}"} | training
    assert tracked(stages["summarize"]) == set()  # all of them are in settings.json
    for name, stage in stages.items():
        assert not tracked(stage) & {"prune", "studies", "profiles"}, name


def test_the_report_depends_on_every_measurement_of_strength(stages):
    """It reads whatever there is of that name."""
    there = {path.relative_to(ROOT).as_posix() for path in ROOT.glob(MEASURED)}
    assert there and there <= {getattr(dep, "def_path", "") for dep in stages["summarize"].deps}


def test_models_are_named_and_the_best_is_the_best():
    named = Repo(str(ROOT)).artifacts.read()["dvc.yaml"]
    assert set(named) == {"dense-standard", "dense-robust", "best"}
    models = {key: Path(one.path).parent.name for key, one in named.items()}
    assert all(models[key] == key for key in ("dense-standard", "dense-robust"))
    results = pd.read_csv(ROOT / "reports" / "digits" / "results.csv", index_col="model")
    assert results[results.sparsity >= 0.75].robust_accuracy.idxmax() == models["best"]


def committed():
    """Every file of settings in the repository, with each profile that it has."""
    files = ("params.yaml", "params/*.yaml", "reports/*/params.yaml")
    for path in sorted(path for pattern in files for path in ROOT.glob(pattern)):
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        for profile in raw["profiles"]:
            yield pytest.param(path, profile, id=f"{path.relative_to(ROOT)}-{profile}")


@pytest.mark.parametrize(("path", "profile"), list(committed()))
def test_settings_hold_every_key_that_stages_ask_for(path, profile, tmp_path):
    """With them in the place of params.yaml, `dvc repro` makes that run; `-S profile=` as well."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    text = path.read_text(encoding="utf-8")
    chosen = re.sub(r"^profile: .*$", f"profile: {profile}", text, count=1, flags=re.MULTILINE)
    (tmp_path / "params.yaml").write_text(chosen, encoding="utf-8")
    stages = Repo.init(str(tmp_path), no_scm=True).index.stages
    outs = {out.def_path for stage in stages for out in stage.outs}
    assert f"data/{profile}/train.safetensors" in outs
    asked = [dep for stage in stages for dep in stage.deps if isinstance(dep, ParamsDependency)]
    keys = {key for dep in asked for key in dep.params}
    assert {dep.def_path for dep in asked} == {"params.yaml"}
    once = ParamsDependency(asked[0].stage, "params.yaml", sorted(keys))  # as each reads the file
    assert keys and keys == set(once.read_params())


ABOVE = (  # who may import whom: a room only its own and those of the rows before
    {"core", "defaults"},
    {"data", "models"},
    {"attacks"},
    {"training"},
    {"pruning", "quantization"},
    {"evaluate"},
    {"studies", "rl"},
    {"report"},
    {"benchmarking"},
    {"cli"},
)


@pytest.mark.parametrize("row", range(len(ABOVE)))
def test_imports_point_one_way(row):
    below = set().union(*ABOVE[: row + 1])
    for room in ABOVE[row]:
        folder = SOURCE / "advprune" / room
        for file in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
            rooms = {name.split(".")[1] for name in imports_of(file) if "." in name}
            assert rooms <= below, f"{room}/{file.name} imports from {rooms - below}"
