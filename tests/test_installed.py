"""Outside of a clone: the built wheel in an empty folder, to the letter of docs/installed.md."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from workspace import FEW_ATTACKS, FEW_STEPS, ROOT, blocks, change

from advprune import benchmark
from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.data import given as given_module
from advprune.data.given import read_given, read_names
from advprune.defaults import defaults
from conftest import Linear

COMMANDS = blocks("installed.md", "sh")
(CODE,) = blocks("installed.md", "python")
EXTRAS = "dvc torchattacks sklearn timm pyautoattack requests onnx onnxruntime mlxtend dvclive"
CALLED = {  # packages by what is imported of them, where that is another name
    **{"PIL": "pillow", "sklearn": "scikit-learn", "ruamel": "ruamel.yaml"},
    **{"torch_pruning": "torch-pruning", "stable_baselines3": "stable-baselines3"},
    **{"pydantic_core": "pydantic", "markupsafe": "jinja2"},
}
NETWORK = """
from torch import nn

def network(classes, channels):
    head = nn.Flatten(), nn.Linear(144, classes)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), *head)
"""
TINY = {  # of the project that init writes: what takes long, and no more
    "models": {"E-standard": {"do": "prune", "of": "dense-standard", "by": "prune.E"}},
    "profiles/mine/train/epochs": 2,
    "profiles/mine/train/threads": 1,
    "profiles/mine/attacks": FEW_STEPS,
    "profiles/mine/suite": FEW_ATTACKS,
    "profiles/mine/curves": {"eps": ["eps"], "steps": [1]},
}
# As if advprune were a command, and no extra were installed. Lines share a process, as torch takes
# seconds to be imported.
WORDS = f"""
import shlex, sys
sys.modules |= dict.fromkeys("{EXTRAS}".split())
from advprune.cli.app import main
sys.path.append("{ROOT / "tests"}")
if "evaluate" in sys.argv[1]:
    import short
    short.install()
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as ended:
        print("status", ended.code)
"""
# Stages, each a line, and what DVC then notes of them and says.
STAGES = """
import importlib, sys
sys.path.insert(0, "stages")
import common
for line in sys.argv[1:]:
    sys.argv = line.split()
    try:
        common.script(getattr(importlib.import_module(sys.argv[0]), sys.argv[0]))
    except SystemExit as ended:
        assert not ended.code, line
