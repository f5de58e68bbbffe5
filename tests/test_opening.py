"""What every attack promises: it leaves no trace, stays in its budget, and refuses nonsense."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from advprune.attacks import bitflip, pgd
from advprune.attacks.apgd import APGDSettings, apgd
from advprune.attacks.autoattack import autoattack
from advprune.attacks.bit_search import random_flips
from advprune.attacks.minimum_norm import MinimumNormSettings, minimum_norm
from advprune.attacks.square import square

Attack = Callable[..., Tensor]
# Of images, labels and a budget; other options by name.
IN_A_BALL = {
    "pgd": lambda m, x, y, eps, **o: pgd(m, x, y, eps, 0.05, 3, **o),
    "apgd": lambda m, x, y, eps, **o: apgd(m, x, y, APGDSettings(eps, **({"steps": 3} | o))),
    "square": lambda m, x, y, eps, **o: square(m, x, y, eps, **({"queries": 5} | o)),
    "autoattack": lambda m, x, y, eps, **o: autoattack(m, x, y, eps, **o)[0],
}
OTHERS = {
    "minimum_norm": lambda m, x, y, eps, **o: minimum_norm(
        m, x, y, MinimumNormSettings(**({"steps": 3} | o))
    )[0],
    "bitflip": lambda m, x, y, eps, **o: [bitflip(m, x, y, budget=2), random_flips(m, budget=2)],
}
OF_ALL = pytest.mark.parametrize("attack", [*IN_A_BALL, *OTHERS])


def traces(model):
    """What a caller could notice of an attack."""
    named = dict(model.named_parameters())
    return [
        [m.training for m in model.modules()],
        copy.deepcopy(model.state_dict()),
        {k: None if p.grad is None else p.grad.clone() for k, p in named.items()},
        [p.requires_grad for p in named.values()],
        torch.random.get_rng_state(),
        [len(m._forward_pre_hooks) for m in model.modules()],
    ]


def same(one, other):
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@OF_ALL
def test_no_trace_is_left(network, digits, attack):
    """Nor in the images; in evaluation as in training, a frozen batch-norm inside, without grad."""
    images, labels = (part[:4] for part in digits)
    network.train()
    network.bn1.eval()
    network.linear.weight.grad = torch.ones_like(network.linear.weight)
    before, kept, call = traces(network), images.clone(), (IN_A_BALL | OTHERS)[attack]
    found = call(network, images, labels, 0.3)
    assert same(before, traces(network)) and torch.equal(kept, images)
    with torch.no_grad():
        again = call(network, images, labels, 0.3)
    if attack != "bitflip":
        assert torch.equal(again, found)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("attack", ["pgd", "apgd", "square", "drop", "best"])
def test_never_leaves_the_budget_or_the_pixel_range(network, digits, attack, norm):
    more = {"drop": {"drop": True, "restarts": 2}, "best": {"keep": "best"}}.get(attack, {})
    for eps in (0.0, 0.15 if norm == "Linf" else 0.8):
        adv = IN_A_BALL.get(attack, IN_A_BALL["pgd"])(network, *digits, eps, norm=norm, **more)
        change = (adv - digits[0]).flatten(1)
        size = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
        assert size.max() <= eps + 1e-6 and adv.min() >= 0 and adv.max() <= 1
        assert adv.shape == digits[0].shape and (eps == 0) == torch.equal(adv, digits[0])


@pytest.mark.parametrize("attack", [*IN_A_BALL, "minimum_norm"])
def test_no_images_give_none(network, digits, attack):
    call = (IN_A_BALL | OTHERS)[attack]
    assert call(network, digits[0][:0], digits[1][:0], 0.1).shape == digits[0][:0].shape


OPTIONS = [
    *[(attack, key, {key: value}) for attack in IN_A_BALL for key, value in (("norm", "L1"),)],
    *[("autoattack", "eps", {"eps": e}) for e in (-0.1, 1.5, float("nan"))],  # of others: borders
    *[(attack, "batch", {"batch": 0}) for attack in [*IN_A_BALL, "minimum_norm"]],
    *(("pgd", "loss", {"loss": "hinge"}), ("pgd", "keep", {"keep": "first"})),
    *(("pgd", "restarts", {"restarts": 0}), ("pgd", "precision", {"precision": "float16"})),
    *(("apgd", "loss", {"loss": "margin"}), ("apgd", "steps", {"steps": 0})),
    *(("square", "queries", {"queries": 0}), ("square", "p is", {"p": 0.0})),
    *(("square", "draws", {"draws": 0}), ("autoattack", "version", {"version": "auto"})),
    ("minimum_norm", "norm", {"norm": "L1"}),
]


@pytest.mark.parametrize(("attack", "word", "change"), OPTIONS)
def test_options_that_make_no_sense_are_refused(network, digits, attack, word, change):
    pair = digits[0][:2], digits[1][:2]
    with pytest.raises(ValueError, match=word):
        (IN_A_BALL | OTHERS)[attack](network, *pair, **({"eps": 0.1} | change))
