"""params.yaml: every wrong value is refused in one line that names key, value and range."""

import copy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from advprune.core import params
from advprune.core.errors import UserError
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
        ("recipes/masks", {"method": "standard"}, ["the name 'masks' is taken by the report"]),
        ("recipes/quantized", {}, ["the name 'quantized' is taken by the report"]),
        ("protocol/odd", {"a": {}}, ["no recipe 'odd'"]),
        ("protocol/mixed", {"dense": {}}, ["'dense' is named twice"]),
        ("profiles/digits/suite/randomized", ["eit"], ["suite.randomized", "'eit'", "field"]),
        ("profiles/digits/suite/table", ["field", "square"], ["suite.table", "'square'"]),
        ("profiles/digits/suite/transfer", ["field", "square"], ["suite.transfer", "'square'"]),
        ("profiles/digits/suite/transfer", ["eit", "field"], ["suite.transfer", "'eit'"]),
        ("profiles/digits/suite/transfer", [], ["suite.transfer"]),
        (
            "profiles/digits/suite/transfer",
            ["momentum"],
            ["attack.main: 'field' is not in profiles.digits.suite.transfer (momentum)"],
        ),
        (
            "profiles/digits/suite/table",
            ["published_10"],
            ["attack.main: 'field' is not in profiles.digits.suite.table (published_10)"],
        ),
        ("profiles/digits/attacks/x", {"method": "fab"}, ["attacks.x", "known: pgd, square"]),
        ("profiles/digits/attacks/square/queries", 0, ["square.queries", "0"]),
        ("profiles/digits/attacks/eot/draws", 0, ["eot.draws", "0"]),
        ("profiles/digits/attacks/eot/backward", "none", ["eot.backward", "none"]),
        ("profiles/digits/attacks/worst_case", {"eps": 0, "step": 0}, ["'worst_case' is taken"]),
        ("attack/score_draws", 1, ["attack.score_draws", "1"]),
        ("prune", {"dense": 1}, ["prune: the name 'dense' is taken already"]),
        ("masks", {"int8": 4}, ["masks: the name 'int8' is taken already"]),
        ("masks", {"E": 4}, ["masks: the name 'E' is taken already"]),
        ("prune/GAP_layer", 4, ["masks: the name 'GAP_layer' is taken already"]),
        ("masks", {"dense": 4}, ["masks: the name 'dense' is taken already"]),
        ("masks", {"a b": 4}, ["masks", "a b"]),
        ("quantized/dense", {"bits": 4}, ["quantized: the name 'dense' is taken already"]),
        ("quantized/int8", {"bits": 4}, ["quantized: the name 'int8' is taken already"]),
        ("quantized/E", {"bits": 4}, ["quantized: the name 'E' is taken already"]),
        ("quantized/random", {"of": "dense"}, ["quantized: the name 'random' is taken already"]),
        ("quantized/int4/of", "GAP", ["quantized.int4.of", "no model 'GAP'", "GAP_layer, R, S"]),
        ("quantized/int4/of", "int8", ["quantized.int4.of", "no model 'int8'"]),
        ("quantized/int4/of", "qat4", ["quantized.int4.of", "no model 'qat4'"]),
        ("quantized/int4/bits", 1, ["quantized.int4.bits", "1"]),
        ("quantized/int4/bits", 16, ["quantized.int4.bits", "16"]),
        ("quantized/qat4/training/lr", 0, ["quantized.qat4.training.lr", "0"]),
        ("quantized/qat4/training/method", "free", ["qat4.training.method", "free"]),
        ("substitutes/GAP", {}, ["substitutes: there is no model 'GAP' on the first base"]),
        ("substitutes/seed1", {}, ["substitutes: there is no model 'seed1'"]),
        ("surrogates/seed1/architecture", "vgg", ["surrogates.seed1.architecture", "vgg"]),
        ("surrogates/seed1/width", 0, ["surrogates.seed1.width", "0"]),
        ("surrogates/seed1/epochs", 0, ["surrogates.seed1.epochs", "0"]),
        ("surrogates/seed1/lr", 1, ["surrogates.seed1.lr", "not permitted"]),
        ("bitflip/dense_8", {"of": "dense"}, ["bitflip.dense_8.base"]),
        ("bitflip/dense_8/base", "odd", ["bitflip.dense_8.base", "no recipe 'odd'", "clustered"]),
        (
            "bitflip/dense_8/of",
            "int8",
            ["bitflip.dense_8.of", "'int8' holds integers", "GAP_layer"],
        ),
        ("bitflip/dense_8/of", "qat4", ["bitflip.dense_8.of", "'qat4' holds integers"]),
        ("bitflip/dense_8/of", "GAP", ["bitflip.dense_8.of", "'GAP' is not made on standard"]),
        (
            "bitflip/magnitude_8/base",
            "robust",
            ["'magnitude_global' is not made on robust", "dense, E, "],
        ),
        ("bitflip/clustered_8/of", "E", ["'E' is not made on clustered", "there: dense"]),
        ("bitflip/dense_8/bits", 9, ["bitflip.dense_8.bits", "9"]),
        ("bitflip/dense_8/scale", "row", ["bitflip.dense_8.scale", "row", "channel"]),
        ("bitflip/dense_8/variants", ["random"], ["bitflip.dense_8.variants", "random", "margin"]),
        ("bitflip/dense_8/budget", 0, ["bitflip.dense_8.budget", "0"]),
        ("profiles/digits/bitflip/seeds", 0, ["digits.bitflip.seeds", "0"]),
        ("profiles/digits/bitflip/stop", 0, ["digits.bitflip.stop", "0"]),
        ("recipes/clustered/clustering", -1, ["recipes.clustered.clustering", "-1"]),
        ("compression", {"random": []}, ["compression.random"]),
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
    with pytest.raises(UserError, match="no family 'GAPP'; known: AWT, DWP, E, ESR"):
        check_settings(read)
    read = loaded(tmp_path, ("masks/GAP_layer/compression", 0.5))
    with pytest.raises(UserError, match=r"masks\.GAP_layer.*compression.*0\.5"):
        check_settings(read)
    read = loaded(tmp_path, ("compression/random", [4, {"sparsity": 1.5}]))
    with pytest.raises(UserError, match=r"compression\.random.*sparsity.*1\.5"):
        check_settings(read)
    read = loaded(tmp_path, ("masks/GAPP", 4))
    with pytest.raises(UserError, match=r"masks\.GAPP: there is no family 'GAPP'"):
        check_settings(read)
    read = loaded(tmp_path, ("protocol/standard/RNA/setting", -1))
    with pytest.raises(UserError, match=r"protocol.standard.RNA: sigma.*-1"):
        check_settings(read)


