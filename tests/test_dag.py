"""dvc.yaml against the code: every stage depends on the modules that it really uses."""

import ast
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo

from advprune.core import params
from advprune.pruning import families

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
# Models with inserted layers or integers are rebuilt by name (models/checkpoint.py), which no
# import shows: stages that open a compressed model use these as well.
REBUILT = {"advprune.pruning", "advprune.quantization.post_training"}
OPENS_COMPRESSED = {"attack", "transfer", "quantize", "surrogate", "bitflip"}


@pytest.fixture(scope="module")
def every_stage() -> dict[str, Any]:
    """All stages by address, those of the reinforcement-learning extra too; nothing is run."""
    return {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages}


@pytest.fixture(scope="module")
def stages(every_stage: dict[str, Any]) -> dict[str, Any]:
    """The stages of dvc.yaml alone."""
    return {name: s for name, s in every_stage.items() if s.path_in_repo == "dvc.yaml"}


@pytest.fixture(scope="module")
def settings() -> params.Params:
    return params.load(ROOT / "params.yaml")


def script_of(stage: Any) -> str:
    """The name of a stage's script: `attack` for both attack stages."""
    return Path(stage.cmd.split()[1]).stem


def file_of(module: str) -> Path | None:
    """The file of a module of the library, if it is one."""
    path = SOURCE.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imports_of(file: Path) -> set[str]:
    """Library modules that a file imports anywhere in it, functions included."""
    tree, found = ast.parse(file.read_text(encoding="utf-8")), set()
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]  # for the type checker alone
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "advprune" and file_of(name)}


@cache
def used_by(script: str) -> set[str]:
    """All library files that a stage script uses, directly or through others."""
    seen: set[str] = {"advprune"} | (REBUILT if script in OPENS_COMPRESSED else set())
    todo = list(seen)
    for start in (ROOT / "stages" / f"{script}.py", ROOT / "stages" / "common.py"):
        todo += imports_of(start)
    while todo:
        module = todo.pop()
        seen.add(module)
        file = file_of(module)
        assert file is not None
        new = imports_of(file)
        if file.name == "__init__.py" and module == "advprune.pruning":
            new |= {f"advprune.pruning.{p.stem}" for p in file.parent.glob("[a-z]*.py")}
        todo += [name for name in new - seen if name != "advprune"]
        todo += [m for m in {module.rpartition(".")[0]} - seen - {""} if m != "advprune"]
    return {file_of(module).relative_to(ROOT).as_posix() for module in seen}  # type: ignore[union-attr]


def deps_of(stage: Any) -> set[str]:
    return {dep.def_path for dep in stage.deps if hasattr(dep, "def_path")}


def covered(file: str, deps: set[str]) -> bool:
    """Whether a file is a dependency, or lies in a folder that is."""
    return any(file == dep or file.startswith(dep + "/") for dep in deps)


def test_every_module_that_a_stage_uses_is_among_its_deps(every_stage: dict[str, Any]) -> None:
    for name, stage in every_stage.items():
        script, deps = script_of(stage), deps_of(stage)
        needed = used_by(script) | {f"stages/{script}.py", "stages/common.py"}
        missing = sorted(file for file in needed if not covered(file, deps))
        assert not missing, f"{name} uses {missing}, which are not among its deps"


def test_no_stage_depends_on_code_that_it_does_not_use(every_stage: dict[str, Any]) -> None:
    for name, stage in every_stage.items():
        script, deps = script_of(stage), deps_of(stage)
        needed = used_by(script) | {f"stages/{script}.py", "stages/common.py"}
        code = {dep for dep in deps if dep.startswith(("src/", "stages/"))}
        assert all((ROOT / dep).exists() for dep in code)
        idle = sorted(d for d in code if not any(covered(file, {d}) for file in needed))
        assert not idle, f"{name} depends on {idle} but does not use them"


