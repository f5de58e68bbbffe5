"""The verdict on networks, honest and masked, scoring over draws, and the published protocol."""

import masked
import pytest
import torch
from workspace import ROOT

from advprune import prune
from advprune.attacks import pgd, to_pixels
from advprune.core import params
from advprune.core.attack_settings import AttackSettings, ProtocolSettings
from advprune.core.profile import FROZEN
from advprune.core.resume import Parts
from advprune.data import prepare
from advprune.evaluate.craft import craft, kind_of, rows
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.records import Work, answers, score
from advprune.evaluate.robust import union
from advprune.evaluate.suite import Suite
from advprune.evaluate.transfer import transfer_records
from advprune.evaluate.verdict import Evidence, verdict
from advprune.models.checkpoint import load_model
from advprune.quantization.post_training import quantize
from advprune.studies.protocol import recorded

PARAMS = params.load(ROOT / "params.yaml", profile="digits")
SHORT = {"apgd_ce": {"steps": 20}, "apgd_t": {"steps": 10}, "distance": {"steps": 20}}
CURVES = {"eps": ["24/255", "48/255", "128/255"], "steps": [1, 10, 20]}
FEW = {  # attacks of the digits, each of which takes time to begin
    **{"table": ["field"], "transfer": ["field"]},
    "deterministic": ["apgd_ce", "apgd_t", "square", "distance"],
}


@pytest.fixture(scope="module")
def dense():
    """A network that has learnt the digits."""
    return load_model(ROOT / "weights/digits/dense-standard.fp16.safetensors")


@pytest.fixture(scope="module")
def pair():
    """Test images and labels."""
    limits = {"train_limit": 10, "test_limit": 48}
    test = prepare(PARAMS.active().data.model_copy(update=limits))["test"]
    return test.images / 255, test.labels


@pytest.fixture(scope="module")
def main_attack(dense, pair):
    """The main attack's images on the dense network, and their records."""
    made = craft(dense, *pair, PARAMS.active().table()["field"])
    return made.pixels, rows(dense, pair[0], made, pair[1], "field")


def judged(model, pair, folder, main_attack, **suite):
    """The verdict that the pipeline would give a model, with another suite where one is given, and
    its records."""
    raw = PARAMS.active().model_dump() | {"curves": CURVES}
    raw["suite"] = raw["suite"] | FEW | suite
    raw["attacks"] = {name: one | SHORT.get(name, {}) for name, one in raw["attacks"].items()}
    settings = params.Profile.model_validate(raw), PARAMS.attack, 0, Parts(folder, files=[])
    records, _ = Suite(*pair, *settings).attack("planted", model)
    (images, parent), key = main_attack, ("dense", "field")
    transfers = {key: transfer_records(model, *pair, {key: images}, Work())}
    return verdict(Evidence(records, "field", 10, transfers, parent, None)), records


def names(found):
    return {check.name for check in found.against}


def test_an_honest_network_is_reliable(dense, pair, main_attack, tmp_path):
    found, records = judged(dense, pair, tmp_path, main_attack)
    assert found.level == "reliable", found.against
    assert len(found.checks) >= 9 and all(c.figure and not c.reason for c in found.checks)
    assert "probe_nes" not in set(records.attack)  # its gradients are its own


@pytest.mark.parametrize("kind", [masked.saturated, masked.rounded, masked.backwards])
def test_a_network_that_hides_its_gradients_is_called_out(kind, dense, pair, main_attack, tmp_path):
    found, records = judged(kind(dense).eval(), pair, tmp_path, main_attack)
    assert found.level == "broken"
    if kind is not masked.backwards:
        assert "zero gradients" in names(found)
    if kind is not masked.saturated:  # the margin loss sees through saturation
        assert any(name.startswith("wrong gradients") for name in names(found))
    if kind is masked.rounded:
        assert {"transfer", "gradient-free", "estimated gradients"} <= names(found)
        by_answers = records[records.attack.isin(["probe_nes", "probe_student"])]
        left = [part.adv_pred == part.label for _, part in by_answers.groupby("attack")]
        assert len(left) == 2 and max(float(one.mean()) for one in left) < 0.2
        robust = union(records, [], "Linf", PARAMS.active().attacks["field"].eps)
        assert remnant_accuracy(robust).value < 0.1  # what answers alone break counts


