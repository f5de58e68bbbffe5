"""The study over seeds: intervals against their limits and simulation, and tiny runs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from scipy.stats import t, ttest_1samp
from torch import nn
from workspace import ROOT

from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.resume import Parts
from advprune.core.settings import parse
from advprune.data import Split
from advprune.evaluate.craft import Work, craft, rows
from advprune.evaluate.means import mean
from advprune.evaluate.seeds import seeded_points
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.report.read import COLUMNS
from advprune.studies import Given, run_study
from advprune.training.inputs import Inputs
from advprune.training.networks import load_or_train
from conftest import stored

CPU = torch.device("cpu")


# --- intervals -----------------------------------------------------------------------------------
@pytest.mark.parametrize("seeds", [1, 3])
def test_with_one_or_equal_seeds_the_interval_is_that_over_images(seeds):
    images = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], float)
    found, expected = mean(np.tile(images, (seeds, 1))), ttest_1samp(images, 0)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)
    assert (found.freedom, found.seeds, found.images) == (pytest.approx(9), seeds, 10)
    assert found.deviation == (pytest.approx(0) if seeds > 1 else None)


def test_with_equal_images_the_interval_is_that_over_seeds():
    seeds = np.array([0.5, 0.7, 0.9, 0.6])
    found = mean(np.tile(seeds[:, None], (1, 50)))
    low, high = ttest_1samp(seeds, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.freedom == pytest.approx(3) and found.deviation == pytest.approx(seeds.std(ddof=1))


def test_mean_squares_by_hand():
    """Rows (1, 1, 0), (1, 0, 0): rows' means 2/3 and 1/3, columns' 1, 1/2 and 0, the whole 1/2.

    a = 3 (1/36 + 1/36) / 1 = 1/6, b = 2 (1/4 + 0 + 1/4) / 2 = 1/2; of 1 and of 2 degrees.
    """
    found = mean(np.array([[1, 1, 0], [1, 0, 0]]))
    error, freedom = (4 / 6 / 6) ** 0.5, (16 / 36) / (1 / 36 + 1 / 8)
    assert (found.value, found.error, found.freedom) == pytest.approx((0.5, error, freedom))
    assert found.interval[1] == pytest.approx(0.5 + t.ppf(0.975, freedom) * error)
    assert found.p == pytest.approx(2 * t.sf(0.5 / error, freedom))


def test_where_nothing_varies_there_is_no_doubt():
    nothing, something = mean(np.zeros((3, 5))), mean(np.ones((3, 5)))
    assert nothing.p == 1.0 and something.p == 0.0 and something.interval == (1.0, 1.0)


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.0, 1.5), (0.1, 1.5), (0.1, 0.2)])
def test_the_interval_holds_for_other_seeds_and_images(of_seeds, of_images):
    """Right where seed + image + noise > 0, all normal: the true mean is 1/2, by symmetry."""
    random, held, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        seeds = random.normal(0, of_seeds, (3, 1))
        images = random.normal(0, of_images, (1, 150))
        low, high = mean(seeds + images + random.normal(0, 1, (3, 150)) > 0).interval
        held += low <= 0.5 <= high
    assert 0.93 <= held / runs <= 0.99


# --- runs ----------------------------------------------------------------------------------------
RAW = YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text(encoding="utf-8"))
SCORES = {"method": "standard", "epochs": 1}
POINTS = {
    "half": {"family": "LWM", "setting": {"sparsity": 0.5, "finetune": {"epochs": 1, "lr": 0.05}}},
    "sub": {"family": "HYDRA", "setting": {"sparsity": 0.25, "scores": SCORES}},
    "bits": {"family": "BNN", "setting": {"epochs": 1, "lr": 0.1}},
    "ticket": {
        "family": "random_ticket",
        "setting": {"sparsity": 0.5, "gauge": {"batch": 2, "attack_steps": 1}, "train": None},
    },
}


def chosen(**changes):
    """Settings of a study that runs in a second."""
    profile = RAW["profiles"]["digits"]
    attacks = {"field": {"eps": 0.1, "step": 0.08, "steps": 2}}
    attacks |= {"few": {"eps": 0.1, "step": 0.1, "steps": 1}}
    profile = profile | {"attacks": attacks, "model": {"width": 2}}
    profile |= {"train": {"epochs": 1, "batch": 16}}
    study = {"study": "seeds", "of": "dense-robust", "seeds": 2, "attacks": ["few"]}
    study |= {"points": POINTS} | changes
    recipes = {"robust": {"method": "mixed"}}
    known = {"recipes": recipes, "models": {}, "studies": {"it": study}, "seed": 5}
    return parse(Params, RAW | known | {"profiles": {"digits": profile}}, "test")


def split(images, labels):
    """Digits as a split."""
    return Split((images * 255).to(torch.uint8), labels, tuple("0123456789"), "digits")


def network(given, seed):
    """The dense network of a seed, trained by itself."""
    state = given.parts.folder / f"elsewhere-{seed}.pt"
    inputs = Inputs(given.splits["train"], given.splits["val"], seed, CPU, state)
    return load_or_train(given.profile, "robust", given.params.recipes["robust"], inputs)[0]


def course(digits, folder, params):
    """The study on 40 digits to train on, 10 to choose by and 14 to attack."""
    parts = {"train": slice(40), "val": slice(40, 50), "test": slice(50, 64)}
    splits = {name: split(digits[0][part], digits[1][part]) for name, part in parts.items()}
    card = {"setting": params.recipes["robust"].model_dump()}
    known = "it", "dense-robust", params, nn.Identity(), card, {}, splits, Parts(folder, files=[])
    given = Given(*known, CPU)
    return replace(given, model=network(given, 5))


@pytest.fixture(scope="module")
def ran(digits, tmp_path_factory):
    given = course(digits, tmp_path_factory.mktemp("parts"), chosen())
    found = run_study("it", given)
    return given, found["records"], found["history"]


def test_every_point_is_attacked_once_a_seed(ran):
    _, records, histories = ran
    found = records.groupby(["point", "seed", "attack"]).size()
    names = ("dense", *POINTS)
    expected = {(p, seed, name) for p in names for seed in (5, 6) for name in ("field", "few")}
    assert set(found.index) == expected and (found == 14).all()
    bits = records[records.point == "bits"]
    assert set(bits.family) == {"BNN"}
    assert not np.array_equal(*(part.adv_margin.to_numpy() for _, part in bits.groupby("seed")))
    assert (records.base == "robust").all()
    shares = records.groupby("point")[["prune_ratio", "sparsity"]].mean()
    assert (shares.loc["dense"] == 0).all() and (shares.loc["half"] > 0.45).all()
    assert histories.point.tolist() == ["ticket"] * 2 and histories.seed.tolist() == [5, 6]
    assert (histories.kernel_distance > 0).all()


@pytest.mark.parametrize(("point", "seed"), [("half", 6), ("dense", 5)])
def test_records_are_those_of_the_pieces(ran, point, seed):
    """The dense network of the run's own seed is the one that the study is given."""
    given, records, _ = ran
    model, ratio = network(given, seed), 0.0
    if point == "half":
        data = Data(*given.train, given.profile.train)
        pruned = prune("LWM", model, POINTS["half"]["setting"], data, seed)
        model, ratio = pruned.model, pruned.ratio
    attack, (images, labels) = given.profile.attacks["field"], given.test
    work = Work(seed, given.profile.batch, given.params.attack.score_draws)
    crafted = craft(model, images, labels, attack, work)
    expected = rows(model, images, crafted, labels, "field", work)
    own = (records.point == point) & (records.seed == seed) & (records.attack == "field")
    found = records[own].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(expected)], expected)
    assert (found.sparsity == sparsity_of(model)).all() and (found.prune_ratio == ratio).all()