def test_masks_and_quantized_models_are_on_the_first_base_alone_and_tickets_on_theirs(
    tmp_path: Path,
) -> None:
    read = loaded(
        tmp_path,
        ("bases", ["standard", "robust"]),
        ("prune", {"E": 1e-2}),
        ("masks", {"GAP_layer": {"sparsity": 0.9}, "random": 4}),
        ("ticket_base", "robust"),
        ("tickets", {"HYDRA": 0.9}),
        ("quantized", {"copy": {"of": "E", "bits": 4}, "small": {"of": "GAP_layer"}}),
        ("binary", {"BNN": {"channels": "base"}}),
        ("substitutes", {"small": {}, "dense": {}}),
        ("bitflip", {"E_1": {"of": "E", "base": "robust", "bits": 1}}),
    )
    masked = ["GAP_layer", "random"]
    assert read.models("standard") == ["dense", "int8", "E", *masked, "copy", "small", "BNN"]
    assert read.models("robust") == ["dense", "int8", "E", "HYDRA"]
    assert list(read.settings("standard")) == ["E", *masked]
    assert read.settings("standard")["GAP_layer"] == {"sparsity": 0.9}
    assert list(read.settings("robust")) == ["E", "HYDRA"]


def test_masks_quantized_models_and_networks_of_the_attacker_may_be_left_out(
    tmp_path: Path,
) -> None:
    models = ("masks", "compression", "quantized", "binary")
    names = (*models, "surrogates", "substitutes", "bitflip")
    read = loaded(tmp_path, *((name, {}) for name in names))
    assert all(getattr(read, name) == {} for name in names)
    raw = {key: value for key, value in RAW.items() if key not in names}
    assert params.parse(params.Params, raw, "here") == read
    assert read.models(read.bases[0]) == ["dense", "int8", *read.prune]


def test_attacks_whose_images_are_kept_are_named_once(tmp_path: Path) -> None:
    place = "profiles/digits/suite/"
    read = loaded(
        tmp_path,
        (place + "table", ["published_10", "field"]),
        (place + "transfer", ["momentum", "field"]),
        (place + "quantized", ["margin", "momentum"]),
    ).active()
    assert read.suite.kept == ["published_10", "field", "momentum"]
    assert read.suite.of("quantized") == ["published_10", "field", "momentum", "margin"]
    assert list(read.exchanged()) == ["momentum", "field"]
    assert list(read.table()) == ["published_10", "field"]
    assert read.exchanged()["momentum"] is read.attacks["momentum"]


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