"""
DVC = """
import sys
from dvc.cli import main
for line in sys.argv[1:]:
    if main(line.split()):
        sys.exit(line)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The package as it is installed: built without a network, and unpacked."""
    source, place = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, source)
    for name in ("src", "stages"):
        skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=skip)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(place)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = place.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(place)
    return place


def installed(wheel, folder, command, *lines):
    """What a shell command, or Python code that is given lines, prints in the folder, with the
    unpacked wheel in the clone's place."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    known = {"PATH": path, "PYTHONPATH": str(wheel), "DVC_NO_ANALYTICS": "1", "COLUMNS": "80"}
    words = [sys.executable, "-c", command, *lines] if lines else ["bash", "-euc", command]
    done = subprocess.run(
        words, cwd=folder, env=os.environ | known, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pictures, brighter above or below, and two networks that tell the classes apart."""
    place = tmp_path_factory.mktemp("made")
    generator = np.random.default_rng(0)
    for name, rows in (("above", slice(4)), ("below", slice(4, 8))):
        (place / "pictures" / name).mkdir(parents=True)
        for number in range(20):
            pixels = generator.integers(60, 140, (8, 8, 3), dtype=np.uint8)
            pixels[rows] += 40
            Image.fromarray(pixels).save(place / "pictures" / name / f"{number}.png")
    (place / "my_net.py").write_text(NETWORK)
    torch.manual_seed(0)
    names = {}
    exec(NETWORK, names)
    model = names["network"](classes=2, channels=3)
    split = read_given(place / "pictures")
    step = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(40):
        step.zero_grad()
        nn.functional.cross_entropy(model(split.images / 255), split.labels).backward()
        step.step()
    torch.save(model.state_dict(), place / "dense.pt")
    with torch.no_grad():
        model[0].weight *= model[0].weight.abs() > 0.05
    torch.save(model.state_dict(), place / "net.pt")
    return place


@pytest.fixture
def folder(made, tmp_path):
    """A copy of them."""
    return Path(shutil.copytree(made, tmp_path / "empty"))


def files(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if "__pycache__" not in path.parts}


# --- the wheel -----------------------------------------------------------------------------------
def test_what_few_people_need_is_no_requirement(wheel):
    (found,) = (d for d in distributions(path=[str(wheel)]) if isinstance(d, Distribution))
    always = {re.split(r"\W", line)[0] for line in found.requires or [] if "extra ==" not in line}
    assert always >= {"torch", "numpy", "pydantic"}
    assert not always & {"dvc", "torchattacks", "scikit", "requests", "timm", "pyautoattack"}
    asked = {re.split(r"[^\w.-]", line)[0] for line in found.requires or []}
    used = set()
    for file in (wheel / "advprune").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            used |= {name.partition(".")[0] for name in names}
    outside = used - sys.stdlib_module_names - {"advprune", "common"}
    assert {CALLED.get(name, name) for name in outside} <= asked
    for name in ("params.yaml", "dvc.yaml", "stages/train.py", "stages/common.py"):
        assert (wheel / "advprune/project" / name).read_bytes() == (ROOT / name).read_bytes()


def test_the_guides_evaluations_in_an_empty_folder(wheel, folder):
    before, asked = files(folder), (COMMANDS[0].strip(), COMMANDS[1].strip())
    said, other, _ = installed(wheel, folder, WORDS, *asked).split("status 0\n")
    assert "20 images of pictures/" in said and "within Linf eps 8/255" in said
    assert re.search(r"verdict: (reliable|suspect|broken)", said)
    found = {f"found/{name}" for name in ("metrics.json", "verdict.json", "records.parquet")}
    assert files(folder) - before == {"net.html", *found}
    page = (folder / "net.html").read_text()
    assert "<h1>Adversarial robustness: net.pt</h1>" in page and "The network has" in page
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)=["'](?!#|data:)""", own)  # it needs no other file
    assert "within L2 eps 0.5" in other and "square " in other and "/255" not in other
    found = json.loads((folder / "found/metrics.json").read_text())
    records = pd.read_parquet(folder / "found/records.parquet")
    assert found["against_dense"] and found["n"] == 20 and set(records.norm) == {"L2"}


def test_init_writes_a_pipeline_that_runs(wheel, folder):
    """Most of its stages in one process, of which DVC takes note; it runs the rest."""
    first, *rest = COMMANDS[2].splitlines()
    assert "dvc repro" in installed(wheel, folder, WORDS, first)
    profile = (folder / "params.yaml").read_text().partition("\n  mine:\n")[2].partition("\n\n")[0]
    assert len(profile.splitlines()) <= 15
    change(folder, TINY)
    assert load(folder / "params.yaml").profile == "mine"
    names = "dense-standard", "E-standard"
    made = ("settings", "prepare", f"train {names[0]}", f"prune {names[1]}")
    installed(wheel, folder, STAGES, *made, *(f"attack {name}" for name in names))
    blocks = "settings prepare train@standard model@E-standard attack_dense@standard"
    rest = [line.removeprefix("dvc ") for line in rest]
    note = f"commit -f {blocks} attack@E-standard"
    said = installed(wheel, folder, DVC, note, *rest, "status")
    assert {*re.findall(r"Running stage '(\w+)'", said)} == {"settings", "transfer", "summarize"}
    assert all(name in said for name in names) and "train@" not in said.rpartition("Running")[2]
    assert "does not watch" not in said and (folder / "reports/mine/report.html").is_file()
    with (folder / "my_net.py").open("a") as code:
        code.write("# changed\n")
    said = installed(wheel, folder, DVC, "status")
    assert re.search(r"train@standard:.*my_net\.py", said, re.DOTALL)
    kept = files(folder)
    said = installed(wheel, folder, f"python -c '{WORDS}' '{first}' 2>&1")
    assert "params.yaml is there already" in said and "status 2" in said and files(folder) == kept
    before = [(folder / name).read_bytes() for name in ("params.yaml", "dvc.yaml", "dvc.lock")]
    away, again, back, _ = COMMANDS[3].splitlines()
    renewed = f"{away}\npython -c '{WORDS}' '{again}'\n{back}"
    assert "status 0" in installed(wheel, folder, renewed)  # as it was
    after = [(folder / name).read_bytes() for name in ("params.yaml", "dvc.yaml", "dvc.lock")]
    assert before == after
    bare = "import sys; sys.modules['typer'] = None; sys.path.insert(0, 'stages'); import common"
    said = installed(wheel, folder, f'{{ python -c "{bare}" 2>&1; }} || echo status $?')
    assert said.startswith("error: this python lacks") and said.endswith("status 1\n")