def test_images_of_each_dense_network_are_tried_on_the_points(digits, tmp_path):
    changes = {"transfer": True, "attacks": [], "points": {"half": POINTS["half"]}}
    given = course(digits, tmp_path, chosen(**changes))
    records = run_study("it", given)["records"]
    sizes = records.groupby(["point", "attack"]).size().to_dict()
    sent = ("half", "from_dense_field")
    assert sizes == {("dense", "field"): 28, ("half", "field"): 28, sent: 28}
    assert records[[*COLUMNS["seeds"]]].notna().all(axis=None)  # as a report needs them
    settings = given.params.studies["it"].settings["points"]
    dense, half = seeded_points(records, settings, "Linf", given.profile.attacks["field"].eps)
    own = records[(records.point == "dense") & (records.attack == "field") & (records.seed == 6)]
    assert dense.transfer[1].tolist() == (own.adv_pred == own.label).tolist()
    model, ((images, labels), work) = network(given, 6), (given.test, Work(6, 1000, 10))
    pixels = craft(model, images, labels, given.profile.attacks["field"], work).pixels
    pruned = prune(
        "LWM", model, settings["half"]["setting"], Data(*given.train, given.profile.train), 6
    )
    right = pruned.model(pixels / 255).argmax(1) == labels
    assert half.transfer[1].tolist() == right.tolist()


def test_a_killed_study_goes_on(ran, digits, tmp_path):
    """Seven trainings of an epoch: three points on the given network, another, and its three."""
    given = course(digits, tmp_path, chosen())
    with stored(kill_after=5) as first:
        run_study("it", given)
    with stored() as rest:
        found = run_study("it", given)
    assert len([*first, *rest]) == len({*first, *rest}) == 7
    pd.testing.assert_frame_equal(found["records"], ran[1])
    pd.testing.assert_frame_equal(found["history"], ran[2])


def test_without_points_nothing_is_done(ran, tmp_path):
    given = replace(ran[0], params=chosen(points={}), parts=Parts(tmp_path, files=[]))
    assert all(table.empty for table in run_study("it", given).values())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attacks": ["odd"]}, "studies.it.attacks: 'odd' is not among field, published_10"),
        ({"points": {"dense": {"family": "LWM"}}}, "studies.it: points: the name .dense. is taken"),
        ({"points": {"half": {"family": "LWM", "setting": 1.5}}}, "it.points.half: sparsity.*1.5"),
    ],
)
def test_refused_studies(ran, changes, words):
    with pytest.raises(UserError, match=words):
        run_study("it", replace(ran[0], params=chosen(**changes)))
    with pytest.raises(UserError, match=r"studies.it.of: E-robust is no dense network"):
        run_study("it", replace(ran[0], of="E-robust"))
