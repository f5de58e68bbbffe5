"""The bit-flip attack as an experiment: its rows, what they rest on, going on after a kill."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bits import replay
from torch import nn

from advprune.attacks import bitflip
from advprune.attacks.stored_bits import store
from advprune.core.attack_settings import FlipSettings
from advprune.core.errors import UserError
from advprune.core.resume import Parts
from advprune.evaluate.faults import START, VARIANTS, at_the_end, clean_accuracy
from advprune.models.stochastic import Stochastic
from advprune.studies.bitflip import BitFlipSettings, Flipping
from conftest import make_network

Pair = tuple[torch.Tensor, torch.Tensor]
SETTINGS = {"images": 8, "seeds": 2, "budget": 3, "every": 2, "random": 4, "random_every": 2}
SETTINGS |= {"stop": 1e-9}  # below any accuracy but 0


def flipping(digits: Pair, entry: dict[str, Any] | None = None, **changes: Any) -> Flipping:
    """An attack with 4 bits on the first 24 digits as training images, the rest to test on."""
    images, labels = digits
    chosen = {"bits": 4} | (entry or {})
    return Flipping(
        "entry",
        BitFlipSettings(**chosen),
        FlipSettings(**(SETTINGS | changes)),
        (images[:24], labels[:24]),
        (images[24:], labels[24:]),
        classes=10,
        batch=16,
        seed=3,
    )


def parts(folder: Path) -> Parts:
    return Parts(folder, "test", files=[])


@pytest.fixture(scope="module")
def small(digits: Pair) -> nn.Module:
    return make_network(digits[0], width=2)


@pytest.fixture(scope="module")
def table(small: nn.Module, digits: Pair, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    entry = {"variants": ["targeted", "margin"]}
    return flipping(digits, entry).run(small, parts(tmp_path_factory.mktemp("parts")))


def test_there_is_a_run_for_each_variant_and_seed(table: pd.DataFrame) -> None:
    runs = table.groupby(["variant", "seed"], sort=False)
    assert list(runs.groups) == [(variant, seed) for variant in VARIANTS for seed in (0, 1)]
    assert set(START) | {"variant", "seed", "reason", "layers", "stored_bits"} == set(table.columns)
    for (variant, _), run in runs:
        assert run.flip.tolist() == list(range(5 if variant == "random" else 4))
        assert run.accuracy.notna().tolist() == [flip % 2 == 0 for flip in run.flip]
        assert (run.reason == "budget").all()
        assert run.loss.isna().all() or run.loss.notna().all()


def test_the_first_row_is_the_network_before_any_flip(
    table: pd.DataFrame, small: nn.Module, digits: Pair
) -> None:
    stored = store(small, 4, image_shape=(1, 8, 8))  # half of its weights meet only padding
    right = stored.model(digits[0][24:]).argmax(1) == digits[1][24:]
    first = table[table.flip == 0]
    assert (first.accuracy == float(right.double().mean())).all() and len(first) == 8
    assert (first.hamming == 0).all() and (first.layer == "").all() and (first.depth == -1).all()
    assert (table.stored_bits == stored.size).all() and (table.layers == len(stored.layers)).all()
    assert clean_accuracy(table) == first.accuracy.iloc[0]


def test_rows_are_the_attacks_own(table: pd.DataFrame, small: nn.Module, digits: Pair) -> None:
    work, layers = flipping(digits), list(store(small, 4).layers)
    options = {"margin": {"loss": "margin"}, "targeted": {"target": 0}, "untargeted": {}}
    for variant, option in options.items():
        trace = bitflip(small, work.images_of(1), bits=4, budget=3, batch=16, **option)
        run = table[(table.variant == variant) & (table.seed == 1)]
        flips = run[run.flip > 0]
        for column in ("step", "layer", "index", "bit", "hamming", "n_b", "forwards", "gradients"):
            assert flips[column].tolist() == trace.table[column].tolist()
        assert [layers[depth] for depth in flips.depth] == flips.layer.tolist()
        assert run.loss.tolist() == [trace.table.loss_before.iloc[0], *trace.table.loss_after]
    end = replay(store(small, 4), trace.table.head(2))
    right = end.model(digits[0][24:]).argmax(1) == digits[1][24:]
    assert at_the_end(table[table.seed == 1], "untargeted") == [float(right.double().mean())]


def test_seeds_are_other_batches_and_other_random_flips(table: pd.DataFrame, digits: Pair) -> None:
    work, images = flipping(digits), digits[0][:24]
    one, other = work.images_of(0), work.images_of(1)
    assert len(one) == len(other) == 8 and not torch.equal(one, other)
    assert all(any(torch.equal(x, image) for image in images) for x in one)
    assert torch.equal(flipping(digits, {"bits": 8}).images_of(1), other)
    places = [
        set(zip(run.layer, run["index"], run.bit, strict=True))
        for _, run in table[(table.variant == "random") & (table.flip > 0)].groupby("seed")
    ]
    assert len(places) == 2 and places[0] != places[1]


def test_it_ends_at_chance_and_an_entry_has_a_budget_of_its_own(
    small: nn.Module, digits: Pair, tmp_path: Path
) -> None:
    work = flipping(digits, {"budget": 1}, random=0, stop=10, seeds=1)
    assert work.level == 1.0 and work.budget == 1
    found = work.run(small, parts(tmp_path))
    assert found.flip.tolist() == [0, 0] and found.variant.tolist() == ["untargeted", "random"]
    assert found.reason.tolist() == ["level", "budget"] and found.loss.isna().all()


def test_after_a_kill_the_bytes_are_the_same(
    small: nn.Module, digits: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = flipping(digits).run(small, parts(tmp_path / "one"))
    whole.to_parquet(tmp_path / "one.parquet", index=False)
    done: list[tuple[str, int]] = []
    original = Flipping._records

    def killed(self: Flipping, stored: Any, variant: str, seed: int, *rest: Any) -> pd.DataFrame:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append((variant, seed))
        return original(self, stored, variant, seed, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Flipping, "_records", killed)
        with pytest.raises(KeyboardInterrupt):
            flipping(digits).run(small, parts(tmp_path / "two"))
        assert done == [("untargeted", 0), ("untargeted", 1)]
        done.clear()
        rest = flipping(digits).run(small, parts(tmp_path / "two"))
    assert done == [("random", 0), ("random", 1)]
    rest.to_parquet(tmp_path / "two.parquet", index=False)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


class Noisy(Stochastic):
    def noisy(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.normal(h)


def test_what_cannot_be_attacked_is_refused_by_name(
    small: nn.Module, digits: Pair, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"studies\.entry\.of: this model draws at random"):
        flipping(digits).run(nn.Sequential(small, Noisy()), parts(tmp_path))
    targeted = flipping(digits, {"variants": ["targeted"]}, target=10)
    with pytest.raises(UserError, match=r"flips\.target is 10; classes are 0 to 9"):
        targeted.run(small, parts(tmp_path))
