"""Every network that is trained from scratch: dense, binary, or an attacker's.

An attacker trains networks of their own to craft images for transfer to a target. A surrogate
learns from the labels of the training images. A substitute (Papernot et al., Practical Black-Box
Attacks against Machine Learning, 2017) uses no labels: it learns a target's answers on the images,
here its probabilities.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from advprune.core.device import device_of, salted
from advprune.core.errors import UserError
from advprune.core.params import DENSE, Params
from advprune.core.profile import Profile
from advprune.core.train_settings import BinarySettings, RecipeSettings, SurrogateSettings
from advprune.data import to_float
from advprune.models.border import admitted
from advprune.models.spec import spec_of
from advprune.models.stochastic import is_randomized, mean_logits
from advprune.training.base import begin, load_or_train, spec_for
from advprune.training.binary import binary_spec, parameters_of, train_binary
from advprune.training.growth import grow
from advprune.training.inputs import Inputs
from advprune.training.standard import History, Trainer

DRAWS = 10  # answers of a randomized target that are averaged


def train_network(
    params: Params, name: str, inputs: Inputs, parent: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a recipe (`dense-<recipe>`) or of an entry of `models` with `do: train`, and
    its facts for the card: setting, history and, where channels were grown, growth.

    parent: of a model that has one, the network that it is made from.
    """
    setting, profile, grown = params.setting(name), params.active(), None
    if name not in params.models:
        model, history = load_or_train(profile, name.removeprefix(f"{DENSE}-"), setting, inputs)
    elif isinstance(setting, BinarySettings):
        base = spec_for(profile.model, inputs.train)
        if setting.growth is not None:
            state = inputs.state and inputs.state.with_name("growth.pt")
            grown = grow(base, setting.growth, profile.train, replace(inputs, state=state))
            before, after = (parameters_of(binary_spec(base, found)) for found in (None, grown))
            if after <= before:
                raise UserError(
                    f"Early-Growth ended with {after} parameters, not more than the {before} it "
                    "started from; raise growth.epochs, growth.frozen or growth.gate_lr"
                )
        widest = spec_of(parent) if setting.channels == "uniform" and parent else None
        spec = binary_spec(base, grown, widest)
        model, history = train_binary(spec, setting, profile.train, inputs)
    else:
        copies = params.models[name].section == "substitutes"
        target = parent.to(inputs.device) if copies and parent else None
        model, history = train_surrogate(profile, setting, inputs, target)
    facts = {"setting": setting.model_dump(exclude_none=True), "history": history}
    return model, facts | ({"growth": grown.model_dump()} if grown else {})


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

    A randomized target is asked `DRAWS` times and its logits are averaged; its draws come from
    `seed`, and the global random state stays as it was.
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
