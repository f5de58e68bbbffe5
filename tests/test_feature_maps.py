"""clamp and round: what they do to feature maps, to files and to gradients."""

import torch

from advprune.models.spec import sites
from advprune.pruning import prune
from advprune.pruning.feature_maps import Round


def maps(model, images):
    """The output of every activation site."""
    found = {}
    handles = [
        site.register_forward_hook(lambda m, i, o, n=name: found.update({n: o.detach().clone()}))
        for name, site in sites(model).items()
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def test_the_clamp_range_is_that_of_the_clean_maps(network, digits):
    clamped = prune("clamp", network, {"sigmas": 1.5, "images": 64}, digits).model
    for name, h in maps(network, digits[0]).items():
        layer = sites(clamped)[name][-1]
        reach = 1.5 * h.double().std(correction=0)
        assert abs(float(layer.low) - float(h.double().mean() - reach)) < 1e-4
        assert abs(float(layer.high) - float(h.double().mean() + reach)) < 1e-4


def test_clamped_maps_stay_in_their_range_on_any_input(network, digits):
    clamped = prune("clamp", network, 1, digits).model
    for name, h in maps(clamped, torch.ones_like(digits[0])).items():
        layer = sites(clamped)[name][-1]
        assert h.min() >= layer.low and h.max() <= layer.high


def test_round_by_hand_and_straight_through():
    h = torch.tensor([0.04, 0.06, -0.26, 1.234], requires_grad=True)
    rounded = Round(decimals=1)(h)
    assert torch.allclose(rounded, torch.tensor([0.0, 0.1, -0.3, 1.2]))
    rounded.sum().backward()
    assert torch.equal(h.grad, torch.ones(4))
