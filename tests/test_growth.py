"""Early-Growth: gates that are drawn as they should be, and the network that they leave."""

import pytest
import torch
import torch.nn.functional as F
from test_binary import inputs, spec
from workspace import ROOT

from advprune.core.errors import UserError
from advprune.core.params import load
from advprune.core.settings import parse
from advprune.core.train_settings import GrowthSettings, TrainSettings
from advprune.models.binary import begin_epoch, latent
from advprune.models.resnet import ResNet
from advprune.models.spec import ModelSpec
from advprune.training.growth import Gate, Grown, SuperNet, grow, settled
from advprune.training.networks import train_network
from conftest import stored

PLAIN = spec(binary=False)
SETTINGS = GrowthSettings(factor=2, epochs=4, frozen=0, lr=0.2, gate_lr=1.0, t=1.0, rate=1.5)


def gate(logits):
    """A gate with these logits."""
    made = Gate(len(logits), 1, torch.Generator().manual_seed(0))
    made.logits.data = torch.tensor(logits)
    return made


# --- gates ---------------------------------------------------------------------------------------
def test_gates_start_with_the_base_network_on():
    made = Gate(3000, 1000, torch.Generator().manual_seed(0))
    assert made.logits[:1000].eq(1).all() and made.kept.sum() == 1000
    rest = (made.logits[1000:] * 10).round()
    assert torch.allclose(rest / 10, made.logits[1000:])
    assert rest.unique().tolist() == list(range(-10, -1))  # -1.0 to -0.2, in tenths


def test_without_training_a_gate_is_on_where_its_logit_is_positive():
    made = gate([0.1, -0.1, 3.0, -3.0]).eval()
    noise = torch.Generator()
    assert made(noise).tolist() == made(noise).tolist() == [1, 0, 1, 0]
    assert gate([-2.0, -1.0, -3.0]).eval()(noise).tolist() == [0, 1, 0]  # never all off


def test_draws_have_the_probability_of_the_sigmoid():
    made = gate([-1.0] * 40_000 + [0.5] * 40_000)
    made.beta[40_000:] = 3.0
    drawn = made(torch.Generator().manual_seed(1)).detach()
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and torch.equal(made.on, drawn > 0)
    for part, value in ((drawn[:40_000], -1.0), (drawn[40_000:], 1.5)):
        expected = float(torch.tensor(value).sigmoid())
        assert float(part.mean()) == pytest.approx(expected, abs=0.01)  # four sigma


