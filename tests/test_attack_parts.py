"""Pixels, and the private copy."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from advprune.attacks import to_pixels
from advprune.attacks.engine import attack_copy
from advprune.models.binary import skeleton
from advprune.models.fold import Following, fold_batchnorm
from advprune.pruning.hydra import attach_scores
from conftest import make_network


def test_pixels_by_hand():
    clean = torch.tensor([0, 100, 100, 250, 255]).view(1, 1, 1, 5) / 255
    adv = torch.tensor([7.6, 107.65, 92.4, 257.0, 247.0]).view(1, 1, 1, 5) / 255
    rounded = to_pixels(adv.clamp(0, 1), clean, 0.03)  # 0.03 is 7.65 levels: at most 7
    assert rounded.flatten().tolist() == [7, 107, 93, 255, 248]
    assert to_pixels(adv.clamp(0, 1), clean, 8 / 255).flatten().tolist() == [8, 108, 92, 255, 247]
    # As in nn-prune's table.
    as_published = to_pixels(adv.clamp(0, 1), clean, 0.03, rounding="nearest")
    assert as_published.flatten().tolist() == [8, 108, 92, 255, 247]


def test_pixels_never_leave_an_l2_budget():
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(0, 256, (16, 3, 4, 4), generator=generator) / 255
    noise = torch.randn(clean.shape, generator=generator)
    noise *= (0.5 / noise.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    pixels = to_pixels((clean + noise).clamp(0, 1), clean, 0.5, "L2") / 255
    length = (pixels - clean).flatten(1).norm(dim=1)
    assert length.max() <= 0.5 + 1e-6 and length.min() > 0.3


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20"])
def test_folding_keeps_the_function_and_the_model(digits, architecture):
    model = make_network(digits[0], architecture)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    expected, found = model(digits[0]), folded(digits[0])
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20"])
def test_a_folded_form_follows_its_model(digits, architecture):
    model, (images, labels) = make_network(digits[0], architecture), digits
    following = Following.of(model)
    assert following is not None
    assert not any(isinstance(m, nn.BatchNorm2d) for m in following.network.modules())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        model.train()
        before = following.network(images)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        expected, found = model.eval()(images), following.refresh()(images)
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
        assert (found - before).abs().max() > 1e-2 * expected.abs().max()
    assert not any(p.requires_grad for p in following.network.parameters())
    assert all(p.requires_grad for p in model.parameters())


def sharing():
    """One convolution, used twice, before a batch-norm each time."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(1), conv, nn.BatchNorm2d(1))


class ReadTwice(nn.Module):
    """The convolution's output is read twice, so its batch-norm cannot be merged."""

    __module__ = "torch.joined"  # as if its code were known

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        h = self.conv(x)
        return (self.bn(h) + h).flatten(1)


def biased():
    """A batch-norm alone, and a convolution with a bias."""
    first = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
    return nn.Sequential(*first, nn.Flatten(), nn.Linear(18, 3))


@pytest.mark.parametrize("made", [biased, sharing, ReadTwice])
def test_whatever_its_structure_a_network_stays_the_same_function(made):
    model, x = made(), torch.rand(4, 1, 5, 5)
    following = Following.of(model)
    assert following is not None
    model(x + 1)  # moves the statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    expected, folded = model.eval()(x), fold_batchnorm(model)
    assert torch.allclose(following.refresh()(x), expected, atol=1e-5)
    assert torch.allclose(folded(x), expected, atol=1e-5)
    assert made is biased or any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_masked_weights_are_followed_through_their_scores(digits):
    model, images = make_network(digits[0]), digits[0]
    masks = attach_scores(model, 0.5)
    following = Following.of(model)
    assert following is not None
    assert all(parametrize.is_parametrized(model.get_submodule(n[:-7])) for n in masks)
    for mask in masks.values():
        with torch.no_grad():
            mask.scores.copy_(torch.randn_like(mask.scores))
        mask.refresh()
    found, expected = following.refresh()(images), model(images)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    weights = dict(following.network.named_parameters())["linear.weight"]
    assert (weights == 0).sum() == weights.numel() // 2


def test_models_of_which_more_than_weights_may_change_have_no_folded_form(digits):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(1, 1, 3), nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.conv(x) * self.scale

    scaled = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    parametrize.register_parametrization(scaled[0], "weight", nn.Identity())
    hooked = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    hooked[0].register_forward_hook(lambda module, args, out: out * 2)
    masked = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    assert Following.of(masked) is not None
    torch_prune.l1_unstructured(masked[0], "weight", amount=1)  # its weight is made in each pass
    plain = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1, affine=False))
    binary = skeleton(make_network(digits[0]))
    own = nn.Sequential(nn.Conv2d(1, 1, 3), Own())
    for model in (own, own[1], scaled, hooked, masked, plain, binary):
        assert Following.of(model) is None


def test_a_model_that_cannot_be_traced_is_copied_as_it_is():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(self.conv(x)).flatten(1) * (2.0 if x.sum() > 0 else 1.0)

    model, x = Branching().eval(), torch.rand(2, 1, 5, 5)
    private = attack_copy(model, torch.device("cpu"))
    assert torch.allclose(private(x), model(x))
    assert not any(p.requires_grad for p in private.parameters())
    assert all(p.requires_grad for p in model.parameters())