def test_stages_are_exactly_what_params_declare(
    stages: dict[str, Any], settings: params.Params
) -> None:
    expected = {"prepare", "attacks", "growth", "transfer", "sparsity", "summarize"}
    expected |= {f"train@{recipe}" for recipe in settings.recipes}
    expected |= {f"protocol@{recipe}" for recipe in settings.protocol}
    expected |= {f"sweep@{family}-{settings.bases[0]}" for family in settings.sweep}
    first = settings.bases[0]
    expected |= {
        f"{stage}@{name}-{first}" for stage in ("mask", "attack-masked") for name in settings.masks
    }
    expected |= {
        f"{stage}@{name}-{settings.ticket_base}"
        for stage in ("ticket", "attack-ticket")
        for name in settings.tickets
    }
    expected |= {f"compression@{name}-{first}" for name in settings.compression}
    expected |= {f"quantized@{name}" for name in settings.quantized}
    expected |= {f"attack-quantized@{name}-{first}" for name in settings.quantized}
    expected |= {f"bitflip@{name}" for name in settings.bitflip}
    expected |= {f"binary@{name}" for name in settings.binary}
    expected |= {f"attack-binary@{name}-{first}" for name in settings.binary}
    expected |= {f"surrogate@{name}" for name in settings.surrogates}
    expected |= {f"substitute@{name}-{first}" for name in settings.substitutes}
    for base in settings.bases:
        expected |= {f"quantize@{base}"}
        expected |= {f"attack-unpruned@{model}-{base}" for model in ("dense", "int8")}
        for family in settings.prune:
            expected |= {f"{stage}@{family}-{base}" for stage in ("prune", "attack")}
    assert set(stages) == expected
    assert len(stages) <= 110  # each costs a second or two before it starts its work


def test_every_family_has_a_setting_and_a_page(settings: params.Params) -> None:
    members = [member for group in settings.protocol.values() for member in group.values()]
    used = {member.family for member in members if member.family}
    used |= {point.family for point in settings.sparsity_study.points.values()}
    used |= {*settings.prune, *settings.masks, *settings.tickets}
    used |= {*settings.sweep, *settings.compression}
    assert used == set(families())
    pages = {p.stem for p in (ROOT / "docs" / "families").glob("*.md")}
    assert pages == set(families())


def test_each_stage_tracks_only_its_own_item(stages: dict[str, Any]) -> None:
    tracked = {
        name: {key for dep in stage.deps if hasattr(dep, "params") for key in dep.params}
        for name, stage in stages.items()
    }
    train = "profiles.digits.train"
    assert tracked["prune@E-standard"] == {"seed", "prune.E", train}
    assert tracked["mask@GAP_layer-standard"] == {"seed", "masks.GAP_layer", train}
    assert tracked["ticket@HYDRA-robust"] == {"seed", "tickets.HYDRA", train}
    assert tracked["compression@random-standard"] >= {"seed", "compression.random"}
    assert tracked["bitflip@dense_4"] >= {"seed", "bitflip.dense_4", "profiles.digits.bitflip"}
    assert tracked["binary@BNN"] >= {"seed", "binary.BNN"}
    assert "growth" in tracked["growth"] and "growth" not in tracked["binary@BNN"]
    assert tracked["sweep@R-standard"] >= {"seed", "sweep.R"}
    assert not any(key.startswith("prune") for key in tracked["attack@E-standard"])
    assert not any(key == "profiles" for keys in tracked.values() for key in keys)


@pytest.mark.parametrize(
    "settings_of", sorted(ROOT.glob("reports/*/params.yaml")), ids=lambda it: it.parent.name
)
def test_the_settings_beside_a_report_hold_every_key_that_stages_ask_for(
    settings_of: Path, tmp_path: Path
) -> None:
    """With them in the place of params.yaml, `dvc repro` makes the report again."""
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(settings_of, tmp_path / "params.yaml")
    stages = Repo.init(str(tmp_path), no_scm=True).index.stages
    asked = [dep for stage in stages for dep in stage.deps if isinstance(dep, ParamsDependency)]
    assert asked
    for dep in asked:
        assert set(dep.params) <= set(dep.read_params())


def test_networks_of_ones_own_are_watched_where_they_are_trained(stages: dict[str, Any]) -> None:
    watching = {script_of(stage) for stage in stages.values() if "networks" in deps_of(stage)}
    assert watching == {"train", "surrogate", "sparsity"}


def test_imports_point_one_way() -> None:
    order = ["models", "attacks", "training", "pruning", "evaluate", "report", "rl", "cli"]
    allowed = {
        "models": {"models"},
        "training": {"models", "attacks", "training"},
        "pruning": {"models", "attacks", "training", "pruning"},
        "attacks": {"models", "attacks"},
        "evaluate": {"models", "attacks", "pruning", "training", "evaluate"},
        "report": {"evaluate", "report", "pruning"},
        "rl": {"models", "pruning", "rl"},
        "cli": {*order},
    }
    for room in order:
        for file in (SOURCE / "advprune" / room).glob("*.py"):
            rooms = {name.split(".")[1] for name in imports_of(file) if "." in name}
            wrong = (rooms & set(order)) - allowed[room]
            assert not wrong, f"{file.name} in {room} imports from {wrong}"


def test_only_params_knows_params_yaml_and_nothing_knows_the_stages() -> None:
    for file in (SOURCE / "advprune").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        literals = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)}
        if file.name != "params.py":
            assert "params.yaml" not in literals, file
        assert not any(s.startswith("stages/") for s in literals if isinstance(s, str)), file
