"""Probes: more than the suite in every resource, on what it left; honest and wrong gradients."""

from functools import partial
from pathlib import Path

import masked
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advprune.attacks.cost import Cost
from advprune.attacks.registry import typed
from advprune.core import params
from advprune.core.attack_settings import KINDS
from advprune.core.errors import InputError
from advprune.data import prepare
from advprune.evaluate.craft import craft, rows
from advprune.evaluate.evidence import white_box
from advprune.evaluate.honesty import slope_errors
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.probes import NES, Probe, _repeats, passes_of, stronger
from advprune.evaluate.records import Work
from advprune.evaluate.verdict import Evidence, dishonest, verdict
from advprune.models.border import admitted
from advprune.models.checkpoint import load_model
from advprune.pruning import prune

ROOT = Path(__file__).parent.parent
PARAMS = params.load(ROOT / "params.yaml", profile="digits")
FIELD = PARAMS.active().attacks["field"]


@pytest.fixture(scope="module")
def attacked():
    """Test images of the digits."""
    test = prepare(PARAMS.active().data)["test"]
    return test.images[:24] / 255, test.labels[:24]


def shipped(name):
    """A network whose weights come with the repository."""
    return load_model(ROOT / "weights" / "digits" / f"{name}.safetensors")


class Forked(nn.Module):
    """One pixel decides. Below grey the margin rises until it is fooled, above there is a trap."""

    def forward(self, x):
        up = x[:, 0, 0, 0] - 128 / 255
        rise = torch.where(up < 0, -0.4 * up, 0.2 * up - 2 * up**2) - 0.06
        return torch.stack([torch.zeros_like(rise), rise], 1)


@pytest.mark.parametrize("profile", list(PARAMS.profiles))
@pytest.mark.parametrize("kind", KINDS)
def test_the_stronger_probe_exceeds_every_attack_of_its_suite(profile, kind):
    """In passes for an image, in steps and draws, and in starts where those are not drawn."""
    active = params.load(ROOT / "params.yaml", profile=profile).active()
    suite = {name: typed(name, active.attacks[name]) for name in active.suite.of(kind)}
    randomized = kind == "randomized"
    main = active.table()[PARAMS.attack.main]
    probe = stronger(main, suite.values(), 10, randomized)
    assert passes_of(probe, 10, randomized) > max(
        passes_of(s, 10, randomized) for s in suite.values()
    )
    for key in ("steps", "draws" if randomized else "restarts"):
        others = [getattr(s, key, 1) for s in suite.values() if s.method != "square"]
        assert getattr(probe, key) > max(others), key
    assert probe.loss == "margin" and probe.random_start and probe.eps == active.eps


def test_effort_by_hand():
    """Passes for an image that is not broken: two for a gradient step, one for a query."""
    attacks = PARAMS.active().attacks
    targeted = typed("a", attacks["apgd_t"].model_copy(update={"targets": 9}))
    assert (
        passes_of(targeted, 10, False) == 2 * 30 * 9 and passes_of(targeted, 4, False) == 2 * 30 * 3
    )
    eot, square = attacks["eot_ce"], typed("s", attacks["square"])
    assert passes_of(eot, 10, True) == 2 * 20 * 5 and passes_of(eot, 10, False) == 2 * 20
    assert passes_of(square, 10, True) == 300 * 2 and passes_of(square, 10, False) == 300
    assert passes_of(typed("a", attacks["autoattack"]), 10, False) == 2 * 100 * 19


def attacked_by(model, pair, *names):
    """The records of some attacks of the profile, the main one first, and of the probes beside."""
    suite = {name: typed(name, PARAMS.active().attacks[name]) for name in names}
    tables = [
        rows(model, pair[0], craft(model, *pair, setting), pair[1], name)
        for name, setting in suite.items()
    ]
    own = pd.concat(tables, ignore_index=True)
    probe = Probe(model, *pair, suite[names[0]], Work())
    return own, partial(probe.all, suite, white_box(own, names[0]))


def test_what_only_another_start_finds_is_found(monkeypatch):
    """Half of the starts lie in the trap; of 5 a sample, 3 %. Only what is left is attacked."""
    pair = torch.full((64, 1, 8, 8), 128 / 255), torch.zeros(64, dtype=torch.int64)
    seen: dict[str, tuple[int, int]] = {}

    def noted(model, images, *rest):
        seen[str(rest[1].steps)] = rest[2].seed, len(images)
        return craft(model, images, *rest)

    model = Forked()
    own, probed = attacked_by(model, pair, "field")
    kept = remnant_accuracy(own).hits
    assert 0.3 < kept / 64 < 0.7
    monkeypatch.setattr("advprune.evaluate.probes.craft", noted)
    more = probed()
    found = more[more.attack == "probe_stronger"]
    assert len(found) == kept and remnant_accuracy(found).hits < 0.1 * 64
    seed, n = seen[str(2 * FIELD.steps)]
    assert seed != 0 and n == kept
    judged = verdict(Evidence(pd.concat([own, more]), "field", 2))
    assert judged.level == "broken"
    assert "more steps, starts and draws" in {check.name for check in judged.against}