# --- benchmark -----------------------------------------------------------------------------------
@pytest.fixture
def linear():
    """A linear network whose border passes through grey, images around that, and its answers."""
    torch.manual_seed(0)
    w = torch.randn(16)
    model = Linear(torch.stack([w - w.mean(), w.mean() - w]))
    images = (0.5 + 0.1 * torch.randn(24, 1, 4, 4)).mul(255).round().clamp(0, 255) / 255
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "8/255"), ("L2", 0.1)])
def test_benchmark_of_a_network_whose_distances_are_known(linear, norm, eps):
    model, images, labels = linear
    state, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    model.train()
    found = benchmark(model, images, labels, eps=eps, norm=norm)
    exact = model.distance(images, labels, norm)
    np.testing.assert_allclose(found.distances, exact.numpy(), rtol=0.02, atol=1e-3)
    budget = 8 / 255 if norm == "Linf" else eps
    sure = (exact - budget).abs() > 2 / 255  # images are rounded to 8 bits within the budget
    robust = found.run.robust(found.run.models[0])
    hits = torch.tensor((robust.adv_pred == robust.label).to_numpy())
    assert torch.equal(hits[sure], exact[sure] > budget)
    assert found.clean.value == 1.0 and found.clean.n == 24
    assert found.robust.value == hits.float().mean() and found.verdict.level in repr(found)
    assert not any(key.startswith("against") for key in found.metrics)
    assert model.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(state[name], t) for name, t in model.state_dict().items())
    again = benchmark(model, (images * 255).to(torch.uint8), labels, eps=eps, norm=norm)
    assert again.metrics == found.metrics


@pytest.mark.usefixtures("short_attacks")
def test_the_guides_code(linear, tmp_path, monkeypatch):
    model, images, labels = linear
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "images": images, "labels": labels, "dense": model}
    exec(CODE, names)
    found = names["found"]
    assert found.metrics["against_dense"] == "not significant"
    assert found.metrics["transfer_accuracy"]
    assert [model.name for model in found.run.models] == ["dense", "model"]
    assert files(tmp_path) == {"net.html"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0}, "eps is above 0"),
        ({"eps": "a lot"}, "eps is a number or a fraction"),
        ({"eps": 2.0}, "at most 1 in Linf"),
        ({"eps": "0.5/255"}, "^eps: in images of 8 bits nothing changes by less than 1/255"),
        ({"eps": 5.0, "norm": "L2"}, "at most 4 in L2"),
        ({"norm": "L1"}, "norm is Linf or L2"),
        ({"labels": torch.full((24,), 2)}, "label 2 is none of 2 classes"),
        ({"dense": nn.Sequential(nn.Flatten(), nn.Linear(16, 3))}, "classes"),
    ],
)
def test_benchmark_refuses_in_one_line(linear, changes, words):
    given = dict(zip(("model", "images", "labels"), linear, strict=True)) | changes
    with pytest.raises(UserError, match=words) as refused:
        benchmark(**given)
    assert "\n" not in str(refused.value)


