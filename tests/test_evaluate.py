"""Records, metrics, robust accuracy, distances, transfer, layers: values worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from planted import N, planted
from planted import rows as planted_rows
from torch import nn

from advprune.attacks.registry import typed
from advprune.core import params
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
from advprune.evaluate.craft import craft, curve_settings, rows
from advprune.evaluate.layers import looked_at, noisy_images, wasserstein, where
from advprune.evaluate.measures import calibration_error, right
from advprune.evaluate.records import Work, all_logits, predictions
from advprune.evaluate.robust import ROUNDING, area, union
from advprune.evaluate.statistics import Rate
from advprune.evaluate.suite import Suite
from advprune.evaluate.transfer import ANSWERS, transfer_records, transfer_success
from advprune.pruning import prune
from advprune.quantization.post_training import quantize
from conftest import linear_problem


def records(label, clean, adv):
    """Records with given predictions."""
    scores = {"confidence": 0.8, "nll": 1.0, "brier": 0.5}
    table = {f"{side}_{name}": x for side in ("clean", "adv") for name, x in scores.items()}
    table |= {"label": label, "clean_pred": clean, "adv_pred": adv, "attack": "a"}
    return pd.DataFrame(table).reset_index()


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
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, False, True, True])
    # two bins: |1 - 1.9| and |2 - 1.1| over four images
    assert calibration_error(confidence, right) == pytest.approx((0.9 + 0.9) / 4)
    assert calibration_error(np.ones(3), np.ones(3)) == 0.0
    # In the last two of 15 bins, which must not be one.
    apart = calibration_error(np.array([0.9, 0.99]), np.array([True, False]))
    assert apart == pytest.approx((0.1 + 0.99) / 2)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Wilson's interval with z = 1.95996: closed form (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / …
    [(81, 263, 0.2553, 0.3662), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_intervals(hits, n, low, high):
    assert Rate(hits, n).interval == pytest.approx((low, high), abs=1e-4)


def test_transfer_success_counts_only_what_both_models_had_right():
    source = records([0, 0, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1])
    target = records([0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 1, 1])
    rate = transfer_success(target, source)
    assert (rate.hits, rate.n) == (1, 2)  # images 0 and 1 count; only 0 is fooled
    assert transfer_success(target, source.assign(label=9)) == rate  # the target's label counts
    for wrong in (source.iloc[:3], source.iloc[::-1], source.assign(attack="b")):
        with pytest.raises(ValueError, match="same images"):
            transfer_success(target, wrong)


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
    model, images, labels, known = linear_problem(norm)
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
    half = where(model, images, torch.stack([images[0], images[1] + 0.04]), images)  # 0.08 sigma
    assert half.adv_changed.iloc[1] == 0.0
    monkeypatch.setattr(layers, "LOOKED_AT", 1)
    assert where(model, images, adv, adv).equals(where(model, images[:1], adv[:1], adv[:1]))
    assert wasserstein(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 6.0, 8.0])) == 5.0
    assert wasserstein(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])) == 0.0


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
    one, many = (where(network, digits[0], adv, adv, batch=b) for b in (64, 16))
    columns = ["mean_difference", "relative_difference", "clean_sigma", "adv_mean"]
    assert np.allclose(one[columns], many[columns], rtol=1e-5)
    bn = one[one.layer == "bn1"].iloc[0]
    assert bn.clean_mean != one[one.layer == "act1"].iloc[0].clean_mean  # before the ReLU acts
    # Sites are watched with what families put there; the identity of a shortcut is no layer.
    assert list(looked_at(prune("clamp", network, 2, digits).model)) == one.layer.tolist()
    assert "layer1.0.shortcut" not in looked_at(network)


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
    assert largest.linf["MIFGSM"] <= 8 / 255 + 1e-6 and 1.2 < largest.l2["wide"] <= 1.5 + 1e-5
    again, _ = Suite(*digits, profile, choice, 0, parts).attack("dense", network)
    assert again.equals(records)
    fresh = Suite(*digits, profile, choice, 0, Parts(tmp_path / "b", files=[]))
    sent = fresh.images_of("mine", network)  # of a model that is a source alone
    assert list(sent) == ["far", "field"]
    assert all(torch.equal(sent[name], adv[name]) for name in sent)


# --- robust accuracy as a union, and distances ----------------------------------------------------
EPS = 48 / 255


def test_an_image_is_robust_only_if_nothing_within_the_budget_fools_it():
    """The main attack leaves 30, a probe the first 20, a transferred image the first 10; a budget
    larger by a grey level and the frozen copy of a random model do not count."""
    beyond = EPS + 1 / 255
    own = [planted_rows("main", planted(30)), planted_rows("probe_noise", planted(20))]
    own += [
        planted_rows("curve_eps", planted(0), eps=beyond),
        planted_rows("probe_frozen", planted(0)),
    ]
    found = union(pd.concat(own), [planted_rows("field", planted(10))], "Linf", EPS)
    assert right(found).tolist() == planted(10).tolist()
    assert found.distance[:10].tolist() == [beyond] * 10  # curve_eps fools all, at that size
    assert found.distance[10:].tolist() == pytest.approx([EPS] * 30)


def test_distances_are_the_smallest_found_and_agree_with_robust_accuracy():
    sizes = np.linspace(0.01, 0.4, N)
    search = planted_rows("distance", sizes > EPS).assign(distance=sizes)
    weak = planted_rows("weak", planted(N - 5), eps=0.005)  # fools the last five with less
    wrong = planted_rows("clean", planted(N), clean=N)
    wrong.loc[wrong["index"] == 7, ["clean_pred", "adv_pred", "chosen_margin"]] = [-1, -1, -1.0]
    search.loc[search["index"] == 7, "clean_pred"] = -1
    found = union(pd.concat([search, weak, wrong]), [], "Linf", EPS)
    expected = np.where(np.arange(N) < N - 5, sizes, 0.005)
    expected[7] = 0.0
    assert found.distance.tolist() == pytest.approx(expected.tolist())
    assert ((found.distance > EPS + ROUNDING) == right(found)).all()
    assert area(np.array([0.0, 0.1, np.inf]), 0.2) == pytest.approx((0 + 0.5 + 1) / 3)


def test_a_random_model_is_as_near_as_the_smallest_change_that_fools_it_in_both_sets_of_draws():
    """Another attack at half the distance counts, unless that fools by the luck of one set."""
    search = planted_rows("distance", planted(0)).assign(distance=0.1)
    near = planted_rows("weak", planted(0), eps=0.05)
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
        table = planted_rows(f"attack {attack}", fresh > 0, clean=400)
        tables.append(table.assign(chosen_margin=chosen, adv_margin=fresh))
    records = pd.concat(tables, ignore_index=True)
    honest = union(records, [], "Linf", EPS)
    assert right(honest).mean() == pytest.approx(0.5, abs=0.08)
    assert ((honest.distance > EPS) == right(honest)).all()
    same = records.assign(chosen_margin=records.adv_margin)
    assert not right(union(same, [], "Linf", EPS)).any()


def test_an_attack_that_comes_after_another_works_on_what_that_did_not_break(tmp_path):
    """A linear model at a budget that reaches some images: Square tries only the others, and an
    attack `within` a distance those whose distance, known in closed form, is not larger."""
    profile = params.load().active()
    names = ("apgd_ce", "square", "distance", "apgd_near")
    suite = {"table": ["field"], "transfer": ["field"], "deterministic": list(names)}
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
    chosen = {"suite": profile.suite.model_copy(update=suite), "attacks": attacks, "batch": 8}
    profile = profile.model_copy(update=chosen)
    settings = profile, params.load().attack, 0, Parts(tmp_path, files=[])
    records, _ = Suite(images, labels, *settings).attack("linear", model)
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
    between = ~far & (search.adv_pred == search.label)
    assert between.sum() == 4 and (search.linf[between] > 0.9 * eps).all()  # where it starts


# --- what a target says to images crafted elsewhere -----------------------------------------------
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


def by_loop(target, pair, crafted):
    """The same table, image by image, with the margin by hand."""
    told = []
    for key, pixels in crafted.items():
        for index, (image, label) in enumerate(zip(pair[0], pair[1].tolist(), strict=True)):
            clean = int(target(image[None]).argmax())
            logits = target(pixels[index][None] / 255)[0].tolist()
            margin = logits.pop(label) - max(logits)
            told.append((*key, index, label, clean, margin))
    columns = ["source", "attack", "index", "label", "clean_pred", "adv_margin"]
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
    found = table[list(expected)]
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=0, atol=1e-4)
    assert ((table.adv_margin > 0) == (table.adv_pred == table.label)).all()
    assert (table.adv_pred != table.clean_pred).any()
    assert transfer_records(target, *few, crafted, replace(WORK, seed=9, draws=7)).equals(table)
    nothing = transfer_records(target, *few, {}, WORK)  # as in a run of one model
    assert nothing.empty and list(nothing) == list(table)


def test_a_randomized_target_is_scored_by_its_draws_and_the_seed(network, few, crafted):
    target = prune("dropout", network, 0.5).model.eval()
    table = transfer_records(target, *few, crafted, WORK)
    for key, part in table.groupby(["source", "attack"], sort=False):
        logits = all_logits(target, crafted[key] / 255, Work(3, 10, 8))[4:].mean(0)
        assert part.adv_pred.tolist() == logits.argmax(1).tolist()
        clean = all_logits(target, few[0], Work(3, 10, 4)).mean(0)
        assert part.clean_pred.tolist() == clean.argmax(1).tolist()
    for change in ({"seed": 4}, {"draws": 5}):
        other = transfer_records(target, *few, crafted, replace(WORK, **change))
        assert not other.adv_margin.equals(table.adv_margin), change
