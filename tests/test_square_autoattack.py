"""Square against closed forms and its authors' code; AutoAttack against the official loop."""

import copy
import json
import logging
import math
import sys
from typing import ClassVar

import pandas as pd
import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from workspace import ROOT

from advprune.attacks import attack
from advprune.attacks.cost import Cost
from advprune.attacks.engine import attack_copy
from advprune.attacks.losses import margin
from advprune.attacks.pixels import to_pixels
from advprune.attacks.square import side
from advprune.core.errors import UserError
from advprune.pruning import prune
from conftest import Linear


def square(model, images, labels, eps, **options):
    return attack("square", model, images, labels, eps=eps, **options)


def autoattack(model, images, labels, eps, **options):
    """The images, and how many are right after each attack."""
    counts = {}
    how = options | {"eps": eps, "breakdown": counts}
    return attack("autoattack", model, images, labels, **how), counts


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def perceptron(classes=10):
    """A small smooth network on 8x8 images, far quicker than a ResNet."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, classes)
        return nn.Sequential(*layers).eval()


def own_labels(model, images):
    """Images with the model's predictions as labels, except for the last image: it is wrong."""
    logits = model(images).detach()
    labels = logits.argmax(1)
    labels[-1] = (labels[-1] + 1) % logits.shape[1]
    return images, labels


def wrong(model, images, labels):
    with torch.no_grad():
        return model(images).argmax(1) != labels


# Square
@pytest.mark.parametrize("eps", [0.0, 0.02, 0.3])
def test_square_moves_on_the_corners_of_the_ball_within_the_pixel_range(network, digits, eps):
    images, labels = own_labels(network, digits[0][:16])
    adv = square(network, images, labels, eps, queries=20)
    corners = torch.stack([images, (images + eps).clamp(0, 1), (images - eps).clamp(0, 1)])
    assert (adv == corners).any(0).all()
    assert torch.equal(adv[-1], images[-1])  # wrong before any query
    assert (eps == 0) == torch.equal(adv, images)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.03), ("L2", 0.5)])