def test_defaults_are_the_settings_of_all_profiles():
    shipped = defaults(8 / 255, "Linf", (3, 32, 32)).active()
    cifar = load(ROOT / "params.yaml", "cifar10-small").active()
    assert shipped.suite == cifar.suite and shipped.curves.eps == cifar.curves.eps
    for name in ("field", "apgd_ce", "apgd_t", "distance", "momentum"):
        both = (active.attacks[name].model_dump() for active in (shipped, cifar))
        one, other = (attack | dict.fromkeys(("draws", "targets"), 0) for attack in both)
        assert one == other  # but for what the profile has of its own
    for eps in (128 / 255, 1.0):  # budgets at which points of the curve coincide
        assert defaults(eps, "Linf", (1, 8, 8)).active().curves.eps[-1] >= eps


# --- pictures ------------------------------------------------------------------------------------
def test_only_drawn_pictures_are_opened(folder, monkeypatch):
    opened, decode = [], given_module.decode

    def noted(place, name, *rest):
        opened.append(f"{place.name}/{name}")
        return decode(place, name, *rest)

    monkeypatch.setattr(given_module, "decode", noted)

    for kind in ("above", "below"):
        place = folder / "pictures" / kind
        for number in range(500):
            os.link(place / "0.png", place / f"more{number}.png")
    tracemalloc.start()
    split = read_given(folder / "pictures", 10)
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()
    assert torch.bincount(split.labels).tolist() == [5, 5] and len(opened) == 10


def test_classes_are_in_the_order_of_the_outputs(folder):
    pictures = folder / "pictures"
    assert read_given(pictures).classes == ("above", "below")
    (folder / "names.txt").write_text("below\nnone\nabove\n\n")
    names = read_names(folder / "names.txt")
    split = read_given(pictures, classes=names)
    assert split.classes == ("below", "none", "above")
    assert torch.bincount(split.labels).tolist() == [20, 0, 20]
    top = split.images[:, :, :4].float().mean((1, 2, 3))
    assert ((top > 110) == (split.labels == 2)).all()
    shutil.move(pictures, folder / "test")
    (folder / "more").mkdir()
    shutil.move(folder / "test", folder / "more" / "test")
    assert torch.equal(read_given(folder / "more", classes=names).images, split.images)
    with pytest.raises(UserError, match="has no train/"):
        read_given(folder / "more", part="train")
    np.savez(folder / "held.npz", images=split.images.permute(0, 2, 3, 1), labels=split.labels)
    held = read_given(folder / "held.npz", classes=names)
    assert torch.equal(held.images, split.images) and torch.equal(held.labels, split.labels)
    assert len(read_given(folder / "held.npz", 7).labels) == 7
    with zipfile.ZipFile(folder / "held.npz", "w") as archive:  # members that are no arrays
        archive.writestr("images", b"0123")
        archive.writestr("labels", b"0123")
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("again.npy", b"0123")
    with pytest.raises(UserError, match=r"held\.npz holds several arrays of one name"):
        read_given(folder / "held.npz")
    np.savez(folder / "held.npz", images=np.array(b"0123"), labels=split.labels)
    with pytest.raises(UserError, match=r"held\.npz holds \|S4 images"):
        read_given(folder / "held.npz")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda p: (p / "x.bmp").write_bytes(b""),
            "above/x.bmp' is neither PNG nor JPEG by its name",
        ),
        (lambda p: Image.new("L", (9, 8)).save(p / "x.png"), "is 9x8 pixels but most are 8x8"),
        (lambda p: (p / "x.png").write_bytes(b"no picture"), "no image that can be used"),
        (lambda p: (p / "x" / "y.png").mkdir(parents=True), "above/x' is out of place"),
        (lambda p: (p.parent / "x.png").touch(), "x.png' is out of place"),
        (lambda p: p.rename(p.parent / "other"), "'other' is none of the 2 classes"),
        (lambda p: (p.parent / "train").mkdir(), "has no test/"),
        (lambda p: shutil.rmtree(p.parent), "pictures does not exist; check --data"),
    ],
)
def test_pictures_that_cannot_be_used_are_named(folder, make, words):
    make(folder / "pictures" / "above")
    with pytest.raises(UserError, match=words):
        read_given(folder / "pictures", classes=("above", "below"))