def errors(model, pair):
    """Of each image, the errors of the derivative."""
    found = slope_errors(model, pair, FIELD, 0, Cost())
    return pd.DataFrame({"slope_error": np.nan} | {k: v.numpy() for k, v in found.items()})


class Called(nn.Module):
    """A network as a function calls it."""

    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x):
        return self.call(self.model, x)


def in_low_precision(kind):
    """A network whose convolutions are computed in a type of 16 bits."""

    def call(model, x):
        with torch.autocast("cpu", kind):
            return model(x).to(x.dtype)

    return lambda model: Called(model, call)


def fake_quantized(model):
    """A network whose images are rounded by torch's straight-through rule, and which says so."""
    found = Called(
        model, lambda m, x: m(torch.fake_quantize_per_tensor_affine(x, 1 / 63, 0, 0, 63))
    )
    found.declares_rule = True
    return found


def not_a_number_between_levels(model, value):
    """NaN, or infinite logits, on every image that has no 8-bit values."""

    def call(model, x):
        between = ((x * 255 - (x * 255).round()).abs() > 1e-2).flatten(1).any(1)
        return torch.where(between[:, None], value, model(x))

    return Called(model, call).eval()


@pytest.mark.parametrize(
    "made",
    [
        in_low_precision(torch.bfloat16),
        in_low_precision(torch.float16),
        fake_quantized,
        lambda model: prune("round", model, {"decimals": 1}).model,
    ],
    ids=["bfloat16", "float16", "fake-quantized", "round"],
)
def test_the_rule_of_a_rounding_network_is_followed_over_a_step(made, attacked):
    """Over next to no step its answers do not move at all, or by a whole step of the rounding."""
    found = errors(made(shipped("dense-robust.fp16")), attacked)
    assert found.slope_error.isna().all() and not dishonest(found)


@pytest.mark.parametrize("name", ["dense-robust.fp16", "dense-standard.fp16"])
def test_float32_alone_is_no_wrong_gradient(name):
    """Tiny steps cross the kinks of some ReLUs of 1 to 3 % of images if they are no smaller. The
    network answers in float32, whatever it is asked in."""
    test = prepare(PARAMS.active().data)["test"]
    model = Called(shipped(name), lambda model, x: model.float()(x.float()))
    found = errors(model, (test.images[:100] / 255, test.labels[:100]))
    assert found.slope_error.max() < 0.05


@pytest.mark.parametrize("name", ["dense-robust.fp16", "dense-standard.fp16", "HYDRA-robust.fp16"])
def test_an_honest_gradient_is_the_derivative_of_the_answers(name, attacked):
    found = errors(shipped(name), attacked)
    assert found.slope_error.quantile(0.9) < 1e-3 and found.step_error.median() < 0.4
    assert not dishonest(found)


def test_a_linear_network_has_no_error_and_half_of_it_one_that_is_known(attacked):
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = errors(linear, attacked)
    assert found.max().max() < 1e-6
    astray = errors(masked.backwards(linear), attacked)
    assert np.allclose(astray, 2.0, atol=1e-4)  # |a - (-a)| / |a|


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_slope_that_is_no_number_is_wrong(value, attacked):
    model = not_a_number_between_levels(shipped("dense-standard.fp16"), value)
    found = errors(model, attacked)
    assert (found == 1).all(axis=None) and dishonest(found)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["field", "apgd_ce", "distance", "autoattack"])
def test_nan_between_the_levels_is_refused_by_every_attack(name, value, attacked):
    """But Square, which asks about images of 8 bits alone."""
    model = not_a_number_between_levels(shipped("dense-standard.fp16"), value)
    setting = typed(name, PARAMS.active().attacks[name])
    with pytest.raises(InputError, match=r"NaN or infinite logits on changed images; give [^\n]*$"):
        craft(model, attacked[0][:6], attacked[1][:6], setting)


@pytest.mark.usefixtures("short_attacks")
@pytest.mark.parametrize("share", [1 / 3, 1.0])
def test_a_gradient_that_is_wrong_in_part_is_caught(share, attacked):
    """On the robust network, where Square is too weak to notice; the values are right."""
    robust, few = shipped("dense-robust.fp16"), (attacked[0][:12], attacked[1][:12])
    model = masked.PartlyWrong(robust, share).eval()
    assert dishonest(errors(model, attacked))
    own, probed = attacked_by(model, few, "field", "apgd_ce", "square")
    more = probed()
    assert {"probe_nes", "probe_student"} <= set(more.attack)
    found = verdict(Evidence(pd.concat([own, more]), "field", 10))
    assert found.level == "broken"
    assert "wrong gradients" in {check.name for check in found.against}


def behind(model, pair, noise=torch.randn_like):
    """A network behind a little noise on its logits, as attacks and scoring ask it."""
    around = masked.Around(model, logits=lambda z: z + 1e-3 * noise(z))
    return admitted("it", around.eval(), pair[0])


