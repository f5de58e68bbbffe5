"""Transfer: what a target says to images crafted elsewhere, against a loop over single images."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from advprune.evaluate.craft import Work
from advprune.evaluate.records import Scoring, all_logits
from advprune.evaluate.transfer import ANSWERS, transfer_records
from advprune.pruning import prune
from advprune.quantization.post_training import quantize

KEYS = [("dense-standard", "field"), ("E-standard", "field"), ("dense-standard", "momentum")]
WORK = Work(seed=3, batch=10, draws=4)


@pytest.fixture
def few(digits):
    """24 digits: batches of 10 do not divide them."""
    return digits[0][:24], digits[1][:24]


@pytest.fixture
def crafted(few):
    """Three sets of noisy images, uint8."""
    generator, found = torch.Generator().manual_seed(0), {}
    for key in KEYS:
        noise = 0.4 * torch.randn(few[0].shape, generator=generator)
        found[key] = ((few[0] + noise).clamp(0, 1) * 255).round().to(torch.uint8)
    return found


def randomized(network):
    """A network with random layers."""
    return prune("dropout", network, 0.5).model.eval()


def by_loop(target, pair, crafted):
    """The same table, image by image, with the margin by hand."""
    told = []
    for (source, attack), pixels in crafted.items():
        for index, label in enumerate(pair[1].tolist()):
            clean = target(pair[0][index : index + 1])[0]
            logits = target(pixels[index : index + 1].float() / 255)[0].tolist()
            best = max(range(len(logits)), key=logits.__getitem__)
            others = [value for place, value in enumerate(logits) if place != label]
            margin = logits[label] - max(others)
            told.append((source, attack, index, label, int(clean.argmax()), best, margin))
    columns = ["source", "attack", "index", "label", "clean_pred", "adv_pred", "adv_margin"]
    return pd.DataFrame(told, columns=columns)


@pytest.mark.parametrize("kind", ["float", "int8"])
@torch.no_grad()
def test_answers_are_those_of_a_loop(network, few, crafted, kind):
    target = quantize(network, few[0]) if kind == "int8" else network
    table, expected = transfer_records(target, *few, crafted, WORK), by_loop(target, few, crafted)
    assert set(table) == {*expected, *ANSWERS, "linf", "l2"}
    changes = [(pixels / 255 - few[0]).abs().flatten(1).amax(1) for pixels in crafted.values()]
    assert table.linf.tolist() == pytest.approx(torch.cat(changes).tolist())
    assert table.chosen_margin.equals(table.adv_margin)  # of a deterministic model
    exact = [column for column in expected if column != "adv_margin"]
    assert table[exact].to_numpy().tolist() == expected[exact].to_numpy().tolist()
    nothing = transfer_records(target, *few, {}, WORK)  # as in a run of one model
    assert nothing.empty and list(nothing) == list(table)
    assert table.adv_margin.tolist() == pytest.approx(expected.adv_margin.tolist(), abs=1e-4)
    assert ((table.adv_margin > 0) == (table.adv_pred == table.label)).all()
    assert table.adv_pred.nunique() > 1 and (table.adv_pred != table.clean_pred).any()
    assert transfer_records(target, *few, crafted, replace(WORK, seed=9, draws=7)).equals(table)


@pytest.mark.parametrize(("is_random", "draws"), [(False, 1), (True, 4)])
def test_clean_images_are_scored_once(network, few, crafted, is_random, draws):
    target = randomized(network) if is_random else network
    passed = []
    shown = []
    hook = target.register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    transfer_records(target, *few, crafted, replace(WORK, progress=shown.append))
    hook.remove()
    # models/border.py: two images twice, each alone; once twice more, and eight in two ways
    checked = 6 * (1 + len(crafted)) + (4 if is_random else 4 + 16)
    # The attacked ones twice by a random model: to choose a worst case, and to score it.
    asked = draws * (1 + (1 + is_random) * len(crafted))
    assert sum(passed) == asked * 24 + checked and shown == [1, 1, 1]


def test_a_randomized_target_is_scored_by_its_draws_and_the_seed(network, few, crafted):
    target = randomized(network)
    before = torch.random.get_rng_state()
    table = transfer_records(target, *few, crafted, WORK)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)  # the global state makes no difference
    assert transfer_records(target, *few, crafted, WORK).equals(table)
    for key, part in table.groupby(["source", "attack"], sort=False):
        logits = all_logits(target, crafted[key] / 255, Scoring(10, 8, seed=3))[4:].mean(0)
        assert part.adv_pred.tolist() == logits.argmax(1).tolist()
        clean = all_logits(target, few[0], Scoring(10, 4, seed=3)).mean(0)
        assert part.clean_pred.tolist() == clean.argmax(1).tolist()
    for change in ({"seed": 4}, {"draws": 5}):
        other = transfer_records(target, *few, crafted, replace(WORK, **change))
        assert not other.adv_margin.equals(table.adv_margin), change
