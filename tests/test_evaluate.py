"""Records, metrics, intervals, transfer and layer figures, against values worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advprune.attacks.registry import typed
from advprune.core.attack_settings import (
    AttackChoice,
    AttackSettings,
    CurveSettings,
    ExtraAttack,
    OtherAttack,
    SuiteSettings,
)
from advprune.core.profile import Profile
from advprune.core.resume import Parts
from advprune.evaluate import layers, metrics, score
from advprune.evaluate.craft import Work, craft, curve_settings, rows
from advprune.evaluate.layers import looked_at, noisy_images, wasserstein, where
from advprune.evaluate.measures import calibration_error
from advprune.evaluate.records import predictions
from advprune.evaluate.statistics import Rate
from advprune.evaluate.suite import Suite
from advprune.evaluate.transfer import transfer_success
from advprune.pruning import prune
from conftest import Linear


def records(label, clean, adv):
    """Records with given predictions."""
    table = pd.DataFrame({"label": label, "clean_pred": clean, "adv_pred": adv, "attack": "a"})
    for side in ("clean", "adv"):
        for column, value in (("confidence", 0.8), ("nll", 1.0), ("brier", 0.5)):
            table[f"{side}_{column}"] = value
    return table.reset_index()


def test_metrics_by_hand():
    #  label 0 0 0 0 1, clean right on four, attacked right on two, changed on three
    found = metrics(records([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 1, 1, 0, 1]))
    assert found["n"] == 5
    assert found["clean_accuracy"] == 0.8  # images 0, 1, 2, 4
    assert found["remnant_accuracy"] == 0.6  # images 0, 3, 4
    assert found["prediction_change_rate"] == 0.6  # images 1, 2, 3
    assert found["attack_success_rate"] == 0.5  # of 0, 1, 2, 4: images 1 and 2
    assert found["ece"] == 0.0  # 80 % sure, 80 % right
    assert found["ece_attacked"] == pytest.approx(0.2)
    none = metrics(records([0, 0], [1, 1], [1, 1]))  # over no images: null, not zero
    assert none["attack_success_rate"] is None and none["attack_success_rate_low"] is None
    assert none["clean_accuracy"] == 0.0 and none["clean_accuracy_high"] > 0.5
    unsure = records([0, 0], [1, 1], [1, 1]).assign(adv_confidence=np.nan, adv_nll=np.nan)
    scores = metrics(unsure)
    assert scores["ece_attacked"] is scores["nll_attacked"] is None and scores["brier"] == 0.5


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Wilson's interval with z = 1.95996: closed form (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / …
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_intervals(hits, n, low, high):
    assert Rate(hits, n).interval == pytest.approx((low, high), abs=1e-4)


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    # two bins: |1 - 1.9| and |2 - 1.1| over four images
    assert calibration_error(confidence, right) == pytest.approx((0.9 + 0.9) / 4)
    assert calibration_error(np.ones(3), np.ones(3)) == 0.0


def test_transfer_success_counts_only_what_both_models_had_right():
    source = records([0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1])
    target = records([0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1])
    rate = transfer_success(target, source)
    assert (rate.hits, rate.n) == (1, 2)  # images 0 and 1 count; only 0 is fooled
    turned = source.iloc[::-1]
    other = source.assign(attack="b")
    for wrong in (source.iloc[:3], turned, other, source.assign(index=[0, 1, 2, 4])):
        with pytest.raises(ValueError, match="same images"):
            transfer_success(target, wrong)
    both = (target.iloc[::-1].reset_index(drop=True), turned.reset_index(drop=True))
    assert transfer_success(*both) == rate  # whatever the order, where both have the same
    assert transfer_success(target, source.assign(label=9)) == rate  # the target's label counts


def test_score_by_hand(linear):
    linear.weight.data = torch.zeros(2, 48)
    linear.weight.data[0, 0] = 4.0
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0] = 1.0  # logits 4, 0
    adv = images.clone()
    adv[0, 0, 0, 0] = 0.5  # logits 2, 0
    table = score(linear, images, adv, torch.tensor([0, 1]), attack="a", eps=0.5)
    first = table.iloc[0]
    sure = 1 / (1 + np.exp(-4.0))
    assert first.clean_confidence == pytest.approx(sure)
    assert first.clean_nll == pytest.approx(-np.log(sure), abs=1e-6)
    assert first.clean_brier == pytest.approx(2 * (1 - sure) ** 2, abs=1e-6)
    assert (first.clean_margin, first.adv_margin) == (4.0, 2.0)
    assert (first.linf, first.l2, first.attack, first.eps) == (0.5, 0.5, "a", 0.5)
    assert table["index"].tolist() == [0, 1] and table.linf[1] == 0


def test_score_refuses_what_makes_no_sense(linear):
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="score"):
        score(linear, images, images[:1], labels)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        score(linear, images, images, labels)


def test_what_is_stored_is_what_is_scored(network, digits):
    images, labels = digits
    setting = AttackSettings(eps=0.2, step=0.05, steps=3)
    crafted = craft(network, images, labels, setting, Work(seed=1))
    pixels = crafted.pixels
    assert pixels.dtype == torch.uint8
    table = rows(network, images, crafted, labels, "a", Work(seed=1))
    assert (table.gradients == 3).all() and (table.forwards == 3).all()
    assert (table.adv_pred.to_numpy() == network(pixels / 255).argmax(1).numpy()).all()
    assert table.linf.max() <= 0.2 + 1e-6
    assert torch.equal(pixels, craft(network, images, labels, setting, Work(seed=1)).pixels)
    assert not torch.equal(pixels, craft(network, images, labels, setting, Work(seed=2)).pixels)


def test_dropped_samples_that_rounding_puts_right_are_attacked_again(network, digits):
    images, labels = digits[0], network(digits[0]).argmax(1)
    for eps in (4 / 255, 8 / 255, 16 / 255):
        setting = AttackSettings(eps=eps, step=eps / 8, steps=20, drop=True)
        whole = setting.model_copy(update={"drop": False})
        right = [
            int((predictions(network, crafted.pixels / 255) == labels).sum())
            for crafted in (craft(network, images, labels, s) for s in (setting, whole))
        ]
        assert right[0] <= right[1] + 2  # the last iterate may be right again; dropping keeps


BOTH_NORMS = [(m, norm) for m in ("pgd", "apgd", "minimum_norm") for norm in ("Linf", "L2")]


@pytest.mark.parametrize(("method", "norm"), [*BOTH_NORMS, ("square", "Linf")])
def test_every_method_fools_the_images_of_a_linear_model_that_its_budget_reaches(method, norm):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(5, 48, generator=generator)
    images = torch.randint(102, 153, (60, 3, 4, 4), generator=generator) / 255
    model = Linear(weight)
    labels = model(images).argmax(1)
    known = model.distance(images, labels, norm)
    eps = round(float(known.median()) * 255) / 255
    read = OtherAttack.model_validate({"method": method, "norm": norm, "eps": eps})
    if method == "pgd":
        read = read.model_copy(update={"step": eps / 10, "steps": 40})
    setting = typed("it", read)
    fooled = model(craft(model, images, labels, setting).pixels / 255).argmax(1) != labels
    reached, out_of_reach = known < 0.8 * eps, known > 1.01 * eps
    assert reached.sum() > 10 and out_of_reach.sum() > 10
    assert fooled[reached].all() and not fooled[out_of_reach].any()


def test_curves_keep_the_ratio_of_step_to_eps():
    main = AttackSettings(eps=0.2, step=0.05, steps=10)
    found = list(curve_settings(main, CurveSettings(eps=[0, 0.4], steps=[3])))
    assert [(name, s.eps, s.step, s.steps) for name, s in found] == [
        ("curve_eps", 0.0, 0.0, 10),
        ("curve_eps", 0.4, 0.1, 10),
        ("curve_steps", 0.2, 0.05, 3),
    ]


def test_layer_figures_by_hand(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False))
    model[1].weight.data = torch.tensor([[2.0, 0.0]])
    images = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]])
    adv = images + 0.5
    table = where(model, images, adv, images.flip(0))
    assert table.layer.tolist() == ["0", "1"] and table.kind.tolist() == ["Flatten", "Linear"]
    last = table.iloc[1]  # clean 2, 0; adversarial 3, 1
    assert (last.mean_difference, last.max_difference) == (1.0, 1.0)
    assert last.relative_difference == pytest.approx(np.sqrt(2 / 4))
    assert (last.clean_mean, last.adv_mean, last.clean_sigma) == (1.0, 2.0, 1.0)
    assert last.distance == pytest.approx(1.0)
    assert (last.clean_max, last.adv_max, last.clean_top, last.adv_top) == (2.0, 3.0, 2.0, 3.0)
    assert (last.adv_changed, last.noise_changed) == (1.0, 1.0)
    assert last.noise_relative == pytest.approx(np.sqrt(8 / 4)) and last.noise_mean == 1.0
    # Image by image 3 and 1 against 0 and 2 under noise: 3 and -1, over the clean mean of 1.
    assert (last.top_gain, last.top_gain_error) == (1.0, pytest.approx(2.0))
    assert (last.changed_gain, last.changed_gain_error) == (0.0, 0.0)
    half = where(model, images, torch.stack([images[0], images[1] + 0.04]))  # 0.08 sigma
    assert half.adv_changed.iloc[1] == 0.0 and "noise_mean" not in half
    monkeypatch.setattr(layers, "LOOKED_AT", 1)
    assert where(model, images, adv).equals(where(model, images[:1], adv[:1]))


def test_noise_has_the_attacks_sizes_and_not_its_places(digits):
    images = 0.25 + digits[0] / 2
    adv = images + 0.1 * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    noisy = noisy_images(images, adv, 0)
    sizes = [(one - images).abs().flatten(1).sort().values for one in (adv, noisy)]
    assert torch.allclose(*sizes, atol=1e-6)
    signs = (noisy - images).sign()
    assert abs(float(signs.mean())) < 0.1 and not torch.equal(noisy, noisy_images(images, adv, 1))


def test_layer_figures_do_not_depend_on_batches_or_inplace_layers(network, digits):
    adv = (digits[0] + 0.1).clamp(0, 1)
    one, many = (where(network, digits[0], adv, batch=b) for b in (64, 16))
    columns = ["mean_difference", "relative_difference", "clean_sigma", "adv_mean"]
    assert np.allclose(one[columns], many[columns], rtol=1e-5)
    bn = one[one.layer == "bn1"].iloc[0]
    assert bn.clean_mean != one[one.layer == "act1"].iloc[0].clean_mean  # before the ReLU acts
    # Sites are watched with what families put there; the identity of a shortcut is no layer.
    assert list(looked_at(prune("clamp", network, 2, digits).model)) == one.layer.tolist()
    assert "layer1.0.shortcut" not in looked_at(network)


def test_wasserstein_by_hand():
    assert wasserstein(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 6.0, 8.0])) == 5.0
    assert wasserstein(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])) == 0.0


def test_a_suite_holds_every_attack_and_curve_and_resumes(network, digits, tmp_path):
    attacks = {
        "field": AttackSettings(eps=0.1, step=0.05, steps=2),
        "far": AttackSettings(eps=0.1, step=0.1, steps=1),
        "more": AttackSettings(eps=0.1, step=0.1, steps=1, loss="margin"),
    }
    curves = CurveSettings(eps=[0, 0.1], steps=[1, 2])  # the last of both is the same attack
    chosen = SuiteSettings(table=["field"], transfer=["far", "field"], deterministic=["more"])
    profile = Profile.model_construct(attacks=attacks, suite=chosen, curves=curves, batch=32)
    extra = [
        ExtraAttack(name="MIFGSM", eps="8/255", steps=2),
        ExtraAttack(name="PGDL2", label="wide", eps=1.5, alpha=0.5, steps=2),
    ]
    choice = AttackChoice(main="field", extra=extra)
    parts = Parts(tmp_path, files=[])
    suite = Suite(*digits, profile, choice, 0, parts)
    records, adv = suite.attack("dense", network)
    assert list(adv) == ["field", "far"]  # what other models are tried on
    counts = records.groupby("attack").size().to_dict()
    given = ("probe_gradient", "probe_honesty", "probe_noise", "probe_single")
    probes = dict.fromkeys(given, 64)  # nothing is left for the others
    attacked = dict.fromkeys((*attacks, "MIFGSM", "wide"), 64)
    assert counts == attacked | probes | {"curve_eps": 128, "curve_steps": 128}
    assert len(list(tmp_path.rglob("curve*.safetensors"))) == 3
    ends = [records[records.attack == name].tail(64) for name in ("curve_eps", "curve_steps")]
    first, second = (one.drop(columns="attack").reset_index(drop=True) for one in ends)
    assert first.equals(second)
    noise = records[records.attack == "probe_noise"]
    assert noise.linf.max() <= 0.1 + 1e-6 and (noise.forwards == 20).all()
    largest = records.groupby("attack")[["linf", "l2"]].max()
    assert largest.linf["MIFGSM"] <= 8 / 255 + 1e-6 and largest.l2["wide"] <= 1.5 + 1e-5
    assert largest.l2["wide"] > 1.2 and (records.eps[records.attack == "wide"] == 1.5).all()
    again, _ = Suite(*digits, profile, choice, 0, parts).attack("dense", network)
    assert again.equals(records)
    fresh = Suite(*digits, profile, choice, 0, Parts(tmp_path / "b", files=[]))
    sent = fresh.images_of("mine", network)  # of a model that is a source alone
    assert list(sent) == ["far", "field"]
    assert all(torch.equal(sent[name], adv[name]) for name in sent)