@pytest.mark.usefixtures("short_attacks")
def test_a_wrong_gradient_behind_a_little_noise_is_caught(attacked):
    """It is also attacked by its answers alone, averaged over draws."""
    few = attacked[0][:12], attacked[1][:12]
    model = behind(masked.PartlyWrong(shipped("dense-robust.fp16")), few)
    own, probed = attacked_by(model, few, "field", "square")
    more = probed()
    asked = more[more.attack == "probe_nes"]
    assert len(asked) and (asked.draws == NES["draws"]).all() and (asked.gradients == 0).all()
    assert (more.draws[more.attack == "probe_student"] > 1).all()
    honesty = more[more.attack == "probe_honesty"]
    assert len(honesty) == 12 and not honesty.declared.any()
    # Scored as it draws, as every attack is, not with its draws fixed.
    single = more[more.attack == "probe_single"]
    assert honesty.clean_margin.tolist() == single.clean_margin.tolist()
    found = verdict(Evidence(pd.concat([own, more]), "field", 10))
    assert found.level == "broken"
    assert "wrong gradients" in {check.name for check in found.against}


def test_what_a_random_network_is_asked_is_drawn_by_seed(attacked):
    few = attacked[0][:2], attacked[1][:2]
    model = behind(masked.PartlyWrong(shipped("dense-robust.fp16")), few)
    probe = Probe(model, *few, FIELD, Work())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = probe.honesty()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    pd.testing.assert_frame_equal(first, probe.honesty())


def test_an_honest_network_that_draws_is_reliable(attacked):
    """Its gradient with its draws fixed is the derivative; it is not asked by answers alone."""
    few = attacked[0][:12], attacked[1][:12]
    model = behind(shipped("dense-robust.fp16"), few)
    own, probed = attacked_by(model, few, "field", "eot_ce", "eot_margin", "square")
    more = probed()
    honesty = more[more.attack == "probe_honesty"]
    assert honesty.slope_error.max() < 0.05 and "probe_nes" not in set(more.attack)
    found = verdict(Evidence(pd.concat([own, more]), "field", 10))
    assert found.level == "reliable", found.against


@pytest.mark.parametrize("kind", ["crop and rescale", "random resize", "input dropout"])
def test_with_its_draws_fixed_an_honest_network_follows_its_gradient(kind, attacked):
    few = attacked[0][:6], attacked[1][:6]
    model = admitted("it", masked.KINDS[kind](shipped("dense-robust.fp16")).eval(), few[0])
    found = Probe(model, *few, FIELD, Work()).honesty()
    assert found.slope_error.max() < 0.05 and not dishonest(found)


@pytest.mark.usefixtures("short_attacks")
def test_draws_that_cannot_be_fixed_leave_a_doubt(attacked):
    """Differences would be those of the noise; it is attacked by its answers alone instead."""
    few = attacked[0][:6], attacked[1][:6]
    own_generator = np.random.default_rng(0)
    model = behind(
        shipped("dense-robust.fp16"), few, lambda z: 10 * float(own_generator.normal()) * z
    )
    own, probed = attacked_by(model, few, "field", "square")
    more = probed()
    assert {"probe_nes", "probe_student"} <= set(more.attack)
    found = verdict(Evidence(pd.concat([own, more]), "field", 10))
    assert found.level == "suspect", found.against
    (check,) = (check for check in found.against if check.name == "wrong gradients")
    assert check.figure == "not compared" and "cannot be fixed" in check.reason


class Late(nn.Module):
    """Answers as ever, but in the sixth pass."""

    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        return x.flatten(1) + (self.passes == 6)


def test_two_equal_answers_do_not_show_that_draws_are_fixed():
    assert not _repeats(Late(), torch.zeros(2, 1, 2, 2)) and _repeats(
        nn.Flatten(), torch.zeros(2, 1)
    )


@pytest.mark.parametrize("family", [{"SAP": 1.0}, {"dropout": 0.1}, {"RNA": 0.1}], ids=str)
def test_random_layers_with_a_rule_of_their_own_are_not_asked(family, attacked):
    """SAP's gradient holds its factors constant, and is no derivative with its draws fixed."""
    ((name, setting),) = family.items()
    few = attacked[0][:2], attacked[1][:2]
    own, probed = attacked_by(
        prune(name, shipped("dense-standard.fp16"), setting).model, few, "field"
    )
    more = probed()
    assert "probe_frozen" in set(more.attack) and "probe_honesty" not in set(more.attack)
    assert verdict(Evidence(pd.concat([own, more]), "field", 10)).level != "broken"


def test_a_straight_through_rule_is_judged_over_a_step_and_by_attacks_on_answers(attacked):
    model, few = shipped("RA_BNN-standard"), (attacked[0][:12], attacked[1][:12])
    own, probed = attacked_by(model, few, "field", "apgd_ce", "square")
    more = probed()
    honesty = more[more.attack == "probe_honesty"]
    assert honesty.declared.all() and not dishonest(honesty)
    found = verdict(Evidence(pd.concat([own, more]), "field", 10))
    assert found.level == "reliable", found.against
