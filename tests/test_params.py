"""params.yaml: every wrong value is refused in one line that names key, value and range."""

import copy

import pytest
import settings
from ruamel.yaml import YAML
from workspace import RAW, ROOT

from advprune.core import params
from advprune.core.errors import UserError

COMMITTED = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
EPS = 48 / 255  # of the profile digits
DENSE = "dense-standard, dense-robust"
SIX, NINE = ({"method": "pgd", "epochs": epochs, "steps": 3} for epochs in (6, 9))
LWM = {"family": "LWM", "setting": {"sparsity": 0.95, "finetune": NINE}}
HYDRA = {"family": "HYDRA", "setting": {"sparsity": 0.95, "finetune": SIX}}
MASK = {"family": "HYDRA", "setting": {"sparsity": 0.95, "scores": NINE | {"steps": 4}}}
ADAM = {"step": 0.01, "adam": True}
NEAR = {"method": "square", "queries": 300, "within": "2*eps"}


def loaded(*changes):
    """params.yaml with some keys (with slashes) changed, checked as a file is."""
    raw = copy.deepcopy(RAW)
    for key, value in changes:
        *parents, last = key.split("/")
        place = raw
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    read = params.parse(params.Params, raw, params.FILE)
    read.active()
    return read


def checked(read):
    """The same, with what is typed elsewhere checked as the stage settings does."""
    settings.check(read)
    return read


def made(**change):
    """E-standard as an entry of `models`, changed."""
    return "models/E-standard", {"do": "prune", "of": "dense-standard", "by": "prune.E"} | change


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_settings_are_valid_in_every_profile(path):
    for profile in params.load(path).profiles:
        read = checked(params.load(path, profile=profile))
        assert set(read.leaderboard()) | set(read.attackers()) == {*read.dense(), *read.models}


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_a_wider_run_attacks_as_the_default_run_does(path):
    default, wide = RAW, YAML(typ="safe", pure=True).load(path)
    for section in ("attack", "attacks", "suite", "curves", "protocol", "flips", "statistics"):
        assert wide[section] == default[section], section
    for name in wide["profiles"].keys() & default["profiles"].keys():
        own, usual = copy.deepcopy(wide["profiles"][name]), default["profiles"][name]
        for model in set(given := own["model"].get("weights", {})) & set(wide["models"]):
            del given[model]  # a finished one
        assert own == usual


@pytest.mark.parametrize("text", ["1e-5", "1e-05", "0.00001", "1.0e-5"])
def test_numbers_as_dvc_writes_them_are_numbers(tmp_path, text):
    content = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(content.replace("  E: 1.0e-2\n  S", f"  E: {text}\n  S"))
    assert params.load(tmp_path / "params.yaml").prune["E"] == 1e-5


@pytest.mark.parametrize(
    ("setting", "eps", "step"),
    [
        ({"step": "eps/4"}, EPS, EPS / 4),
        ({"eps": "eps/2", "step": "eps/4"}, EPS / 2, EPS / 8),  # the step follows its own budget
        ({"eps": "2*eps", "step": " eps / 3 "}, 2 * EPS, 2 * EPS / 3),
        ({"eps": "8/255", "step": "eps"}, 8 / 255, 8 / 255),
        ({"eps": 0.03, "step": " 2 / 255 "}, 0.03, 2 / 255),
        ({"norm": "L2", "eps": 1.5, "step": "0.5*eps/2"}, 1.5, 0.375),
    ],
)
def test_budgets_are_relative_to_the_profiles(tmp_path, setting, eps, step):
    attack = loaded(("attacks/mine", setting)).active().attacks["mine"]
    assert (attack.eps, attack.step) == pytest.approx((eps, step), rel=1e-12)


