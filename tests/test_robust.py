"""Robust accuracy as a union, and distances: on records in which every number has a known cause."""

import numpy as np
import pandas as pd
import pytest
import torch
from planted import N, planted, rows
from torch import nn

from advprune.core import params
from advprune.core.attack_settings import OtherAttack
from advprune.core.resume import Parts
from advprune.evaluate.robust import ROUNDING, area, union
from advprune.evaluate.suite import Suite

EPS = 48 / 255


def robust(found):
    return (found.adv_pred == found.label).tolist()


def test_an_image_is_robust_only_if_nothing_within_the_budget_fools_it():
    """The main attack leaves 30, a probe the first 20, a transferred image the first 10; a larger
    budget and the frozen copy of a random model do not count."""
    own = [rows("main", planted(30)), rows("probe_noise", planted(20))]
    own += [rows("curve_eps", planted(0), eps=2 * EPS), rows("probe_frozen", planted(0))]
    found = union(pd.concat(own), [rows("field", planted(10))], "Linf", EPS)
    assert robust(found) == planted(10).tolist()
    assert found.distance[:10].tolist() == [2 * EPS] * 10  # curve_eps fools all, at that size
    assert found.distance[10:].tolist() == pytest.approx([EPS] * 30)


def test_distances_are_the_smallest_found_and_agree_with_robust_accuracy():
    sizes = np.linspace(0.01, 0.4, N)
    search = rows("distance", sizes > EPS).assign(distance=sizes)
    weak = rows("weak", planted(N - 5), eps=0.005)  # fools the last five with less
    wrong = rows("clean", planted(N), clean=N).assign(linf=0.0)
    wrong.loc[wrong["index"] == 7, ["clean_pred", "adv_pred", "chosen_margin"]] = [-1, -1, -1.0]
    search.loc[search["index"] == 7, "clean_pred"] = -1
    found = union(pd.concat([search, weak, wrong]), [], "Linf", EPS)
    expected = np.where(np.arange(N) < N - 5, sizes, 0.005)
    expected[7] = 0.0
    assert found.distance.tolist() == pytest.approx(expected.tolist())
    assert (found.distance > EPS + ROUNDING).tolist() == robust(found)
    assert area(np.array([0.0, 0.1, np.inf]), 0.2) == pytest.approx((0 + 0.5 + 1) / 3)


def test_a_random_model_is_as_near_as_the_smallest_change_that_fools_it_in_both_sets_of_draws():
    """As a deterministic one is: another attack at half the distance counts, unless it fools by the
    luck of one set of draws. On the old code the search alone said how far a random model is."""
    search = rows("distance", planted(0)).assign(distance=0.1)
    near = rows("weak", planted(0), eps=0.05)
    near.loc[near["index"] < 10, "chosen_margin"] = 0.2  # right in the draws it is chosen by
    lucky = (near["index"] >= 10) & (near["index"] < 20)
    near.loc[lucky, "adv_pred"] = near.label[lucky]  # right in the draws it is scored by
    found = union(pd.concat([search, near]), [], "Linf", EPS)
    assert found.distance.tolist() == pytest.approx([0.1] * 20 + [0.05] * (N - 20))


def test_the_worst_attack_on_a_random_model_is_scored_on_other_draws_than_it_was_chosen_on():
    """Twenty attacks, each of which fools half of the draws by chance alone: chosen and scored on
    the same draws, they would fool every image."""
    random = np.random.default_rng(0)
    tables = []
    for attack in range(20):
        chosen, fresh = random.normal(size=(2, 400))
        table = rows(f"attack {attack}", fresh > 0, clean=400)
        tables.append(table.assign(chosen_margin=chosen, adv_margin=fresh))
    records = pd.concat(tables, ignore_index=True)
    honest = union(records, [], "Linf", EPS)
    assert np.mean(robust(honest)) == pytest.approx(0.5, abs=0.08)
    assert ((honest.distance > EPS) == robust(honest)).all()
    same = records.assign(chosen_margin=records.adv_margin)
    assert np.mean(robust(union(same, [], "Linf", EPS))) == 0


def test_an_attack_that_comes_after_another_works_on_what_that_did_not_break(tmp_path):
    """A linear model at a budget that reaches some images: Square tries only the others, and an
    attack `within` a distance those whose distance, known in closed form, is not larger."""
    profile = params.load().active()
    names = ("apgd_ce", "square", "distance", "apgd_near")
    suite = profile.suite.model_copy(update={"table": ["field"], "transfer": ["field"]})
    suite = suite.model_copy(update={"deterministic": list(names)})
    torch.manual_seed(0)
    images, labels = torch.randint(64, 192, (12, 1, 4, 4)) / 255, torch.zeros(12).long()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    logits, weights = model(images), model[1].weight
    labels = logits.argmax(1)
    gaps = logits.gather(1, labels[:, None]) - logits  # [12, 3]
    slopes = (weights[labels][:, None] - weights).abs().sum(2)
    distances = (gaps / slopes).nan_to_num(1.0).masked_fill(gaps == 0, 1.0).amin(1)
    eps, within = (distances.sort().values[at : at + 2].mean().item() for at in (4, 8))
    near = {"method": "apgd", "eps": eps, "steps": 7, "after": "distance", "within": within}
    attacks = {name: one.model_copy(update={"eps": eps}) for name, one in profile.attacks.items()}
    attacks["square"] = attacks["square"].model_copy(update={"after": "apgd_ce"})
    attacks["apgd_near"] = OtherAttack.model_validate(near)
    profile = profile.model_copy(update={"suite": suite, "attacks": attacks, "batch": 8})
    choice = params.load().attack
    suite = Suite(images, labels, profile, choice, 0, Parts(tmp_path, files=[]))
    records, _ = suite.attack("linear", model)
    tables = [records[records.attack == name].reset_index(drop=True) for name in names]
    first, then, search, last = tables
    left = first.adv_pred == first.label
    assert left.sum() == 7
    assert (then.adv_pred[~left] == first.adv_pred[~left]).all()
    queries = profile.attacks["square"].model_dump()["queries"]
    assert 0 < then.forwards.iloc[0] <= queries * left.mean() + 1
    assert last.gradients.iloc[0] == 8 * 4 / 12  # steps and the start, of the 4 of 12 in between
    far = (distances > within).numpy()
    assert (last.adv_pred[far] == search.adv_pred[far]).all()
