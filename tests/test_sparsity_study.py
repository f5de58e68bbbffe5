"""The study of sparse networks: intervals against their limits and simulation, and tiny runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from planted import settings
from scipy.stats import t, ttest_1samp
from torch import nn

from advprune.core.errors import UserError
from advprune.core.params import Params, parse
from advprune.core.resume import Parts
from advprune.data import Split
from advprune.evaluate.craft import Work, craft, rows
from advprune.evaluate.crossed import mean
from advprune.evaluate.sparsity import SparsityStudy, histories_of
from advprune.models.card import sparsity_of
from advprune.pruning import Data, check_settings, prune
from advprune.training.base import load_or_train
from advprune.training.standard import Trainer

# --- intervals -----------------------------------------------------------------------------------


def test_with_equal_seeds_the_interval_is_that_over_images() -> None:
    images = np.array([1, 1, 0, 1, 0, 1, 1, 1, 0, 1], float)
    found = mean(np.tile(images, (3, 1)))
    low, high = ttest_1samp(images, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.p == pytest.approx(ttest_1samp(images, 0).pvalue)
    assert (found.freedom, found.seeds, found.images) == (pytest.approx(9), 3, 10)
    assert found.deviation == pytest.approx(0)


def test_with_equal_images_the_interval_is_that_over_seeds() -> None:
    seeds = np.array([0.5, 0.7, 0.9, 0.6])
    found = mean(np.tile(seeds[:, None], (1, 50)))
    low, high = ttest_1samp(seeds, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((low, high))
    assert found.freedom == pytest.approx(3) and found.deviation == pytest.approx(seeds.std(ddof=1))


def test_mean_squares_by_hand() -> None:
    """Rows (1, 1, 0), (1, 0, 0): rows' means 2/3 and 1/3, columns' 1, 1/2 and 0, the whole 1/2.

    a = 3 (1/36 + 1/36) / 1 = 1/6, b = 2 (1/4 + 0 + 1/4) / 2 = 1/2; of 1 and of 2 degrees.
    """
    found = mean(np.array([[1, 1, 0], [1, 0, 0]]))
    error, freedom = (4 / 6 / 6) ** 0.5, (16 / 36) / (1 / 36 + 1 / 8)
    assert (found.value, found.error, found.freedom) == pytest.approx((0.5, error, freedom))
    assert found.interval[1] == pytest.approx(0.5 + t.ppf(0.975, freedom) * error)
    assert found.p == pytest.approx(2 * t.sf(0.5 / error, freedom))


def test_a_single_seed_leaves_the_images() -> None:
    images = np.array([[1, 0, 1, 1, 1.0]])
    found = mean(images)
    assert found.deviation is None and found.freedom == pytest.approx(4)
    assert found.interval == pytest.approx(tuple(ttest_1samp(images[0], 0).confidence_interval()))


def test_where_nothing_varies_there_is_no_doubt() -> None:
    nothing, something = mean(np.zeros((3, 5))), mean(np.ones((3, 5)))
    assert nothing.p == 1.0 and something.p == 0.0 and something.interval == (1.0, 1.0)


@pytest.mark.parametrize(("of_seeds", "of_images"), [(0.0, 1.5), (0.1, 1.5), (0.1, 0.2)])
def test_the_interval_holds_for_other_seeds_and_other_images(
    of_seeds: float, of_images: float
) -> None:
    """Right where seed + image + noise > 0, all normal: the true mean is 1/2, by symmetry."""
    random, held, runs = np.random.default_rng(0), 0, 600
    for _ in range(runs):
        seeds = random.normal(0, of_seeds, (3, 1))
        images = random.normal(0, of_images, (1, 150))
        low, high = mean(seeds + images + random.normal(0, 1, (3, 150)) > 0).interval
        held += low <= 0.5 <= high
    assert 0.93 <= held / runs <= 0.99


# --- runs ----------------------------------------------------------------------------------------

TUNE = {"epochs": 1, "lr": 0.05}
POINTS: dict[str, Any] = {
    "half": {"family": "LWM", "setting": {"sparsity": 0.5, "finetune": TUNE}},
    "sub": {
        "family": "HYDRA",
        "base": "mixed",
        "setting": {"sparsity": 0.25, "scores": {"method": "standard", "epochs": 1}},
    },
}


def chosen(**changes: Any) -> Params:
    """Settings of a study that runs in a second."""
    raw = settings().model_dump()
    profile = raw["profiles"]["digits"]
    profile["attacks"] |= {"main": {"eps": 0.1, "step": 0.05, "steps": 2}}
    profile["attacks"] |= {"few": {"eps": 0.1, "step": 0.1, "steps": 1}}
    profile["model"] |= {"width": 2}
    profile["train"] |= {"epochs": 1, "batch": 16}
    raw["recipes"] = {"standard": {}, "mixed": {"method": "mixed"}}
    study = {"seeds": 2, "dense": "standard", "attacks": ["few"], "points": POINTS}
    return parse(Params, raw | {"seed": 5, "sparsity_study": study | changes}, "test")


def split(images: torch.Tensor, labels: torch.Tensor) -> Split:
    return Split((images * 255).to(torch.uint8), labels, tuple("0123456789"), "digits")


def course(digits: tuple[torch.Tensor, torch.Tensor], folder: Path, params: Params) -> Any:
    images, labels = digits
    train, val, test = (
        split(images[start:end], labels[start:end]) for start, end in ((0, 40), (40, 50), (50, 64))
    )
    return SparsityStudy(params, train, val, test, Parts(folder, files=[]), torch.device("cpu"))


@pytest.fixture(scope="module")
def ran(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    study = course(digits, tmp_path_factory.mktemp("parts"), chosen())
    return study, *study.run()


def test_every_point_is_attacked_once_a_seed(ran: tuple[Any, Any, Any]) -> None:
    _, records, histories = ran
    networks = {("dense", "standard"), ("dense", "mixed"), ("half", "standard"), ("sub", "mixed")}
    keys = ["point", "base", "seed", "attack"]
    found = records.groupby(keys).size()
    expected = {
        (*net, seed, name) for net in networks for seed in (5, 6) for name in ("main", "few")
    }
    assert set(found.index) == expected and (found == 14).all()
    shares = records.groupby("point")[["prune_ratio", "sparsity"]].mean()
    assert (shares.loc["dense"] == 0).all() and (shares.loc["half"] > 0.45).all()
    phases = histories.groupby(["point", "seed"]).phase.unique().map(list).to_dict()
    assert phases["half", 6] == ["finetune"] and phases["sub", 5] == ["scores"]
    assert phases["dense", 5] == ["train"] and histories.train_loss.notna().all()


def test_records_are_what_the_pieces_give_by_themselves(ran: tuple[Any, Any, Any]) -> None:
    study, records, _ = ran
    dense = network(study, 6)
    data = Data(study.train.images / 255, study.train.labels, study.params.active().train)
    pruned = prune("LWM", dense, POINTS["half"]["setting"], data, 6)
    attack, images = study.params.active().attacks["main"], study.test.images / 255
    work = Work(6, study.params.active().batch, study.params.attack.score_draws)
    crafted = craft(pruned.model, images, study.test.labels, attack, work)
    expected = rows(pruned.model, images, crafted, study.test.labels, "main", work)
    chosen_rows = (records.point == "half") & (records.seed == 6) & (records.attack == "main")
    found = records[chosen_rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(found[list(expected)], expected)
    assert (found.sparsity == sparsity_of(pruned.model)).all()
    assert (found.prune_ratio == pruned.ratio).all()


def network(study: SparsityStudy, seed: int) -> nn.Module:
    """The dense network of a seed, trained by itself."""
    params, state = study.params, study.parts.folder / "elsewhere.pt"
    arguments = (params.active(), "standard", params.recipes["standard"], study.train, study.val)
    return load_or_train(*arguments, seed, torch.device("cpu"), state)[0]


class Killed(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("epoch", [3, 6])
def test_a_killed_study_goes_on_where_it_was(
    ran: tuple[Any, Any, Any],
    digits: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epoch: int,
) -> None:
    """Four trainings of an epoch a seed, of two dense networks and two points."""
    trained: list[Path | None] = []
    store = Trainer._store

    def counted(trainer: Trainer, run: Any) -> None:
        store(trainer, run)
        trained.append(trainer.state_path)
        if len(trained) == epoch:
            raise Killed

    monkeypatch.setattr(Trainer, "_store", counted)
    with pytest.raises(Killed):
        course(digits, tmp_path, chosen()).run()
    records, histories = course(digits, tmp_path, chosen()).run()
    pd.testing.assert_frame_equal(records, ran[1])
    pd.testing.assert_frame_equal(histories, ran[2])
    assert len(trained) == len(set(trained)) == 8


def test_a_given_network_is_taken_as_it_is(ran: tuple[Any, Any, Any], tmp_path: Path) -> None:
    study, _, _ = ran
    other = network(study, 77)
    given = {("standard", 5): (other, [{"epoch": 0, "val_accuracy": 0.5}])}
    found, histories = replace(study, parts=Parts(tmp_path, files=[]), given=given).run()
    first = found[(found.point == "dense") & (found.base == "standard") & (found.seed == 5)]
    work = Work(5, study.params.active().batch)
    attack, images = study.params.active().attacks["main"], study.test.images / 255
    expected = craft(other, images, study.test.labels, attack, work)
    told = rows(other, images, expected, study.test.labels, "main", work)
    assert first[first.attack == "main"].adv_margin.tolist() == told.adv_margin.tolist()
    told_of = histories[(histories.point == "dense") & (histories.seed == 5)]
    assert 0.5 in told_of.val_accuracy.tolist()


def test_without_points_nothing_is_done(digits: Any, tmp_path: Path) -> None:
    records, histories = course(digits, tmp_path, chosen(points={})).run()
    assert records.empty and histories.empty


def test_histories_are_found_among_notes() -> None:
    history = [{"epoch": 1, "train_loss": 0.5}]
    notes = {"layers": {"a": 0.5}, "train": history, "scores": [], "order": [1, 2], "moved": 0.1}
    assert histories_of(notes) == {"train": history}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dense": "odd", "points": {}}, "sparsity_study: there is no recipe 'odd'"),
        ({"dense": "odd"}, "sparsity_study: there is no recipe 'odd'; known: standard, mixed"),
        ({"points": {"a": {"family": "LWM", "base": "odd"}}}, "there is no recipe 'odd'"),
        ({"attacks": ["odd"]}, "sparsity_study.attacks: 'odd' is not among the attacks"),
        ({"points": {"dense": {"family": "LWM"}}}, "points: the name 'dense' is taken"),
        ({"seeds": 0}, "sparsity_study.seeds"),
    ],
)
def test_wrong_studies_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        chosen(**changes)


def test_settings_of_points_are_checked_before_anything_runs() -> None:
    read = chosen(points={"a": {"family": "LWM", "setting": 1.5}})
    wrong = read.model_copy(update={"prune": {"E": 1e-2}, "sweep": {}})
    with pytest.raises(UserError, match=r"sparsity_study\.points\.a: sparsity.*1\.5"):
        check_settings(wrong)


@pytest.mark.parametrize("base", [None, "robust"])
def test_tickets_need_a_base_that_is_there(base: str | None) -> None:
    words = r"ticket_base: .* is not among bases \(standard\); name one of them, or take"
    with pytest.raises(UserError, match=words):
        settings(tickets={"HYDRA": 0.9}, ticket_base=base)
    assert settings(ticket_base=base).tickets == {}
    read = settings(tickets={"HYDRA": 0.9}, ticket_base="standard")
    assert read.models("standard")[-1] == "HYDRA"
    assert settings(
        tickets={"HYDRA": 0.9},
        ticket_base="standard",
        quantized={"small": {"of": "HYDRA"}},
        substitutes={"HYDRA": {}},
    )
