"""Pixels, the private copy, and backward rules where a network's own gradient hides too much."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

from advprune.attacks import attack, pgd, to_pixels
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import margin
from advprune.attacks.opening import expected_gradient
from advprune.core.attack_settings import AttackSettings
from advprune.evaluate.craft import craft
from advprune.evaluate.records import Work
from advprune.models.backward import RULES, set_backward
from advprune.models.binary import BinaryConv2d, skeleton
from advprune.models.fold import Following, fold_batchnorm
from advprune.models.spec import ModelSpec, attach
from advprune.pruning.feature_maps import Clamp, Round
from advprune.pruning.hydra import attach_scores
from advprune.quantization.post_training import quantize
from conftest import grey_images, make_network, nearest


def test_pixels_by_hand_and_within_the_budget():
    clean = torch.tensor([0, 100, 100, 250, 255]).view(1, 1, 1, 5) / 255
    adv = torch.tensor([7.6, 107.65, 92.4, 257.0, 247.0]).view(1, 1, 1, 5) / 255
    rounded = to_pixels(adv.clamp(0, 1), clean, 0.03)  # 0.03 is 7.65 levels: at most 7
    assert rounded.flatten().tolist() == [7, 107, 93, 255, 248]
    assert to_pixels(adv.clamp(0, 1), clean, 8 / 255).flatten().tolist() == [8, 108, 92, 255, 247]
    # As in nn-prune's table.
    as_published = to_pixels(adv.clamp(0, 1), clean, 0.03, rounding="nearest")
    assert as_published.flatten().tolist() == [8, 108, 92, 255, 247]


def lengths(change):
    return change.flatten(1).double().norm(dim=1)


def changes(shape, eps, flat=False):
    """8-bit images `[8, …]` away from 0 and 1, and random changes of L2 length eps."""
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(100, 156, (8, *shape), generator=generator) / 255
    change = torch.randn(clean.shape, generator=generator)
    change = change.sign() if flat else change
    return clean, eps * change / lengths(change).view(-1, 1, 1, 1).float()


@pytest.mark.parametrize("side", [1, 3, 4, 32, 64])
@pytest.mark.parametrize("eps", [0.0, 1 / 255, 0.05, 0.5, 3.0])
def test_l2_pixels_stay_within_the_budget_and_a_second_rounding_changes_nothing(side, eps):
    clean, change = changes((3, side, side), eps)
    for scale in (1.0, 0.5, 1.5):  # inside the budget, too, and outside
        pixels = to_pixels((clean + scale * change).clamp(0, 1), clean, eps, "L2")
        found = (pixels.double() - (clean * 255).round().double()) / 255
        assert (lengths(found) <= min(scale, 1.0) * eps + 1e-6).all()
        assert torch.equal(to_pixels(pixels / 255, clean, eps, "L2"), pixels)
        alone = to_pixels((clean + scale * change).clamp(0, 1)[3:4], clean[3:4], eps, "L2")
        assert torch.equal(alone, pixels[3:4])


@pytest.mark.parametrize(
    ("side", "eps", "flat", "part"),
    [
        (32, 0.5, False, 0.99),
        (32, 0.5, True, 0.98),
        (64, 0.5, False, 0.96),
        # 0.55 levels for each pixel; of a flat change, one level in 30 % of them.
        (224, 0.84, False, 0.84),
        (224, 0.84, True, 0.54),
    ],
)
def test_little_of_an_l2_change_is_lost_in_pixels(side, eps, flat, part):
    clean, change = changes((3, side, side), eps, flat)
    found = to_pixels(clean + change, clean, eps, "L2") / 255 - clean
    along = (found * change).flatten(1).sum(1) / eps**2
    assert along.min() > part and lengths(found).min() > 0.99 * eps


def test_no_l2_pixels_of_the_same_length_go_farther_along_the_change():
    """Against every change of three pixels by up to four levels; thresholds that differ from pixel
    to pixel cost little."""
    steps = torch.arange(-4.0, 5.0)
    every = torch.cartesian_prod(steps, steps, steps)  # [729, 3]
    change = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    change = 4 * change / change.norm(dim=1, keepdim=True)
    clean = torch.full((200, 3, 1, 1), 100 / 255)
    pixels = to_pixels(clean + change.view(200, 3, 1, 1) / 255, clean, 4 / 255, "L2")
    found = pixels.flatten(1) - 100.0
    shorter = every.norm(dim=1)[None] <= found.norm(dim=1)[:, None] + 1e-3
    best = (change @ every.T).masked_fill(~shorter, 0).amax(1)
    reached = (change * found).sum(1)
    assert (reached > 0.95 * best).all() and (reached > 0.999 * best).float().mean() > 0.9
    assert found.norm(dim=1).min() > 2.5 and found.norm(dim=1).mean() > 3.5


def test_in_l2_pixels_a_linear_model_is_broken_up_to_its_distance():
    """Images of 3x64x64, where the budget is 1.15 grey levels for each pixel."""
    weight = torch.randn(3 * 64 * 64, generator=torch.Generator().manual_seed(1))
    weight, images = weight / weight.norm(), torch.full((8, 3, 64, 64), 128 / 255)
    layer = nn.Linear(len(weight), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight, weight]) / 2)
    for distance, broken in ((0.4, 8), (0.51, 0)):
        with torch.no_grad():
            middle = (weight * 128 / 255).sum() / 2
            layer.bias.copy_(torch.stack([middle + distance / 2, -middle - distance / 2]))
        model, labels = nn.Sequential(nn.Flatten(), layer), torch.zeros(8, dtype=torch.int64)
        adv = attack("apgd", model, images, labels, eps=0.5, steps=10, norm="L2", pixels=True)
        pixels = to_pixels(adv, images, 0.5, "L2") / 255
        assert int((model(pixels).argmax(1) != labels).sum()) == broken


@pytest.mark.parametrize("architecture", ["resnet18", "resnet20"])
def test_a_folded_form_is_its_model_and_follows_it(digits, architecture):
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
    before = {name: t.clone() for name, t in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    expected, found = model(digits[0]), folded(digits[0])
    assert (expected - found).abs().max() < 1e-4 * expected.abs().max()
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_gradients_and_logits_of_several_draws_are_their_means(linear):
    """Of a model whose draws are all alike."""
    images, labels = grey_images(4)
    one, four = (expected_gradient(linear, images, labels, margin, draws) for draws in (1, 4))
    assert torch.allclose(one[0], four[0]) and torch.allclose(one[1], four[1], atol=1e-5)
    assert torch.allclose(four[1], linear(images), atol=1e-5)


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


# --- backward rules -------------------------------------------------------------------------------
def left(model, images, labels, rule):
    """Images that PGD from the clean image does not break."""
    options = {"random_start": False, "loss": "margin", "backward": rule}
    adv = pgd(model, images, labels, 0.2, 0.05, 20, **options)
    return int((model(adv).argmax(1) == labels).sum())


def signed(weight, bias):
    """Two logits `-s` and `s` with `s = w h + b`."""
    layer = nn.Linear(weight.numel(), 2)
    with torch.no_grad():
        layer.weight.copy_(torch.stack([-weight, weight]))
        layer.bias.copy_(torch.tensor([-bias, bias]))
    return layer


def clamped():
    """Ten maps that sum up the image, cut where every image is far beyond the cut."""
    maps, cut = nn.Linear(64, 10), Clamp()
    with torch.no_grad():
        maps.weight.fill_(1.0)
        maps.bias.fill_(-64 * 0.4)
        cut.high.fill_(0.5)
    last = signed(torch.ones(10), -2.5)
    return nn.Sequential(nn.Flatten(), maps, nn.ReLU(), cut, last).eval()


def test_a_clamp_hides_nothing_from_a_gradient_that_passes_over_it():
    """A change of 0.2 a pixel takes the maps to 0, but on the way there is no gradient at first."""
    images = 0.5 + 0.05 * torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model, labels = clamped(), torch.ones(16, dtype=torch.int64)
    assert (model(images).argmax(1) == labels).all()
    assert left(model, images, labels, None) == 16
    assert left(model, images, labels, "straight") == 0
    assert nearest(model, images, labels, steps=20)[1].isinf().all()
    through = nearest(model, images, labels, steps=20, backward="straight")[1]
    known = images.mean((1, 2, 3)) - 0.4 - 0.25 / 64  # where the sum of the maps is 2.5
    assert (through / known - 1).abs().max() < 0.02


def test_clamp_and_round_have_exact_values_and_the_identity_as_gradient():
    x = torch.tensor([-3.0, 0.26, 7.0], requires_grad=True)
    clamp = Clamp()
    clamp.low.fill_(-1.0)
    clamp.high.fill_(1.0)
    (own,) = torch.autograd.grad(clamp(x).sum(), x)
    set_backward(clamp, "straight")
    (through,) = torch.autograd.grad(clamp(x).sum(), x)
    assert own.tolist() == [0, 1, 0] and through.tolist() == [1, 1, 1]
    assert clamp(x).equal(x.clamp(-1, 1)) and clamp(x).tolist() == pytest.approx([-1, 0.26, 1])
    assert Round(1)(x).tolist() == pytest.approx([-3.0, 0.3, 7.0])
    assert torch.autograd.grad(Round(1)(x).sum(), x)[0].tolist() == [1, 1, 1]


def test_the_wide_slope_of_a_sign_finds_what_the_narrow_one_does_not():
    """Half of the pixels are grey and not looked at, so the others lie 1.4 deviations away."""
    signs = torch.randn(16, 32, generator=torch.Generator().manual_seed(1)).sign()
    images = 0.5 + 0.15 * torch.cat([signs, 0 * signs], 1).view(16, 1, 8, 8)
    layer = BinaryConv2d(1, 1, 1, binary_input=True)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    last = signed(torch.cat([torch.linspace(-1, 1, 32), torch.zeros(32)]), 0.0)
    model = nn.Sequential(layer, nn.Flatten(), last).eval()
    labels = model(images).argmax(1)
    assert left(model, images, labels, None) == 16
    assert left(model, images, labels, "wide") == left(model, images, labels, "straight") == 0


def rounded_pair():
    """A network, its 4-bit form, and images at which a unit is on in the one and off in the other:
    only where it is on has it a gradient."""
    generator = torch.Generator().manual_seed(2)
    parent = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), signed(torch.ones(1), -0.5))
    with torch.no_grad():
        parent[1].weight.copy_(0.2 * torch.randn(1, 64, generator=generator))
        parent[1].bias.zero_()
        images = torch.rand(4000, 1, 8, 8, generator=generator)
        parent[1].bias.copy_(-parent[1](images.flatten(1)).mean(0))
        spec = {"architecture": "resnet18", "width": 4, "channels": 1, "classes": 2}
        attach(parent, ModelSpec(**spec, mean=(0.0,), std=(1.0,)))
        model = quantize(parent.eval(), images, bits=4)
        units = (network.get_submodule("1") for network in (parent, model))
        on, off = (unit(images.flatten(1))[:, 0] for unit in units)
    chosen = images[(on > 0) & (off < 0)]
    return parent, model, (chosen, torch.zeros(len(chosen), dtype=torch.int64))


def test_the_parent_of_a_quantized_network_finds_what_its_twin_does_not():
    parent, model, (images, labels) = rounded_pair()
    assert len(images) >= 10 and (model(images).argmax(1) == labels).all()
    assert left(model, images, labels, None) == len(images)
    setting = AttackSettings(eps=0.2, step=0.05, steps=20, loss="margin", random_start=False)
    clean, pixels = (images * 255).round() / 255, {}
    for rule in ("parent", "ensemble"):
        own = setting.model_copy(update={"backward": rule, "drop": True})
        crafted = craft(model, clean, labels, own, Work(parent=parent))
        assert (model(crafted.pixels / 255).argmax(1) != labels).all()  # the integers decide
        pixels[rule] = crafted
    assert pixels["parent"].cost.forwards > 2 * pixels["parent"].cost.gradients
    with pytest.raises(ValueError, match="no parent is given"):
        craft(model, clean, labels, setting.model_copy(update={"backward": "parent"}))


@pytest.mark.parametrize("drop", [False, True])
def test_images_of_a_quantized_network_are_decided_on_its_integers(network, digits, drop):
    """Dropping by the twin, or before rounding, lost images that more steps break."""
    model, images = quantize(network, digits[0], bits=4), digits[0]
    labels = model(images).argmax(1)
    how = {"eps": 4 / 255, "steps": 20, "pixels": True}
    found = attack("apgd", model, images, labels, **how, drop=drop)
    pixels = to_pixels(found, images, 4 / 255) / 255
    broken = margin(model(pixels), labels) > 0
    assert 10 < broken.sum() < 60
    if drop:
        assert (found[broken] - pixels[broken]).abs().max() < 1e-6
        whole = attack("apgd", model, images, labels, **how, drop=False)
        whole = to_pixels(whole, images, 4 / 255) / 255
        assert broken.sum() >= (margin(model(whole), labels) > 0).sum()


def test_every_rule_runs_and_an_unknown_one_does_not(network, digits):
    images, labels = digits[0][:4], digits[1][:4]
    plain = pgd(network, images, labels, 0.1, 0.02, 2)
    for rule in set(RULES) - {"ensemble"}:
        cost = Cost()
        options = {"backward": rule, "parent": network, "cost": cost}
        assert pgd(network, images, labels, 0.1, 0.02, 2, **options).allclose(plain, atol=1e-6)
        assert cost.gradients == 8
    with pytest.raises(ValueError, match=r"pgd: backward: .*'straightest'"):
        pgd(network, images, labels, 0.1, 0.02, 2, backward="straightest")
    with pytest.raises(ValueError, match="backward is 'straightest'"):
        set_backward(network, "straightest")
