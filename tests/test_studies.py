"""Studies on tiny networks: sweeps, curves, seeds and bit flips; intervals over seeds."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from bits import Noisy, replay
from scipy.stats import t, ttest_1samp
from torch import nn
from workspace import RAW

from advprune.attacks import bitflip
from advprune.attacks.stored_bits import store
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.resume import Parts
from advprune.core.settings import parse
from advprune.data import Split
from advprune.evaluate.craft import craft, rows
from advprune.evaluate.flips import START, VARIANTS, at_the_end, start_accuracy, to_chance
from advprune.evaluate.means import mean
from advprune.evaluate.records import Work
from advprune.evaluate.seeds import seeded_points
from advprune.models.card import sparsity_of
from advprune.pruning import Data, prune
from advprune.report.read import COLUMNS
from advprune.studies import Given, reads_of, run_study
from advprune.studies.bitflip import attacker_images, trained
from advprune.studies.seeds import network
from advprune.training.inputs import Inputs
from advprune.training.networks import load_or_train
from conftest import make_network, same_weights, stored

CPU = torch.device("cpu")


def study(entry, model, splits, folder, of="dense-standard", profile=None, carried=None, **changes):
    """The study `it`, of a model and of digits in splits, under the settings of params.yaml changed
    in the profile and elsewhere."""
    profiles = {"digits": RAW["profiles"]["digits"] | (profile or {})}
    raw = RAW | {"models": {}, "studies": {"it": {"of": of} | entry}, "profiles": profiles}
    params, parts = parse(Params, raw | changes, "test"), Parts(folder, files=[])
    names, facts = tuple("0123456789"), {"bits": 32, "setting": {"method": "mixed"}}
    made = {
        name: Split((images * 255).to(torch.uint8), labels, names, "digits")
        for name, (images, labels) in splits.items()
    }
    return Given("it", of, params, model, facts, carried or {}, made, parts, CPU)


def parts_of(digits, **ends):
    """Splits of the digits by name: up to a place, or between two."""
    cuts = {k: slice(*(end if isinstance(end, tuple) else (end,))) for k, end in ends.items()}
    return {name: (digits[0][cut], digits[1][cut]) for name, cut in cuts.items()}


def records(given):
    return run_study("it", given)["records"]


READ = {
    "bitflip": {"flips", "model", "train"},
    "corruptions": set(),
    "protocol": {"protocol", "train"},
    "seeds": {"model", "train", "attacks", "suite"},
    "sweep": {"sweep_images", "train", "attacks", "suite"},
}


@pytest.mark.parametrize("kind", READ)
def test_a_study_gets_what_of_the_profile_it_says_that_it_reads(kind, network, digits, tmp_path):
    """A change of its note, or of flips, repeated all ten; what is not said cannot be read."""
    given = study({"study": kind}, network, {"train": digits}, tmp_path)
    read = {field for field in type(given.profile).model_fields if hasattr(given.profile, field)}
    assert read == READ[kind] | {"batch"} == reads_of(given.params, "it")


# --- sweeps and compression curves ---------------------------------------------------------------
@pytest.fixture
def swept(network, digits, tmp_path):
    """A study of the network; training images are the test images, crafted ones are noise."""
    noise = 0.3 * torch.randn(digits[0].shape, generator=torch.Generator().manual_seed(0))
    moved = ((digits[0] + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    profile = {"sweep_images": None, "attacks": {"field": {"eps": 0.1, "step": 0.15, "steps": 1}}}
    profile |= {"suite": {"table": ["field"], "transfer": ["field", "momentum"]}}

    def given(kind, points):
        carried = {"field": moved, "momentum": 255 - moved}
        entry, both = {"study": kind, "points": points}, {"train": digits, "test": digits}
        return study(entry, network, both, tmp_path, profile=profile, carried=carried)

    return given


def test_a_sweep_has_a_block_of_rows_for_every_setting(network, digits, swept):
    table = records(swept("sweep", {"E": [0.0, 1e6], "clamp": [{"sigmas": 3}]}))
    sizes = table.groupby(["family", "order", "value", "attack"]).size().to_dict()
    expected = [("E", 0, "0.0"), ("E", 1, "1000000.0"), ("clamp", 0, "{'sigmas': 3}")]
    assert sizes == {(*point, "field"): 64 for point in expected}
    nothing, everything = (table[(table.family == "E") & (table.order == n)] for n in (0, 1))
    assert (nothing.prune_ratio == 0).all() and (everything.sparsity > 0.99).all()
    assert nothing.clean_pred.tolist() == network(digits[0]).argmax(1).tolist()
    assert everything.clean_pred.nunique() == 1


def test_a_curve_tries_each_setting_on_images_of_its_parent(network, digits, swept):
    given = swept("compression", {"E": [0.0, 0.1]})
    table, kinds = records(given), ["field", "from_dense_field", "from_dense_momentum"]
    expected = {(order, kind): 64 for order in (0, 1) for kind in kinds}
    assert table.groupby(["order", "attack"]).size().to_dict() == expected
    for order, value in enumerate((0.0, 0.1)):
        model = prune("E", network, value).model
        for name, pixels in given.adversarial.items():
            part = table[(table.order == order) & (table.attack == f"from_dense_{name}")]
            assert part.adv_pred.tolist() == model(pixels / 255).argmax(1).tolist()
            assert part.clean_pred.tolist() == model(digits[0]).argmax(1).tolist()
            assert (part.source == "dense").all() and (part.value == str(value)).all()
    assert records(given).equals(table)  # what was finished is read back


# --- intervals over seeds and images ------------------------------------------------------------
SPREAD = np.array([0.5, 0.7, 0.9, 0.6])


@pytest.mark.parametrize(
    ("table", "deviation"),
    [(SPREAD[None], None), (np.tile(SPREAD, (3, 1)), 0), (np.tile(SPREAD, (50, 1)).T, 0.1708)],
    ids=["one seed", "equal seeds", "equal images"],
)
def test_where_one_effect_is_missing_the_interval_is_that_of_the_other(table, deviation):
    found, expected = mean(table), ttest_1samp(SPREAD, 0)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue) and found.freedom == pytest.approx(3)
    assert (found.seeds, found.images) == table.shape
    assert found.deviation == (None if deviation is None else pytest.approx(deviation, abs=1e-4))


def test_mean_squares_by_hand():
    """Rows (1, 1, 0), (1, 0, 0): rows' means 2/3 and 1/3, columns' 1, 1/2 and 0, the whole 1/2.

    a = 3 (1/36 + 1/36) / 1 = 1/6, b = 2 (1/4 + 0 + 1/4) / 2 = 1/2; of 1 and of 2 degrees.
    """
    found = mean(np.array([[1, 1, 0], [1, 0, 0]]))
    error, freedom = (4 / 6 / 6) ** 0.5, (16 / 36) / (1 / 36 + 1 / 8)
    assert (found.value, found.error, found.freedom) == pytest.approx((0.5, error, freedom))
    assert found.interval[1] == pytest.approx(0.5 + t.ppf(0.975, freedom) * error)
    assert found.p == pytest.approx(2 * t.sf(0.5 / error, freedom))


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


# --- seeds ---------------------------------------------------------------------------------------
SCORES = {"method": "standard", "epochs": 1}
GAUGE = {"batch": 2, "attack_steps": 1}
POINTS = {
    "half": {"family": "LWM", "setting": {"sparsity": 0.5, "finetune": {"epochs": 1, "lr": 0.05}}},
    "sub": {"family": "HYDRA", "setting": {"sparsity": 0.25, "scores": SCORES}},
    "bits": {"family": "BNN", "setting": {"epochs": 1, "lr": 0.1}},
    "ticket": {
        "family": "random_ticket",
        "setting": {"sparsity": 0.5, "gauge": GAUGE, "train": None},
    },
}


NETWORKS: dict[int, nn.Module] = {}  # by seed: all studies here train them alike


def network_of(given, seed):
    """The dense network of a seed, trained by itself."""
    if seed not in NETWORKS:
        inputs = Inputs(given.splits["train"], given.splits["val"], seed, CPU, None)
        how = given.profile, None, given.params.recipes["robust"]
        NETWORKS[seed] = load_or_train(*how, inputs)[0]
    return copy.deepcopy(NETWORKS[seed])


def course(digits, folder, weights=None, **changes):
    """The study on 40 digits to train on, 10 to choose by and 14 to attack."""
    attacks = {"field": {"eps": 0.1, "step": 0.08, "steps": 2}}
    attacks |= {"few": {"eps": 0.1, "step": 0.1, "steps": 1}}
    profile = {"attacks": attacks, "model": {"width": 2, "weights": weights or {}}}
    profile |= {"train": {"epochs": 1, "batch": 16}}
    entry = {"study": "seeds", "seeds": 2, "attacks": ["few"], "points": POINTS} | changes
    splits = parts_of(digits, train=40, val=(40, 50), test=(50, 64))
    known = {"of": "dense-robust", "recipes": {"robust": {"method": "mixed"}}, "seed": 5}
    given = study(entry, nn.Identity(), splits, folder, profile=profile, **known)
    return replace(given, model=network_of(given, 5))


@pytest.fixture(scope="module")
def ran(digits, tmp_path_factory):
    given = course(digits, tmp_path_factory.mktemp("parts"))
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
    model, ratio = network_of(given, seed), 0.0
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


def test_networks_of_other_seeds_are_trained_where_the_runs_own_was_given(digits, tmp_path):
    given = course(digits, tmp_path, {"robust": {"path": "nowhere.pt", "sha256": "0" * 64}})
    assert same_weights(network(given, "robust", 6)[0], network_of(given, 6))


def test_members_of_the_protocol_are_trained_as_the_profile_says(digits, tmp_path, monkeypatch):
    seen = []

    def noted(family, model, setting, data, seed):
        seen.append(data)
        return prune(family, model, setting, data, seed)

    monkeypatch.setattr("advprune.studies.protocol.prune", noted)
    members = {"dense": {}, "few": {"family": "LWM", "setting": POINTS["half"]["setting"]}}
    step = {"eps": 0.1, "step": 0.1, "steps": 1}
    profile = {"model": {"width": 2}, "train": {"epochs": 1, "batch": 16, "label_smoothing": 0.1}}
    profile |= {"protocol": {"eps": [0, 0.1], "draws": 1, "iterative": step, "adaptive": {}}}
    splits = parts_of(digits, train=40, val=(40, 50), test=(50, 64))
    entry = {"study": "protocol", "members": members}
    given = study(entry, make_network(digits[0]), splits, tmp_path, profile=profile)
    records(given)
    assert [data.train for data in seen] == [given.profile.train]


def test_images_of_each_dense_network_are_tried_on_the_points(digits, tmp_path):
    points = {"half": POINTS["half"]}
    given = course(digits, tmp_path, transfer=True, attacks=[], points=points)
    table, field = records(given), given.profile.attacks["field"]
    sizes = table.groupby(["point", "attack"]).size().to_dict()
    sent = ("half", "from_dense_field")
    assert sizes == {("dense", "field"): 28, ("half", "field"): 28, sent: 28}
    assert table[[*COLUMNS["seeds"]]].notna().all(axis=None)  # as a report needs them
    settings = given.params.studies["it"].settings["points"]
    dense, half = seeded_points(table, settings, "Linf", field.eps)
    own = table[(table.point == "dense") & (table.attack == "field") & (table.seed == 6)]
    assert dense.transfer[1].tolist() == (own.adv_pred == own.label).tolist()
    model, (images, labels) = network_of(given, 6), given.test
    pixels = craft(model, images, labels, field, Work(6, 1000, 10)).pixels
    data = Data(*given.train, given.profile.train)
    pruned = prune("LWM", model, POINTS["half"]["setting"], data, 6).model
    assert half.transfer[1].tolist() == (pruned(pixels / 255).argmax(1) == labels).tolist()


def test_a_killed_study_goes_on(ran, digits, tmp_path):
    """Seven trainings of an epoch: three points on the given network, another, and its three."""
    given = course(digits, tmp_path)
    with stored(kill_after=5) as first:
        run_study("it", given)
    with stored() as rest:
        found = run_study("it", given)
    assert len([*first, *rest]) == len({*first, *rest}) == 7
    pd.testing.assert_frame_equal(found["records"], ran[1])
    pd.testing.assert_frame_equal(found["history"], ran[2])
    nothing = run_study("it", course(digits, tmp_path / "none", points={}))
    assert nothing["records"].empty and nothing["history"].empty


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attacks": ["odd"]}, "studies.it.attacks: 'odd' is not among field, published_10"),
        ({"points": {"dense": {"family": "LWM"}}}, "studies.it: points: the name .dense. is taken"),
        ({"points": {"half": {"family": "LWM", "setting": 1.5}}}, "it.points.half: sparsity.*1.5"),
        ({"of": "E-robust"}, "studies.it.of: E-robust is no dense network"),
    ],
)
def test_refused_studies(digits, tmp_path, changes, words):
    of = changes.pop("of", "dense-robust")
    with pytest.raises(UserError, match=words):
        run_study("it", replace(course(digits, tmp_path, **changes), of=of))


# --- bit flips: rows, what they rest on, going on after a kill -----------------------------------
SETTINGS = {"images": 8, "seeds": 2, "budget": 3, "every": 2, "random": 4, "random_every": 2}
SETTINGS |= {"stop": 1e-9}  # below any accuracy but 0


def flips(digits, model, folder, entry=(), **changes):
    """A study with 4 bits: the first 24 digits are training images, the rest test images."""
    profile = {"batch": 16, "flips": SETTINGS | changes}
    splits = parts_of(digits, train=24, test=(24, 64))
    entry = {"study": "bitflip", "bits": 4, **dict(entry)}
    return study(entry, model, splits, folder, profile=profile, seed=3)


@pytest.fixture(scope="module")
def table(small, digits, tmp_path_factory):
    entry = {"variants": ["targeted", "margin"]}
    return records(flips(digits, small, tmp_path_factory.mktemp("parts"), entry))


def test_there_is_a_run_for_each_variant_and_seed_from_the_network_before_any_flip(
    table, small, digits
):
    runs = table.groupby(["variant", "seed"], sort=False)
    assert list(runs.groups) == [(variant, seed) for variant in VARIANTS for seed in (0, 1)]
    assert set(START) | {"variant", "seed", "reason", "layers", "stored_bits"} == set(table.columns)
    for (variant, _), run in runs:
        assert run.flip.tolist() == list(range(5 if variant == "random" else 4))
        assert run.accuracy.notna().tolist() == [flip % 2 == 0 for flip in run.flip]
        assert (run.reason == "budget").all()
        assert run.loss.isna().all() or run.loss.notna().all()
    stored = store(small, 4, image_shape=(1, 8, 8))  # half of its weights meet only padding
    right = stored.model(digits[0][24:]).argmax(1) == digits[1][24:]
    first = table[table.flip == 0]
    assert (first.accuracy == float(right.double().mean())).all() and len(first) == 8
    assert (first.hamming == 0).all() and (first.layer == "").all() and (first.depth == -1).all()
    assert (table.stored_bits == stored.size).all() and (table.layers == len(stored.layers)).all()
    assert start_accuracy(table) == first.accuracy.iloc[0]


def test_rows_are_the_attacks_own_on_the_batch_of_their_seed(table, small, digits, tmp_path):
    work, layers = flips(digits, small, tmp_path), list(store(small, 4).layers)
    options = {"margin": {"loss": "margin"}, "targeted": {"target": 0}, "untargeted": {}}
    for variant, option in options.items():
        trace = bitflip(small, attacker_images(work, 1), bits=4, budget=3, batch=16, **option)
        run = table[(table.variant == variant) & (table.seed == 1)]
        own = run[run.flip > 0]
        for column in ("step", "layer", "index", "bit", "hamming", "n_b", "forwards", "gradients"):
            assert own[column].tolist() == trace.table[column].tolist()
        assert [layers[depth] for depth in own.depth] == own.layer.tolist()
        assert run.loss.tolist() == [trace.table.loss_before.iloc[0], *trace.table.loss_after]
    end = replay(store(small, 4), trace.table.head(2))
    right = end.model(digits[0][24:]).argmax(1) == digits[1][24:]
    assert at_the_end(table[table.seed == 1], "untargeted") == [float(right.double().mean())]
    one, other = attacker_images(work, 0), attacker_images(work, 1)
    assert len(one) == len(other) == 8 and not torch.equal(one, other)
    assert all(any(torch.equal(x, image) for image in digits[0][:24]) for x in one)
    random = table[(table.variant == "random") & (table.flip > 0)]
    places = [run[["layer", "index", "bit"]].to_numpy() for _, run in random.groupby("seed")]
    assert (places[0] != places[1]).any()


def test_it_ends_at_chance_and_an_entry_has_a_budget_of_its_own(small, digits, tmp_path):
    found = records(flips(digits, small, tmp_path / "a", random=0, stop=10, seeds=1))
    assert found.flip.tolist() == [0, 0] and found.variant.tolist() == ["untargeted", "random"]
    assert found.reason.tolist() == ["level", "budget"] and found.loss.isna().all()
    found = records(flips(digits, small, tmp_path / "b", {"budget": 1}, random=0, seeds=1))
    assert found.flip.tolist() == [0, 1, 0] and found.reason[0] == "budget"


def test_trainings_are_other_networks_on_other_batches(small, digits, tmp_path):
    entry = {"trainings": 2, "every": 1, "floats": True, "variants": []}
    work = flips(digits, small, tmp_path, entry, random=1, budget=1)
    known = work.params.model_dump() | {"recipes": {"standard": {"epochs": 1}}}
    known |= {"models": {"E": {"do": "prune", "of": "dense-standard", "by": "prune.E"}}}
    splits = {**work.splits, "val": work.splits["test"]}
    work = replace(work, splits=splits, params=parse(Params, known, "test"))
    found = records(work)
    first = found[(found.flip == 0) & (found.variant == "untargeted")]
    assert first.seed.tolist() == [0, 1, 2, 3] and first.training.tolist() == [0, 0, 1, 1]
    assert first.loss.nunique() == 4 and first.stored_bits.nunique() == 2  # the profile's width
    assert found[found.variant == "untargeted"].accuracy.notna().all()  # asked for after each flip
    alone = records(flips(digits, small, tmp_path / "b"))
    assert (found.stored_bits > alone.stored_bits[0]).all()
    reached = to_chance(found, 0.0)
    assert reached.trainings == 2 and len(reached.bits) == 4
    with pytest.raises(UserError, match=r"studies\.it\.trainings: .* not trained from scratch"):
        trained(replace(work, of="E"), 1)


def test_what_is_refused_by_name(small, digits, tmp_path):
    with pytest.raises(UserError, match=r"studies\.it\.of: this model draws at random"):
        records(flips(digits, nn.Sequential(small, Noisy()), tmp_path))
    with pytest.raises(UserError, match=r"flips\.target is 10; classes are 0 to 9"):
        records(flips(digits, small, tmp_path, {"variants": ["targeted"]}, target=10))
    with pytest.raises(UserError, match=r"studies\.it\.of: dense-standard holds integers"):
        records(replace(flips(digits, small, tmp_path), card={"bits": 8}))