def test_square_repeats_with_the_generator_and_does_not_depend_on_the_batch(digits, norm, eps):
    model = perceptron()
    images, labels = own_labels(model, digits[0])

    def found(seed, batch=128):
        options = {"queries": 30, "norm": norm, "batch": batch}
        return square(model, images, labels, eps, generator=seeded(seed), **options)

    first, again, other = map(found, (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    small = found(1, batch=7)
    assert ((first - small).abs() > 1e-5).float().mean() < 0.01


def test_square_repeats_on_a_randomized_model(digits):
    model = Noisy(perceptron(), 0.1)
    images, labels = own_labels(model.inner, digits[0][:8])
    runs = []
    for state in (1, 2):  # its noise comes from the generator, not from the caller's random state
        torch.manual_seed(state)
        runs.append(square(model, images, labels, 0.03, queries=10, draws=2, generator=seeded(5)))
    assert torch.equal(*runs)


def test_in_pixels_square_goes_on_until_the_rounded_image_fools(digits):
    """At a budget that 8-bit images cannot use up."""
    model, eps = perceptron(), 10.9 / 255
    images, labels = own_labels(model, (digits[0] * 255).round() / 255)
    left = []
    for pixels in (False, True):
        found = square(model, images, labels, eps, queries=200, pixels=pixels)
        shown = to_pixels(found, images, eps, "Linf", "strict") / 255
        left.append(int((~wrong(model, shown, labels)).sum()))
    assert left[1] < left[0]


@pytest.mark.parametrize("queries", [1, 3, 40])
def test_square_never_returns_less_than_the_clean_loss(digits, queries):
    model = perceptron()
    images, labels = own_labels(model, digits[0])
    before = margin(model(images), labels)
    after = margin(model(square(model, images, labels, 0.01, queries=queries)), labels)
    assert (after >= before - 1e-5).all() and (after > before + 1e-5).any()


def test_square_nears_the_optimum_on_a_linear_model(linear):
    """The highest margin in the ball is `m + eps * |w_other - w_y|_1`, at one corner of it."""
    images = 0.5 + 0.2 * (torch.rand(32, 3, 4, 4, generator=seeded(3)) - 0.5)
    labels, weight = linear(images).argmax(1), linear.weight.detach()
    clean, size = margin(linear(images), labels).detach(), (weight[0] - weight[1]).abs().sum()
    eps = float((-clean / size).median())  # so that half of the images can be fooled
    highest = clean + eps * size
    fooled = wrong(linear, square(linear, images, labels, eps, queries=3000), labels)
    assert fooled[highest > 0.02 * eps * size].all()
    assert not fooled[highest < 0].any()
    assert 10 < int(fooled.sum()) < 22
    eps = 0.9 * float((-clean / size).min())  # none can be fooled
    adv = square(linear, images, labels, eps, queries=3000)
    share = (margin(linear(adv), labels).detach() - clean) / (eps * size)
    assert not wrong(linear, adv, labels).any()
    assert share.max() <= 1 + 1e-4 and share.min() > 0.98


def all_places_but_the_last(at, n, length, size):
    """Where the authors' code puts squares: never at the last row or column."""
    first = torch.randint(max(length - size, 1), (n, 1), generator=at.generator)
    return (torch.arange(length) >= first) & (torch.arange(length) < first + size)


def few_pixels():
    """A linear network of five classes on 16x16 images around grey, and its own labels."""
    weight = torch.randn(5, 768, generator=seeded(3))
    model = Linear(weight - weight.mean(1, keepdim=True))  # grey is on the border
    images = 0.5 + 0.05 * torch.randn(64, 3, 16, 16, generator=seeded(5))
    return model, own_labels(model, images)


@pytest.mark.parametrize(
    ("kind", "norm", "eps", "trials"),
    [
        ("smooth", "Linf", 0.08, 10),
        ("smooth", "L2", 0.3, 5),
        ("conv", "L2", 0.04, 2),
        ("linear", "L2", 0.12, 2),
    ],
)
def test_square_fools_as_many_as_its_authors_code(
    network, digits, monkeypatch, kind, norm, eps, trials
):
    """Successes of so many seeds each on the same 64 images, with squares in the same places.

    Were all images alike, the difference of two binomial counts would lie within 2.58 standard
    deviations, `sqrt(2 n q (1 - q))`, in 99 of 100 cases; sharing the images makes it smaller. In
    L2 that code has all images of a batch share their squares, and may fall behind.
    """
    peer = pytest.importorskip("pyautoattack.square")
    model = network if kind == "conv" else perceptron()
    images, labels = own_labels(model, digits[0])
    if kind == "linear":
        model, (images, labels) = few_pixels()
    private, queries = attack_copy(model, torch.device("cpu")), 100

    def ours(seed):
        options = {"queries": queries, "norm": norm, "p": 0.8}
        adv = square(model, images, labels, eps, generator=seeded(seed), **options)
        return int(wrong(model, adv, labels).sum())

    def theirs(seed):  # n_queries: beside the stripes
        options = {"n_queries": queries - 1, "resc_schedule": False, "seed": seed, "norm": norm}
        with torch.random.fork_rng():
            adv = peer.SquareAttack(private, eps=eps, **options).perturb(images, labels)
        return int(wrong(model, adv, labels).sum())

    everywhere = sum(map(ours, range(trials)))
    monkeypatch.setattr("advprune.attacks.square._offsets", all_places_but_the_last)
    mine, peers = sum(map(ours, range(trials))), sum(map(theirs, range(trials)))
    count = 64 * trials
    rate = (mine + peers) / (2 * count)
    assert 0.15 < rate < 0.85
    allowed = 2.58 * math.sqrt(2 * count * rate * (1 - rate))
    assert -allowed <= mine - peers <= (allowed if norm == "Linf" else count)
    # Images of 8x8 pixels have much of an edge.
    assert everywhere >= max(mine, peers) - (allowed if kind == "linear" else 0)


def test_the_side_of_a_square_follows_the_published_schedule():
    """As `p_selection` of the authors' code without rescaling; 32 pixels, p 0.8."""
    peer = pytest.importorskip("pyautoattack.square")
    attack = peer.SquareAttack(nn.Identity(), eps=0.1, resc_schedule=False)
    for tried in [*range(12), 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8000, 8001, 9999]:
        expected = max(round(math.sqrt(attack.p_selection(tried) * 32 * 32)), 1)
        assert side(0.8, tried, torch.Size([1, 3, 32, 32])) == expected
    assert [side(0.8, t, torch.Size([1, 1, 8, 8])) for t in (0, 11, 51, 201)] == [7, 5, 4, 3]
    assert side(1.0, 0, torch.Size([1, 1, 4, 16])) == 4  # no larger than the image


class Noisy(nn.Module):
    """Zero-mean noise on the logits of a model."""

    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale = inner, scale

    def forward(self, x):
        logits = self.inner(x)
        return logits + self.scale * torch.randn(logits.shape)


class Counting(nn.Module):
    """Two logits from the first pixel; notes how many images pass through any copy of it."""

    seen: ClassVar[list[int]] = []

    def forward(self, x):
        Counting.seen.append(len(x))
        first = 10 * x[:, 0, 0, 0]
        return torch.stack([first, 9 - first], dim=1)


def test_square_counts_its_cost():
    """By hand: 2 wrong images are seen once, 3 that cannot be fooled at every query."""
    images = torch.full((5, 1, 4, 4), 0.9)
    labels = torch.tensor([0, 0, 0, 1, 1])
    Counting.seen.clear()
    cost, done = Cost(), list[int]()
    options = {"queries": 7, "batch": 2, "progress": done.append}
    square(Counting(), images, labels, 0.1, cost=cost, **options)
    assert cost == Cost(forwards=5 + 3 * 7, gradients=0)
    checked = 5 * 2  # models/border.py: two images four times, and each alone
    assert sum(Counting.seen) == cost.forwards + checked and max(Counting.seen) == 2
    assert sum(done) == 3 * 7


def test_square_gives_up_no_image_of_a_model_that_draws_at_random(network, digits):
    """Each image gets all its queries, also one that some draws have fooled, if only at first."""
    images, labels = own_labels(network, digits[0][:8])
    cost = {name: Cost() for name in ("dense", "random")}
    square(network, images, labels, 0.3, queries=7, draws=2, cost=cost["dense"])
    random = prune("SAP", network, 1.0).model
    square(random, images, labels, 0.3, queries=7, draws=2, cost=cost["random"])
    assert cost["dense"].forwards < cost["random"].forwards == 8 * (1 + 7) * 2


# AutoAttack
@pytest.fixture
def short(monkeypatch):
    """The package's attacks with a fifth of their steps and queries, in both loops."""
    package = pytest.importorskip("pyautoattack").AutoAttack
    choose = package._set_version

    def shorter(self, version):
        choose(self, version)
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = 20
        self.square.n_queries = 1000

    monkeypatch.setattr(package, "_set_version", shorter)


def official(model, pair, eps, targets=9, **options):
    """The images of the package's own evaluation, in batches of 5."""
    package = pytest.importorskip("pyautoattack")
    with torch.random.fork_rng():
        judge = package.AutoAttack(copy.deepcopy(model), eps=eps, seed=0, **options)
        judge.apgd_targeted.n_target_classes = judge.fab.n_target_classes = targets
        return judge.run_standard_evaluation(*pair, batch_size=5)[0]


class Rounding(nn.Module):
    """Rounds pixels to 17 levels, so that there is no gradient and Square gets furthest."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner((x * 16).round() / 16)


STANDARD = ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]


@pytest.mark.parametrize(
    ("model", "n", "norm", "eps", "helpful"),
    [
        (perceptron(), 8, "Linf", 0.1, "apgd-t"),
        (perceptron(), 8, "L2", 0.5, "apgd-t"),
        (Rounding(perceptron()), 5, "Linf", 0.1, "square"),
        (perceptron(), 8, "Linf", 0.1, "apgd-dlr"),
    ],
)
@pytest.mark.usefixtures("short")
def test_autoattack_is_the_official_one(digits, model, n, norm, eps, helpful):
    """The same images to the last bit, from the same private copy and batches."""
    images, labels = own_labels(model, digits[0][:n])
    version = "rand" if helpful == "apgd-dlr" else "standard"
    adv, counts = autoattack(model, images, labels, eps, norm=norm, version=version, batch=5)
    private = attack_copy(model, torch.device("cpu"))
    theirs = official(private, (images, labels), eps, norm=norm, version=version)
    assert torch.equal(adv, theirs)
    keys, left = list(counts), list(counts.values())
    assert keys == (STANDARD if version == "standard" else ["clean", "apgd-ce", "apgd-dlr"])
    assert left == sorted(left, reverse=True) and left[0] == n - 1 and 0 < left[-1] < n - 1
    assert counts[helpful] < left[keys.index(helpful) - 1]
    flags = wrong(model, adv, labels)
    assert int((~flags).sum()) == left[-1] and torch.equal(adv[~flags], images[~flags])
    change = (adv - images).flatten(1)
    size = change.abs().amax(1) if norm == "Linf" else change.norm(dim=1)
    assert size.max() <= eps + 1e-5 and adv.min() >= 0 and adv.max() <= 1
    assert adv.dtype == torch.float32


@pytest.mark.parametrize("name", ["strength", "strength-cifar10-small"])
def test_the_suite_is_as_strong_as_autoattack_at_a_fifth_of_its_passes(name):
    """As bench/strength.py measured it on 300 images of each robust network: the suite leaves no
    more over all of them, and on none significantly more (McNemar's exact test, one-sided)."""
    rows = pd.DataFrame(
        json.loads((ROOT / "bench" / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    ).set_index(["attacks", "model"])
    left, passes = (rows.n * rows.robust_accuracy).round(), rows.passes
    assert (rows.n >= 300).all() and (left.suite - left.AutoAttack).sum() <= 0
    assert (left.everything <= left.suite).all() and (passes.suite < 0.2 * passes.AutoAttack).all()
    for _, one in rows.loc["suite"].iterrows():
        missed, alone = one["broken by AutoAttack alone"], one["broken by these alone"]
        assert binomtest(int(missed), int(missed + alone) or 1, alternative="greater").pvalue > 0.05


def test_autoattack_with_few_classes(digits):
    """And with all its steps and queries."""
    model = perceptron(classes=5)
    images, labels = own_labels(model, digits[0][:4])
    private = attack_copy(model, torch.device("cpu"))
    adv, _ = autoattack(model, images, labels, 0.03, batch=5)
    assert torch.equal(adv, official(private, (images, labels), 0.03, targets=4))
    with pytest.raises(UserError, match="at least 4 classes, the model has 3"):
        autoattack(perceptron(classes=3), images, labels % 3, 0.03)
    with pytest.raises(UserError, match="at least 3 classes, the model has 2"):
        autoattack(perceptron(classes=2), images, labels % 2, 0.03, version="rand")


def test_autoattack_is_quiet(digits, capfd, caplog):
    """The package's warning of zero gradients goes to our logger, which has a silent handler."""
    pytest.importorskip("pyautoattack")
    model = Rounding(perceptron())
    autoattack(model, *own_labels(model, digits[0][:4]), 0.02, version="rand")
    ours = "advprune.attacks.autoattack"
    assert {record.name for record in caplog.records} == {ours}
    assert [type(handler) for handler in logging.getLogger(ours).handlers] == [logging.NullHandler]
    output = capfd.readouterr()
    assert output.out == "" and output.err == ""


def test_autoattack_counts_its_cost(digits):
    """By hand, `rand` on images that cannot be fooled: 20 draws at 101 points, for each loss.

    Besides: every image once clean, then once before and once after each of the two attacks.
    """
    pytest.importorskip("pyautoattack")
    cost = Cost()
    images, labels = digits[0][:4], perceptron()(digits[0][:4]).argmax(1)
    _, counts = autoattack(perceptron(), images, labels, 0.0, version="rand", cost=cost)
    assert set(counts.values()) == {4}
    assert cost == Cost(forwards=4 * (1 + 2 * (2 + 20 * 101)), gradients=4 * 2 * 20 * 101)


def test_autoattack_when_nothing_is_left_to_attack(digits):
    pytest.importorskip("pyautoattack")
    model = perceptron()
    images = digits[0][:3]
    labels = (model(images).argmax(1) + 1) % 10
    adv, counts = autoattack(model, images, labels, 0.1)
    assert torch.equal(adv, images) and list(counts.values()) == [0] * 5


def test_autoattack_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UserError, match="pip install pyautoattack"):
        autoattack(perceptron(), *digits, 0.1)
