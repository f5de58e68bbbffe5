"""The bit-flip attack as an experiment: its rows, what they rest on, going on after a kill."""

from dataclasses import replace

import pytest
import torch
from bits import Noisy, replay
from test_seeds import CPU, RAW, split
from torch import nn

from advprune.attacks import bitflip
from advprune.attacks.stored_bits import store
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.resume import Parts
from advprune.core.settings import parse
from advprune.evaluate.flips import START, VARIANTS, at_the_end, clean_accuracy, to_chance
from advprune.studies import Given, run_study
from advprune.studies.bitflip import attacker_images, recorded, trained
from conftest import make_network

SETTINGS = {"images": 8, "seeds": 2, "budget": 3, "every": 2, "random": 4, "random_every": 2}
SETTINGS |= {"stop": 1e-9}  # below any accuracy but 0


def given(digits, model, folder, entry=(), **changes):
    """A study with 4 bits: the first 24 digits are training images, the rest test images."""
    profile = RAW["profiles"]["digits"] | {"batch": 16, "flips": SETTINGS | changes}
    studies = {"entry": {"study": "bitflip", "of": "dense-standard", "bits": 4, **dict(entry)}}
    raw = RAW | {"models": {}, "studies": studies, "profiles": {"digits": profile}, "seed": 3}
    params, (images, labels) = parse(Params, raw, "test"), digits
    splits = {"train": split(images[:24], labels[:24]), "test": split(images[24:], labels[24:])}
    kept = Parts(folder, "test", files=[])
    return Given("entry", "it", params, model, {"bits": 32}, {}, splits, kept, CPU)


def flipped(*known, **changes):
    """The records of the study."""
    return run_study("entry", given(*known, **changes))["records"]


@pytest.fixture(scope="module")
def small(digits):
    return make_network(digits[0], width=2)


@pytest.fixture(scope="module")
def table(small, digits, tmp_path_factory):
    entry = {"variants": ["targeted", "margin"]}
    return flipped(digits, small, tmp_path_factory.mktemp("parts"), entry)


def test_there_is_a_run_for_each_variant_and_seed(table):
    runs = table.groupby(["variant", "seed"], sort=False)
    assert list(runs.groups) == [(variant, seed) for variant in VARIANTS for seed in (0, 1)]
    assert set(START) | {"variant", "seed", "reason", "layers", "stored_bits"} == set(table.columns)
    for (variant, _), run in runs:
        assert run.flip.tolist() == list(range(5 if variant == "random" else 4))
        assert run.accuracy.notna().tolist() == [flip % 2 == 0 for flip in run.flip]
        assert (run.reason == "budget").all()
        assert run.loss.isna().all() or run.loss.notna().all()


def test_the_first_row_is_the_network_before_any_flip(table, small, digits):
    stored = store(small, 4, image_shape=(1, 8, 8))  # half of its weights meet only padding
    right = stored.model(digits[0][24:]).argmax(1) == digits[1][24:]
    first = table[table.flip == 0]
    assert (first.accuracy == float(right.double().mean())).all() and len(first) == 8
    assert (first.hamming == 0).all() and (first.layer == "").all() and (first.depth == -1).all()
    assert (table.stored_bits == stored.size).all() and (table.layers == len(stored.layers)).all()
    assert clean_accuracy(table) == first.accuracy.iloc[0]


def test_rows_are_the_attacks_own(table, small, digits, tmp_path):
    work, layers = given(digits, small, tmp_path), list(store(small, 4).layers)
    options = {"margin": {"loss": "margin"}, "targeted": {"target": 0}, "untargeted": {}}
    for variant, option in options.items():
        trace = bitflip(small, attacker_images(work, 1), bits=4, budget=3, batch=16, **option)
        run = table[(table.variant == variant) & (table.seed == 1)]
        flips = run[run.flip > 0]
        for column in ("step", "layer", "index", "bit", "hamming", "n_b", "forwards", "gradients"):
            assert flips[column].tolist() == trace.table[column].tolist()
        assert [layers[depth] for depth in flips.depth] == flips.layer.tolist()
        assert run.loss.tolist() == [trace.table.loss_before.iloc[0], *trace.table.loss_after]
    end = replay(store(small, 4), trace.table.head(2))
    right = end.model(digits[0][24:]).argmax(1) == digits[1][24:]
    assert at_the_end(table[table.seed == 1], "untargeted") == [float(right.double().mean())]