def test_all_budgets_of_a_profile_follow_its_eps():
    read = loaded(("profiles/digits/eps", "12/255")).active()
    eps = 12 / 255
    assert read.train.eps == eps
    assert read.curves.eps[:3] == pytest.approx([eps / 4, eps, 2 * eps])
    assert read.protocol.eps[-1] == eps / 2 and read.protocol.iterative.step == eps / 4
    half = read.protocol.adaptive["constant_1"]
    assert (half.eps, half.step) == (eps / 2, eps / 16)
    own = loaded(("profiles/digits/train/eps", "eps/2")).active().train
    assert own.eps == EPS / 2
    long = ("profiles/digits/norm", "L2"), ("profiles/digits/eps", 1.5)
    with pytest.raises(UserError, match=r"digits\.train\.eps: write the budget of training, which"):
        loaded(*long)
    own = loaded(*long, ("profiles/digits/train/eps", "8/255")).active()
    assert (own.eps, own.train.eps) == (1.5, 8 / 255)
    with pytest.raises(UserError, match="protocol: the protocol is of Linf, this profile of L2"):
        checked(loaded(*long, ("profiles/digits/train/eps", "8/255")))


def test_a_profile_overrides_key_by_key():
    read = loaded(
        ("profiles/digits/attacks/momentum", {"steps": 30}),
        ("profiles/digits/attacks/own", {"step": "eps"}),
        ("profiles/digits/suite", {"table": ["published_10", "field"], "quantized": ["momentum"]}),
        ("profiles/digits/flips", {"seeds": 2}),
    ).active()
    momentum = read.attacks["momentum"]
    assert (momentum.steps, momentum.momentum, momentum.step) == (30, 1.0, EPS / 4)
    assert read.attacks["own"].step == EPS and next(iter(read.attacks)) == "field"
    assert (read.flips.seeds, read.flips.budget) == (2, 100)
    assert read.suite.deterministic == ["apgd_ce", "apgd_t", "square", "distance", "apgd_near"]
    # attacks whose images are kept come first, and each is named once
    assert read.suite.kept == ["published_10", "field", "momentum"]
    assert read.suite.of("quantized") == read.suite.kept
    assert list(read.table()) == ["published_10", "field"]
    assert list(read.transferred()) == ["field", "momentum"]
    assert read.transferred()["momentum"] is read.attacks["momentum"]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        # models
        (*made(of="dense-odd"), ["models.E-standard.of", "no model 'dense-odd'", DENSE]),
        (*made(by="prune.X"), ["models.E-standard.by", "no 'prune.X'", "under prune: E, S, R"]),
        (*made(by="quantize.int8"), ["models.E-standard.by", "prune takes prune.<name>"]),
        (*made(do="train"), ["train takes binary.<name> or surrogates.<name> or subst"]),
        (*made(do="attack"), ["models.E-standard.do", "attack", "quantize"]),
        (*made(of="seed1"), ["models.E-standard.of", "'seed1' is an attacker's own network"]),
        (*made(of="E-standard"), ["E-standard of E-standard is circular"]),
        ("models/GAP_layer-standard/of", "x-standard", ["no model 'x-standard'", DENSE]),
        ("models/dense-robust", made()[1], ["the name of a recipe's network"]),
        ("models/x", {"do": "prune", "of": "dense-standard"}, ["models.x.by", "required"]),
        ("recipes/standard", {"method": "free"}, ["recipes.standard.method", "free"]),
        ("recipes", {"other": {}}, ["E-standard.of", "no model 'dense-standard'"]),
        ("surrogates", {}, ["models.seed1.by", "known under surrogates: none"]),
        # settings
        ("quantize/int4/bits", 16, ["quantize.int4.bits", "16"]),
        ("binary/BNN/channels", "grown", ["binary.BNN", "needs a mapping `growth:`"]),
        ("surrogates/seed1/architecture", "vgg", ["surrogates.seed1.architecture", "vgg"]),
        ("recipes/robust/ema", 0.9, ["recipes.robust.ema", "not permitted"]),  # once an option
        ("bases", ["standard"], ["bases", "not permitted"]),
        # studies
        ("studies/sweep/of", "X", ["studies.sweep.of", "no model 'X'", DENSE]),
        # families and studies, which are checked where they are typed
        ("prune/GAPP", 1, ["prune.GAPP: there is no family 'GAPP'; known: AWT, E, ESR, GAP"]),
        ("prune/mine", {"family": "odd"}, ["prune.mine: there is no family 'odd'"]),
        ("profiles/digits/eps", True, ["profiles.digits.eps: write the budget"]),
        ("prune/mine", {"family": "E", "threshold": -2}, ["prune.mine: threshold", "-2"]),
        ("studies/x", {"study": "fit", "of": "seed1"}, ["studies.x.study: there is no kind 'fit'"]),
        ("studies/sweep/points/E", [1e-3, -2], ["studies.sweep.points.E.1: threshold", "-2"]),
        ("studies/compression/points/random", [0.5], ["points.random.0: compression", "0.5"]),
        ("studies/seeds/points", {"L": LWM | {"setting": 1.5}}, ["points.L: sparsity", "1.5"]),
        ("studies/seeds/points/BNN", {"family": "BNN", "setting": {"channels": "grown"}}, ["BNN"]),
        # comparisons that could never be significant, with the number that could
        ("profiles/digits/flips", {"seeds": 3}, ["seeds: with 3 batches none of 2", "5 batches"]),
        ("profiles/digits/protocol/images", 32, ["images: 32 images at 3", "12.2", "73 images"]),
        ("studies/seeds/seeds", 1, ["studies.seeds.seeds: points are compared over 2"]),
        ("profiles/digits/data/test_limit", 30, ["12.2 points"]),
        ("studies/flips-dense/bits", 9, ["studies.flips-dense: bits", "9"]),
        # attacks
        ("attacks/field/eps", "300/255", ["attacks.field", "between 0 and 1"]),
        ("attacks/field/eps", "8/0", ["attacks.field.eps", "8/0", "fraction"]),
        ("attacks/field/step", "esp/4", ["attacks.field.step", "esp/4"]),
        ("attacks/field/step", "eps/0", ["attacks.field.step", "eps/0"]),
        ("attacks/x", {"method": "fab"}, ["attacks.x.method: there is no attack 'fab'; known: a"]),
        ("attacks/square/steps", 5, ["attacks.square: steps", "not permitted"]),
        ("attacks/apgd_t/eps", "eps/2", ["apgd_t.after", "of the same budget"]),
        ("attacks/apgd_t/after", "apgd", ["apgd_t.after: name another attack (fi"]),
        ("attacks/eot/after", "apgd_ce", ["eot.after: name apgd_ce before eot in suite.r"]),
        ("attacks/square/after", "autoattack", ["square.after: name another", "on every image"]),
        ("attacks/momentum/after", "field", ["momentum.after", "table and transfer take every"]),
        ("attacks/apgd_near/after", "apgd_ce", ["near.within: apgd_ce finds no distances"]),
        (
            "attacks/x",
            {"after": "distance"} | NEAR,
            ["x.within: only of method apgd; leave"],
        ),
        ("attacks/distance/after", "apgd_ce", ["distance.after: searches for distances"]),
        (
            "attacks/x",
            {"method": "hopskipjump", "after": "apgd_ce"},
            ["x.after: searches for distances", "leave after out"],
        ),
        ("attacks/apgd_ce/within", "2*eps", ["apgd_ce.after: name another attack"]),
        ("attacks/apgd_near/within", "eps", ["near.within: what lies within the budget is"]),
        ("attacks/apgd_near/after", "apgd_near", ["apgd_near.after: name another attack"]),
        (
            "suite/binary",
            ["apgd_ce", "apgd_near"],
            ["within: name distance before apgd_near in"],
        ),
        (
            "profiles/digits/suite",
            {"randomized": ["distance", "apgd_near"]},
            ["within: take apgd_near out of suite.randomized"],
        ),
        (
            "profiles/digits/suite/randomized",
            ["distance", "apgd_near"],
            ["take apgd_near out of suite.randomized"],
        ),
        ("studies/seeds/attacks", ["apgd_near"], ["studies.seeds.attacks: apgd_near begins"]),
        ("studies/seeds/attacks", ["far"], ["studies.seeds.attacks: 'far' is not among field"]),
        (
            "profiles/digits/norm",
            "L2",
            ["digits.train.eps: write the budget of training, which is in"],
        ),
        ("attacks/x", ADAM | {"norm": "L2"}, ["attacks.x.adam: of Linf alone; leave it out"]),
        ("attacks/x", ADAM | {"momentum": 1}, ["attacks.x", "adam has a momentum of its own"]),
        ("studies/seeds/of", "E-robust", ["studies.seeds.of: E-robust is no dense network"]),
        ("protocol/iterative/after", "field", ["protocol: iterative: after and within are of"]),
        ("suite/binary", ["square", "apgd_t"], ["suite.binary", "apgd_t before square"]),
        ("profiles/digits/attacks/square/draws", 0, ["attacks.square: draws", "0"]),
        ("attacks/field/steps", 5, ["yaml: attacks.field: 5 steps", "cannot cross the ball"]),
        ("attacks/eot/steps", 5, ["attacks.eot: 5 steps of", "cannot cross the ball"]),
        ("recipes/robust", {"method": "pgd", "steps": 3, "step": 0.25}, ["robust", "cannot cross"]),
        ("prune/LWM/finetune/epochs", 11, ["LWM.finetune.epochs: 11 here, and 12 in prune.HYDRA"]),
        ("studies/seeds/points", {"H": HYDRA, "L": LWM}, ["points.L.finetune", "6", "9"]),
        ("prune/LWM/finetune/steps", 4, ["prune.LWM.finetune.steps: 4 here, and 3 in prune.HYDRA"]),
        ("prune/LWM/finetune/method", "trades", ["finetune.method: trades here, and pgd in"]),
        ("studies/seeds/points", {"H": MASK, "L": LWM}, ["points.L.finetune.steps: 3 here, and 4"]),
        ("prune/AWT/train/epochs", 50, ["random_ticket.train.epochs: 12 here, and 50"]),
        ("prune/dense_ticket/gauge", {"batch": 8}, ["dense_ticket.gauge.batch: 8 here, and 64"]),
        ("prune/HYDRA/scores/step", "eps/4", ["prune.HYDRA: scores", "cannot cross the ball"]),
        ("attacks/probe_noise", {"step": 0}, ["'probe_noise' is taken"]),
        ("attack/main", "pgd", ["attack.main", "'pgd'", "field"]),
        ("attack/extra", [{"name": "PGD"}] * 2, ["attack.extra", "'PGD' is taken", "label"]),
        ("attack/extra", [{"name": "X", "label": "field"}], ["'field' is taken"]),
        ("attack/extra", [{"name": "PGD", "eps": "/"}], ["attack.extra.0.eps: write a number or"]),
        ("suite/binary", ["eit"], ["suite.binary", "'eit'", "field"]),
        ("suite/table", ["field", "square"], ["suite.table", "'square'", "PGD"]),
        ("suite/transfer", ["momentum"], ["attack.main: 'field' is not in suite.transfer (mom"]),
        # profiles
        ("profile", "cifar", ["no profile 'cifar'", "cifar10-small"]),
        ("profiles/digits/eps", None, ["profiles.digits.eps", "such as 8/255"]),
        ("profiles/digits/eps", float("inf"), ["profiles.digits.eps: a budget is", "inf"]),
        ("profiles/digits/eps", 2, ["profiles.digits.eps: a budget", "between 0 and 1", "2"]),
        ("profiles/digits/eps", "0.9/255", ["profiles.digits.eps: in images of 8 bits nothing"]),
        ("profiles/digits/attacks", [1], ["profiles.digits.attacks: write a mapping", "[1]"]),
        ("profiles/digits/protocol/adaptive", [1], ["protocol.adaptive: write a mapping", "[1]"]),
        ("profiles/digits/curves/eps", [2], ["curves.eps", "between 0 and 1", "2"]),
        ("profiles/digits/train/lr", float("inf"), ["train.lr", "inf"]),
        ("profiles/digits/train/epoch", 3, ["train.epoch", "not permitted"]),
        ("profiles/digits/model/width", "wide", ["model.width", "wide"]),
        ("profiles/digits/model", {"architecture": "torchvision/x"}, ["take BNN-standard, "]),
        ("profiles/digits/model", {"weights": {"a": {"path": "x", "sha256": "q"}}}, ["a.sha256"]),
    ],
)
def test_wrong_values_are_refused_by_name(key, value, words):
    with pytest.raises(UserError) as error:
        checked(loaded((key, value)))
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_eight_comparisons_of_five_batches_are_refused_and_one_study_never_is():
    """The smallest possible p was 0.063; "2.0 against 14.4 flips" read "no difference is shown"."""
    flips = {"study": "bitflip", "of": "dense-standard", "bits": 8, "scale": "layer"}
    others = {f"flips-{name}": flips | {"of": f"{name}-standard"} for name in "ESR"}
    others |= {f"more-{bits}": flips | {"bits": bits} for bits in (2, 3, 4, 5, 6)}
    few = ("profiles/digits/flips", {"seeds": 5})
    with pytest.raises(UserError, match=r"5 batches none of 8 .*p >= 0.063.* 6 batches are enough"):
        checked(loaded(("studies", {"flips-dense": flips} | others), few))
    checked(loaded(("studies", {"flips-dense": flips}), ("profiles/digits/flips", {"seeds": 1})))
    members = {"dense": {}, "dropout": {"family": "dropout", "setting": 0.1}}
    protocol = {"study": "protocol", "of": "dense-standard", "members": members}
    checked(loaded(("studies", {"p": protocol}), ("profiles/digits/protocol/images", 5)))


