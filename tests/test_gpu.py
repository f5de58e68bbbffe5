"""What a GPU does otherwise than the CPU: recorded passes, device generators, images elsewhere."""

import copy

import pytest
import torch

from advprune.attacks import attack
from advprune.attacks.engine import attack_copy
from advprune.attacks.pgd import random_point
from advprune.core.device import full_precision
from advprune.core.train_settings import RecipeSettings, TrainSettings
from advprune.evaluate.records import all_logits, predictions
from advprune.models.fold import Following, Replayed
from advprune.pruning import Data, prune
from advprune.pruning.hydra import attach_scores, smallest
from advprune.quantization.post_training import quantize, twin_agreement
from advprune.training.standard import Trainer
from conftest import nearest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def gradient(model, x):
    point = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(point).float().square().sum(), point)
    return found.clone()


def test_recorded_passes_follow_the_weights_and_leave_other_shapes_alone(network, digits):
    plain = attack_copy(network, torch.device("cuda"))
    images = digits[0].cuda()
    recorded = Replayed(plain, images[:32])
    for change in (1.0, 1.5):
        for parameter in plain.parameters():
            parameter.mul_(change)
        for batch in (images[32:], images[:7]):
            assert torch.allclose(gradient(recorded, batch), gradient(plain, batch), rtol=1e-4)
            with torch.no_grad():
                assert torch.allclose(recorded(batch), plain(batch), rtol=1e-4)


def test_recorded_passes_follow_scores_too(network, digits):
    model, images = network.cuda(), digits[0].cuda()
    masks = attach_scores(model, 0.5)
    following = Following.of(model)
    assert following is not None
    recorded = Replayed(following.network, images[:32])
    for mask in masks.values():
        with torch.no_grad():
            mask.scores.copy_(torch.randn_like(mask.scores))
        mask.refresh()
        assert torch.equal(mask.kept.cpu(), ~smallest(mask.scores.cpu(), 0.5))
    plain, batch = following.refresh(), images[32:]
    assert torch.allclose(gradient(recorded, batch), gradient(plain, batch), rtol=1e-4)
    with torch.no_grad(), full_precision():
        found, expected = plain(batch), model(batch)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_hydra_is_trained_there(network, digits):
    brief = {"method": "pgd", "epochs": 2, "steps": 2}
    setting = {"sparsity": 0.9, "scores": brief, "finetune": brief}
    data = Data(*digits, TrainSettings(batch=16, eps=0.05))
    made = prune("HYDRA", network.cuda(), setting, data)
    weight = made.model.get_parameter("linear.weight")
    assert (weight == 0).sum() == int(0.9 * weight.numel())
    assert len(made.notes["scores"]) == len(made.notes["finetune"]) == 2


@pytest.mark.parametrize(
    ("name", "setting"), [("S", 3), ("R", 1e-3), ("clamp", {"sigmas": 2}), ("magnitude_layer", 2)]
)
def test_families_make_the_same_there(network, digits, name, setting):
    made = [
        prune(name, model, setting, digits).model.cpu()
        for model in (copy.deepcopy(network).cuda(), network)
    ]
    there, here = (all_logits(model, digits[0]) for model in made)
    assert torch.allclose(there, here, rtol=1e-3, atol=1e-4)


def test_scores_there_are_in_full_precision_and_integers_are_exact(network, digits):
    there = copy.deepcopy(network).cuda()
    assert torch.allclose(all_logits(there, digits[0]), all_logits(network, digits[0]), atol=1e-4)
    whole = quantize(there, digits[0])
    assert twin_agreement(whole, digits[0])[0] > 0.95
    assert torch.equal(predictions(whole, digits[0]), predictions(whole.cpu(), digits[0]))


def test_attacks_take_images_from_the_cpu_and_agree_with_it(network, digits):
    images, labels = digits[0], network(digits[0]).argmax(1)
    there = copy.deepcopy(network).cuda()
    how = {"eps": 0.02, "steps": 12, "batch": 24}
    found, known = (attack("apgd", m, images, labels, **how) for m in (there, network))
    assert found.device.type == "cpu"
    wrong = [network(x).argmax(1) != labels for x in (found, known)]
    assert (wrong[0] != wrong[1]).sum() <= 2
    pair = [nearest(m, images, labels, steps=30) for m in (there, network)]
    assert (pair[0][1].median() / pair[1][1].median() - 1).abs() < 0.02


def test_random_points_may_be_drawn_there(digits):
    images = digits[0].cuda()
    generator = torch.Generator("cuda").manual_seed(0)
    point = random_point(images, 0.1, "Linf", generator)
    assert point.is_cuda and 0 < (point - images).abs().max() <= 0.1 + 1e-6


def test_robust_training_learns_in_mixed_precision(network, digits):
    images = (digits[0] * 255).round().to(torch.uint8)
    settings = TrainSettings(epochs=12, batch=16, crop=1, eps=0.05)
    recipe = RecipeSettings(method="pgd", steps=3)
    pair = images, digits[1]
    history = Trainer(network.cuda(), pair, pair, settings, recipe, 0, None).run()
    assert history[-1]["train_loss"] < history[0]["train_loss"]