def test_seeds_are_other_batches_and_other_random_flips(table, small, digits, tmp_path):
    work, images = given(digits, small, tmp_path), digits[0][:24]
    one, other = attacker_images(work, 0), attacker_images(work, 1)
    assert len(one) == len(other) == 8 and not torch.equal(one, other)
    assert all(any(torch.equal(x, image) for image in images) for x in one)
    places = [
        set(zip(run.layer, run["index"], run.bit, strict=True))
        for _, run in table[(table.variant == "random") & (table.flip > 0)].groupby("seed")
    ]
    assert len(places) == 2 and places[0] != places[1]


def test_it_ends_at_chance_and_an_entry_has_a_budget_of_its_own(small, digits, tmp_path):
    found = flipped(digits, small, tmp_path / "a", random=0, stop=10, seeds=1)
    assert found.flip.tolist() == [0, 0] and found.variant.tolist() == ["untargeted", "random"]
    assert found.reason.tolist() == ["level", "budget"] and found.loss.isna().all()
    found = flipped(digits, small, tmp_path / "b", {"budget": 1}, random=0, seeds=1)
    assert found.flip.tolist() == [0, 1, 0] and found.reason[0] == "budget"


def test_trainings_are_other_networks_on_other_batches(small, digits, tmp_path):
    entry = {"trainings": 2, "every": 1, "floats": True, "variants": []}
    work = given(digits, small, tmp_path, entry, random=1, budget=1)
    known = work.params.model_dump() | {"recipes": {"standard": {"epochs": 1}}}
    known |= {"models": {"E": {"do": "prune", "of": "dense-standard", "by": "prune.E"}}}
    splits = {**work.splits, "val": work.splits["test"]}
    params = parse(Params, known, "test")
    work = replace(work, of="dense-standard", splits=splits, params=params)
    found = run_study("entry", work)["records"]
    first = found[(found.flip == 0) & (found.variant == "untargeted")]
    assert first.seed.tolist() == [0, 1, 2, 3] and first.training.tolist() == [0, 0, 1, 1]
    assert first.loss.nunique() == 4 and first.stored_bits.nunique() == 2  # the profile's width
    assert found[found.variant == "untargeted"].accuracy.notna().all()  # asked for after each flip
    assert (found.stored_bits > flipped(digits, small, tmp_path / "b").stored_bits[0]).all()
    reached = to_chance(found, 0.0)
    assert reached.trainings == 2 and len(reached.bits) == 4
    with pytest.raises(UserError, match=r"studies\.entry\.trainings: .* not trained from scratch"):
        trained(replace(work, of="E"), 1)


def test_after_a_kill_the_bytes_are_the_same(small, digits, tmp_path, monkeypatch):
    whole = flipped(digits, small, tmp_path / "one")
    whole.to_parquet(tmp_path / "one.parquet", index=False)
    done = []

    def killed(*known):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(known[3:5])
        return recorded(*known)

    with monkeypatch.context() as patch:
        patch.setattr("advprune.studies.bitflip.recorded", killed)
        with pytest.raises(KeyboardInterrupt):
            flipped(digits, small, tmp_path / "two")
        assert done == [("untargeted", 0), ("untargeted", 1)]
        done.clear()
        rest = flipped(digits, small, tmp_path / "two")
    assert done == [("random", 0), ("random", 1)]
    rest.to_parquet(tmp_path / "two.parquet", index=False)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


def test_what_is_refused_by_name(small, digits, tmp_path):
    with pytest.raises(UserError, match=r"studies\.entry\.of: this model draws at random"):
        flipped(digits, nn.Sequential(small, Noisy()), tmp_path)
    with pytest.raises(UserError, match=r"flips\.target is 10; classes are 0 to 9"):
        flipped(digits, small, tmp_path, {"variants": ["targeted"]}, target=10)
    integers = replace(given(digits, small, tmp_path), card={"bits": 8})
    with pytest.raises(UserError, match=r"studies\.entry\.of: it holds integers"):
        run_study("entry", integers)