def test_models_by_name():
    read = loaded(
        ("prune/HYDRA_95", {"family": "HYDRA", "sparsity": 0.95}),
        ("models/zero", {"do": "prune", "of": "dense-robust", "by": "prune.HYDRA_95"}),
        ("models/small", {"do": "quantize", "of": "zero", "by": "quantize.int4"}),
        ("models/copy", {"do": "train", "of": "zero", "by": "substitutes.short"}),
    )
    board = read.leaderboard()
    assert board[0] == "dense-standard" and board[-2:] == ["zero", "small"]
    of_standard = [n for n in board[1:] if read.root(n) == "dense-standard"]
    assert board.index("dense-robust") == 1 + len(of_standard)
    assert read.attackers() == ["seed1", "copy"] and not {"seed1", "copy"} & set(board)
    assert [read.root(n) for n in ("small", "copy", "dense-robust")] == ["dense-robust"] * 3
    names = ("dense-robust", "zero", "small")
    assert [read.family(n) for n in names] == ["dense", "HYDRA_95", "int4"]
    assert read.setting("zero") == {"family": "HYDRA", "sparsity": 0.95}
    assert read.setting("small").bits == 4 and read.setting("dense-robust").method == "pgd"


def test_mappings_may_be_empty_or_left_out():
    names = ("prune", "quantize", "binary", "surrogates", "substitutes", "models", "studies")
    read = loaded(*((name, {}) for name in names))
    assert read.leaderboard() == read.dense() and read.attackers() == []
    raw = {key: value for key, value in RAW.items() if key not in names}
    assert params.parse(params.Params, raw, "here") == read
    kept = {name: one for name, one in RAW["models"].items() if name != "seed1"}
    assert checked(loaded(("surrogates", {}), ("models", kept))).attackers() == []


def test_an_extra_attack_keeps_its_own_arguments():
    extra = [{"name": "MIFGSM", "eps": "8/255", "steps": 5, "loss": "ce"}]
    read = loaded(("attack/extra", extra))
    assert read.attack.extra[0].arguments() == {"eps": 8 / 255, "steps": 5, "loss": "ce"}