def test_the_gradient_of_a_draw_is_that_of_the_soft_gate():
    made = gate([-1.0, 0.5, 2.0])
    made.beta = torch.tensor([1.0, 2.0, 4.0])
    weights = torch.tensor([1.0, 10.0, 100.0])
    (made(torch.Generator().manual_seed(5)) * weights).sum().backward()
    uniform = torch.rand(3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    soft = (made.beta * made.logits + (uniform / (1 - uniform)).log()).sigmoid()
    expected = weights * made.beta * soft * (1 - soft)
    assert torch.allclose(made.logits.grad, expected.float(), rtol=1e-4)


def test_frozen_gates_are_all_on_and_learn_nothing():
    network = SuperNet(PLAIN, 2, 0).train()
    for epoch, frozen in ((0, True), (1, True), (2, False), (3, False)):
        network.begin_epoch(epoch, SETTINGS.model_copy(update={"frozen": 2}))
        made = network.gates["stem"]
        made.logits.grad = None
        drawn = made(torch.Generator().manual_seed(0))
        drawn.sum().backward()
        assert bool(made.logits.grad.abs().sum() == 0) == bool((drawn == 1).all()) == frozen
        assert bool((made.beta == 1).all()) == (epoch < 3)  # steeper after the first draws alone


# --- the wide network ----------------------------------------------------------------------------
def cut(network):
    """The network of the kept channels, with the weights that the wide one has there."""
    stages, inner = network.channels()
    changes = {"stages": stages, "inner": inner, "pool_norm": True}
    small = latent(ResNet(ModelSpec.model_validate(PLAIN.model_dump() | changes)))
    kept = {name: network.gates[name].kept for name in network.gates}
    image = torch.ones(1, dtype=torch.bool)
    sides = {"conv1": (image, kept["stem"]), "bn1": (kept["stem"], kept["stem"])}
    before = kept["stem"]
    for name, block in network.network.named_modules():
        if not hasattr(block, "conv2"):
            continue
        stage, _, place = name.partition(".")
        inside, after = kept[f"{stage}_{place}"], kept[stage]
        sides |= {f"{name}.conv1": (before, inside), f"{name}.bn1": (inside, inside)}
        sides |= {f"{name}.conv2": (inside, after), f"{name}.bn2": (after, after)}
        sides |= {f"{name}.shortcut.0": (before, after), f"{name}.shortcut.1": (after, after)}
        before = after
    sides |= {"pool.1": (before, before), "linear": (before, torch.ones(10, dtype=torch.bool))}
    wide = network.network.state_dict()
    state = {}
    for name in small.state_dict():
        read, written = sides.get(name.rpartition(".")[0], (None, None))
        tensor = wide[name]
        if read is not None and tensor.ndim:
            tensor = tensor[written][:, read] if tensor.ndim > 1 else tensor[written]
        state[name] = tensor
    small.load_state_dict(state)
    return small.eval()


def test_channels_that_are_off_are_as_good_as_absent(digits):
    network = SuperNet(PLAIN, 2, 0).double()
    generator = torch.Generator().manual_seed(1)
    for name in network.gates:
        logits = network.gates[name].logits
        logits.data = torch.randn(len(logits), generator=generator, dtype=torch.float64)
    network.gates["stem"].logits.data[:] = 1.0  # as many as the first stage would be by chance
    for parameter in network.network.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.1 * noise
    images = digits[0].double()
    network.train()
    begin_epoch(network.network, 0, 1)
    for _ in range(3):
        network(images)
    network.eval()
    small = cut(network).double()
    assert 0 < float(network.density()["density"]) < 1
    # Batch-norm before the classifier divides by small deviations.
    assert torch.allclose(network(images), small(images), atol=1e-6)


def test_the_base_network_may_lose_channels_too():
    network = SuperNet(PLAIN, 2, 0)
    assert network.density()["density"] == 0.5 and network.density()["base_density"] == 1.0
    assert network.channels() == (PLAIN.streams, PLAIN.blocks)
    network.gates["layer3_1"].logits.data[:] = -1.0
    network.gates["layer3_1"].logits.data[20] = 1.0
    found = network.density()
    assert found["density_layer3_1"] == round(1 / 32, 4) and found["base_density"] < 1
    assert network.channels()[1][-2:] == (1, 16)


def test_the_gates_noise_comes_from_the_epoch_alone(digits):
    one, two = (SuperNet(PLAIN, 2, 0).train() for _ in range(2))
    torch.manual_seed(0)
    one.begin_epoch(0, SETTINGS)
    first = one(digits[0][:4])
    torch.manual_seed(1)
    two.begin_epoch(0, SETTINGS)
    assert torch.equal(first, two(digits[0][:4]))
    two.begin_epoch(1, SETTINGS)
    steep = torch.cat([two.gates[name].beta for name in two.gates])
    on = torch.cat([two.gates[name].on for name in two.gates])
    assert torch.equal(steep, torch.where(on, 1.5, 1.0))
    assert not torch.equal(first, two(digits[0][:4]))


# --- growth --------------------------------------------------------------------------------------
def run(digits, state=None, **changes):
    settings = SETTINGS.model_copy(update=changes)
    optimizer = TrainSettings(batch=16, crop=0, label_smoothing=0.1)
    return grow(PLAIN, settings, optimizer, inputs(digits, state=state))


def test_growth_starts_at_the_base_network_and_counts_its_gates(digits):
    calm = run(digits, epochs=1, gate_lr=1e-6)
    assert calm.history[0]["density"] == 0.5 and calm.stages == PLAIN.streams
    grown = run(digits)
    assert len(grown.history) == 4 and grown.history[0]["density"] == pytest.approx(0.5, abs=0.1)
    last = grown.history[-1]
    assert grown.base == (*PLAIN.streams, *PLAIN.blocks)
    sizes = [2 * n for n in grown.base]
    assert last["density"] == pytest.approx(sum(grown.stages + grown.inner) / sum(sizes), abs=1e-4)
    named = [value for name, value in last.items() if name.startswith("density_")]
    counted = [n / size for n, size in zip(grown.stages + grown.inner, sizes, strict=True)]
    assert named == pytest.approx(counted, abs=1e-4)
    assert ModelSpec(**(PLAIN.model_dump() | grown.model_dump(include={"stages", "inner"})))
    assert Grown.model_validate_json(grown.model_dump_json()) == grown


def test_a_result_that_is_not_larger_is_refused(digits, monkeypatch, tmp_path):
    base = Grown(stages=(8, 8, 16, 32, 64), inner=(8, 8, 16, 16, 32, 32, 64, 64), base=(8,) * 13)
    monkeypatch.setattr("advprune.training.networks.grow", lambda *_: base)
    with pytest.raises(UserError, match=r"ended with (\d+) .* not more than the \1 it"):
        train_network(load(ROOT / "params.yaml"), "RA_BNN-standard", inputs(digits))
    with pytest.raises(UserError, match="gate_lr"):
        parse(GrowthSettings, {"gate_lr": 40.0}, "growth")


def test_growth_ends_when_it_has_settled(digits):
    assert len(run(digits, epochs=9, tolerance=1.0, patience=2).history) == 3
    brief = run(digits, epochs=9, tolerance=1.0, patience=1)
    assert len(brief.history) == 3  # not while rates rise
    rows = [{"density": value} for value in (0.3, 0.5, 0.504, 0.5)]
    assert settled(rows, 0.005, 2) and not settled(rows, 0.005, 3)
    assert not settled(rows, 0.004, 1) and not settled(rows[:2], 0.5, 2)


def test_a_killed_growth_ends_with_the_same_channels(digits, tmp_path):
    whole = run(digits)
    with stored(kill_after=2):
        run(digits, tmp_path / "state.pt")
    with stored() as rest:
        assert run(digits, tmp_path / "state.pt") == whole and len(rest) == 2


def test_cross_entropy_alone_is_minimized_and_gates_do_not_decay(digits):
    network = SuperNet(PLAIN, 2, 0)
    images = (digits[0] * 255).round().to(torch.uint8)
    network.begin_epoch(0, SETTINGS)
    network.train()
    with torch.no_grad():
        order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
        logits = network(images[order] / 255)
        expected = float(F.cross_entropy(logits, digits[1][order]))
    optimizer = TrainSettings(batch=64, weight_decay=0.5, label_smoothing=0.3)
    settings = SETTINGS.model_copy(update={"epochs": 1, "gate_lr": 1e-9})
    found = grow(PLAIN, settings, optimizer, inputs(digits, 64))
    assert found.history[0]["train_loss"] == pytest.approx(expected, abs=1e-4)