def test_sap_under_a_single_draw_is_not_reliable_and_under_its_suite_it_is(
    dense, pair, main_attack, tmp_path
):
    model, (pixels, parent) = prune("SAP", dense, 1.0).model, main_attack
    pair, main_attack = (pair[0][:24], pair[1][:24]), (pixels[:24], parent[:24])
    suite = {"table": ["field"], "randomized": ["single", "square"]}
    weak, _ = judged(model, pair, tmp_path / "a", main_attack, **suite)
    assert weak.level == "reliable", weak.against  # `field` averages and goes straight through
    raw = PARAMS.active().model_dump()
    raw |= {"attacks": {"field": raw["attacks"]["single"]}}
    raw |= {"suite": {"table": ["field"], "transfer": ["field"]}, "curves": CURVES}
    settings = params.Profile.model_validate(raw), PARAMS.attack, 0, Parts(tmp_path, files=[])
    records, _ = Suite(*pair, *settings).attack("planted", model)
    found = verdict(Evidence(records, "field", 10))
    assert found.level == "broken"
    assert {"averaged gradients", "more steps, starts and draws"} <= names(found)


# --- scoring over draws --------------------------------------------------------------------------
def test_randomized_models_are_scored_by_their_mean_logits(network, digits, monkeypatch):
    """Logits of three draws: the mean says 0, two draws say 1. Three more choose the worst case."""
    draws = torch.tensor([[0.0, 1.0], [0.0, 1.0], [5.0, 0.0]]).repeat(2, 1)
    drawn = draws[:, None].expand(6, 2, 2)  # [draws, images, classes]
    monkeypatch.setattr("advprune.evaluate.records.all_logits", lambda *_: drawn)
    model, labels = prune("SAP", network, 1.0).model, torch.tensor([0, 1])
    found = answers("adv", model, digits[0][:2], labels, Work(batch=2, draws=3))
    assert found["adv_pred"].tolist() == [0, 0]
    assert found["adv_single_pred"].tolist() == [1, 1]
    assert found["adv_wrong"] == pytest.approx([2 / 3, 1 / 3])


def test_scores_are_repeatable_and_leave_the_random_state(network, digits):
    model = prune("SAP", network, 1.0).model
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    tables = [score(model, digits[0], digits[0], digits[1], seed=s) for s in (0, 0, 1)]
    assert tables[0].equals(tables[1]) and not tables[0].clean_margin.equals(tables[2].clean_margin)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert kind_of(model) == "randomized" and kind_of(network) == "deterministic"


def test_a_quantized_model_that_draws_is_attacked_as_a_random_one(
    dense, pair, main_attack, tmp_path
):
    """By gradients averaged over draws of its twin, on every image, and never image by image."""
    model = quantize(prune("SAP", dense, 1.0).model, pair[0])
    assert kind_of(model) == "randomized"
    few = pair[0][:16], pair[1][:16]
    suite = {"table": ["field"], "randomized": ["eot", "square"], "quantized": ["apgd_ce"]}
    pixels, parent = main_attack
    known = pixels[:16], parent[:16]
    _, records = judged(model, few, tmp_path, known, **suite)
    assert {"field", "eot", "square", FROZEN} <= set(records.attack)
    assert not {"apgd_ce", "probe_honesty"} & set(records.attack)
    eot = records[records.attack == "eot"]
    assert len(eot) == 16 and (eot.draws == 5).all() and (eot.gradients >= 50).all()
    clean = float((eot.clean_pred == eot.label).mean())
    assert remnant_accuracy(eot).value < clean - 0.3


# --- the published protocol ----------------------------------------------------------------------
def test_the_protocol_is_plain_fgsm_of_a_deterministic_network_and_averages_draws_of_a_random_one(
    network, digits
):
    step = AttackSettings(eps=0.2, step=0.05, steps=3)
    adaptive = {"x": step.model_copy(update={"draws": 3, "backward": "identity"})}
    settings = ProtocolSettings(eps=[0.0, 0.1], draws=5, iterative=step, adaptive=adaptive)
    found = recorded(network, False, digits, settings, Work())
    fgsm = found[(found.attack == "fgsm") & (found.eps == 0.1)]
    adv = pgd(network, *digits, 0.1, 0.1, 1, random_start=False)
    pixels = to_pixels(adv, digits[0], 0.1, "Linf")
    assert fgsm.adv_pred.tolist() == network(pixels / 255).argmax(1).tolist()
    assert (found[found.eps == 0].adv_pred == found[found.eps == 0].clean_pred).all()
    assert set(found.attack) == {"fgsm", "iterative"} and (fgsm.gradients == 1).all()
    few = digits[0][:8], digits[1][:8]
    own = recorded(prune("SAP", network, 1.0).model, True, few, settings, Work())
    costs = own.groupby("attack").gradients.agg(["min", "max"])
    assert costs["min"].to_dict() == costs["max"].to_dict() == {"fgsm": 5, "iterative": 3, "x": 9}
