"""Networks that an attacker trains, to craft images for transfer to a target.

A surrogate learns from the labels of the training images. A substitute (Papernot et al., Practical
Black-Box Attacks against Machine Learning, 2017) uses no labels: it learns a target's answers on
the images, here its probabilities.
"""

import torch
from torch import nn

from advprune.core.device import device_of, salted
from advprune.core.profile import Profile
from advprune.core.train_settings import RecipeSettings, SurrogateSettings
from advprune.data import to_float
from advprune.models.border import admitted
from advprune.models.stochastic import is_randomized, mean_logits
from advprune.training.base import begin
from advprune.training.inputs import Inputs
from advprune.training.standard import History, Trainer

DRAWS = 10  # answers of a randomized target that are averaged


def train_surrogate(
    profile: Profile,
    choice: SurrogateSettings,
    inputs: Inputs,
    target: nn.Module | None = None,
) -> tuple[nn.Module, History]:
    """Train a network of the attacker's on the training images, and return it with its history.

    target: learn its answers to the images as they are, instead of the labels; the images are then
    neither shifted nor mirrored. The seed is `inputs.seed + choice.seed`.
    """
    (images, labels), val = inputs.pairs
    seed, optimizer = inputs.seed + choice.seed, profile.train
    model = begin(choice.network(profile.model), inputs.train, seed).to(inputs.device)
    if target is not None:
        labels = answers(target, images, optimizer.batch, seed)
        optimizer = optimizer.model_copy(update={"flip": False, "crop": 0, "label_smoothing": 0.0})
    recipe = RecipeSettings(epochs=choice.epochs)
    known = optimizer, recipe, seed, inputs.state, inputs.after_epoch
    return model, Trainer(model, (images, labels), val, *known).run()


@torch.no_grad()
def answers(target: nn.Module, images: torch.Tensor, batch: int, seed: int) -> torch.Tensor:
    """A target's probabilities `[N, K]` of uint8 images `[N, C, H, W]`, on the CPU.

    A randomized target is asked `DRAWS` times and its logits are averaged; its draws come
    from `seed`, and the global random state stays as it was.
    """
    target = admitted("substitute", target, to_float(images[:2]))
    device, draws = device_of(target), DRAWS if is_randomized(target) else 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(salted(seed, "substitute"))
        parts = [
            mean_logits(target, to_float(x).to(device), draws).softmax(1).cpu()
            for x in images.split(batch)
        ]
    return torch.cat(parts)
