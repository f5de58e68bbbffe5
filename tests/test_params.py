"""params.yaml: every wrong value is refused in one line that names key, value and range."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from advprune import params
from advprune.errors import UserError
from advprune.pruning import check_settings, families

ROOT = Path(__file__).parent.parent
RAW = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))


def loaded(tmp_path: Path, *changes: tuple[str, Any]) -> params.Params:
    """params.yaml with some dotted keys changed, written out and read back."""
    raw = copy.deepcopy(RAW)
    for key, value in changes:
        *parents, last = key.split("/")
        place = raw
        for parent in parents:
            place = place[parent]
        place[last] = value
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe", pure=True).dump(raw, file)
    return params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", sorted(RAW["profiles"]))
def test_the_committed_settings_are_valid_in_every_profile(profile: str) -> None:
    read = params.load(ROOT / "params.yaml", profile=profile)
    assert read.active() == read.profiles[profile]
    check_settings(read)
    assert set(read.prune) <= set(families())


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "0.00001", "1.0e-5"])
def test_numbers_as_dvc_writes_them_are_numbers(tmp_path: Path, text: str) -> None:
    content = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(
        content.replace("  E: 1.0e-2\n  # W", f"  E: {text}\n  # W")
    )
    assert params.load(tmp_path / "params.yaml").prune["E"] == 1e-5


def test_fractions_are_read_once(tmp_path: Path) -> None:
    field = "profiles/digits/attacks/field/"
    read = loaded(tmp_path, (field + "eps", "8/255"), (field + "step", " 2 / 255 "))
    assert read.active().attacks["field"].eps == 8 / 255
    assert read.active().attacks["field"].step == 2 / 255


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("profiles/digits/attacks/field/eps", "300/255", ["attacks.field", "between 0 and 1"]),
        ("profiles/digits/attacks/field/eps", "8/0", ["attacks.field.eps", "8/0", "fraction"]),
        ("profiles/digits/attacks/field/eps", "eight", ["attacks.field.eps", "eight"]),
        ("profiles/digits/attacks/field/eps", -0.1, ["attacks.field.eps", "-0.1"]),
        ("profiles/digits/attacks/field/norm", "L1", ["attacks.field.norm", "L1", "Linf"]),
        ("profiles/digits/curves/eps", [], ["curves.eps"]),
        ("profiles/digits/curves/eps", [2], ["curves.eps", "between 0 and 1", "2"]),
        ("profiles/digits/train/lr", float("inf"), ["train.lr", "inf"]),
        ("profiles/digits/train/epochs", 0, ["train.epochs", "0"]),
        ("profiles/digits/train/epoch", 3, ["train.epoch", "not permitted"]),
        ("profiles/digits/model/width", "wide", ["model.width", "wide"]),
        ("profiles/digits/data/val_fraction", 1.2, ["data.val_fraction", "1.2"]),
        ("profiles/cifar10/model/weights", {"a": {"path": "x", "sha256": "q"}}, ["a.sha256", "q"]),
        ("profile", "cifar", ["no profile 'cifar'", "cifar10-small"]),
        ("attack/main", "pgd", ["attack.main", "'pgd'", "field"]),
        ("attack/extra", [{"name": "PGD"}] * 2, ["attack.extra", "'PGD' is taken", "label"]),
        ("attack/extra", [{"name": "X", "label": "field"}], ["'field' is taken"]),
        ("seed", -1, ["seed", "-1"]),
        ("quantize/bits", 16, ["quantize.bits", "16"]),
        ("bases", [], ["bases"]),
        ("bases", ["standard", "odd"], ["no recipe 'odd'", "mixed"]),
        ("bases", ["standard", "standard"], ["bases", "twice"]),
        ("recipes", {"standard": {"method": "free"}}, ["recipes.standard.method", "free"]),
        ("protocol/odd", {"a": {}}, ["no recipe 'odd'"]),
        ("protocol/mixed", {"dense": {}}, ["'dense' is named twice"]),
        ("profiles/digits/suite/randomized", ["eit"], ["suite.randomized", "'eit'", "field"]),
        ("profiles/digits/suite/table", ["field", "square"], ["suite.table", "'square'"]),
        ("profiles/digits/attacks/x", {"method": "fab"}, ["attacks.x", "known: pgd, square"]),
        ("profiles/digits/attacks/square/queries", 0, ["square.queries", "0"]),
        ("profiles/digits/attacks/eot/draws", 0, ["eot.draws", "0"]),
        ("profiles/digits/attacks/eot/backward", "none", ["eot.backward", "none"]),
        ("profiles/digits/attacks/worst_case", {"eps": 0, "step": 0}, ["'worst_case' is taken"]),
        ("attack/score_draws", 1, ["attack.score_draws", "1"]),
        ("prune", {"dense": 1}, ["'dense' is taken"]),
        ("prune", {"a b": 1}, ["prune", "a b"]),
        ("sweep", {"E": []}, ["sweep.E"]),
    ],
)
def test_wrong_values_are_refused_by_name(
    tmp_path: Path, key: str, value: Any, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        loaded(tmp_path, (key, value))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_sweeps_and_points_of_families_are_checked_before_anything_runs(tmp_path: Path) -> None:
    read = loaded(tmp_path, ("sweep/E", [1e-3, -2]))
    with pytest.raises(UserError, match=r"sweep.E: threshold.*-2"):
        check_settings(read)
    read = loaded(tmp_path, ("prune/GAPP", 1))
    with pytest.raises(UserError, match="no family 'GAPP'; known: DWP, E, ESR"):
        check_settings(read)
    read = loaded(tmp_path, ("protocol/standard/RNA/setting", -1))
    with pytest.raises(UserError, match=r"protocol.standard.RNA: sigma.*-1"):
        check_settings(read)


@pytest.mark.parametrize(("content", "words"), [("a: [1", "not valid YAML"), ("", "no settings")])
def test_a_broken_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=words):
        params.load(tmp_path / "params.yaml")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*params\.yaml"):
        params.load(tmp_path / "params.yaml")


def test_an_extra_attack_keeps_its_own_arguments(tmp_path: Path) -> None:
    extra = [{"name": "MIFGSM", "eps": "8/255", "steps": 5, "loss": "ce"}]
    read = loaded(tmp_path, ("attack/extra", extra))
    assert read.attack.extra[0].arguments() == {"eps": 8 / 255, "steps": 5, "loss": "ce"}
