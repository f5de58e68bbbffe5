"""Every network that is trained from scratch: dense, binary, or an attacker's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.core.params import DENSE, Params
from advprune.core.train_settings import BinarySettings
from advprune.data import Split
from advprune.models.spec import spec_of
from advprune.training.base import load_or_train, spec_for
from advprune.training.binary import binary_spec, parameters_of, train_binary
from advprune.training.growth import grow
from advprune.training.inputs import Inputs
from advprune.training.surrogate import train_surrogate


@dataclass(frozen=True)
class Training:
    """What a network is trained on and with.

    splits: uint8 images by name, `train` and `val`. parent: of a model that has one, the network
    that it is made from. state: where unfinished training is kept, to be resumed after a kill.
    after_epoch: called with the history so far, one row per epoch.
    """

    params: Params
    splits: Mapping[str, Split]
    device: torch.device
    state: Path
    parent: nn.Module | None = None
    after_epoch: Callable[[list[dict[str, float]]], None] = lambda history: None

    def run(self, name: str) -> tuple[nn.Module, dict[str, Any]]:
        """The network of a recipe (`dense-<recipe>`) or of an entry of `models` with `do: train`,
        and its facts for the card: setting, history and, where channels were grown, growth."""
        params, setting, parent = self.params, self.params.setting(name), self.parent
        profile, grown = params.active(), None
        splits = self.splits["train"], self.splits["val"]
        inputs = Inputs(*splits, params.seed, self.device, self.state, self.after_epoch)
        if name not in params.models:
            recipe = name.removeprefix(f"{DENSE}-")
            model, history = load_or_train(profile, recipe, setting, inputs)
        elif isinstance(setting, BinarySettings):
            base = spec_for(profile.model, inputs.train)
            if setting.growth is not None:
                growing = replace(inputs, state=self.state.with_name("growth.pt"))
                grown = grow(base, setting.growth, profile.train, growing)
                before, after = (parameters_of(binary_spec(base, found)) for found in (None, grown))
                if after <= before:
                    raise UserError(
                        f"Early-Growth ended with {after} parameters, not more than the {before} "
                        "it started from; raise growth.epochs, growth.frozen or growth.gate_lr"
                    )
            widest = spec_of(parent) if setting.channels == "uniform" and parent else None
            spec = binary_spec(base, grown, widest)
            model, history = train_binary(spec, setting, profile.train, inputs)
        else:
            copies = params.models[name].section == "substitutes"
            target = parent.to(self.device) if copies and parent else None
            model, history = train_surrogate(profile, setting, inputs, target)
        facts = {"setting": setting.model_dump(exclude_none=True), "history": history}
        return model, facts | ({"growth": grown.model_dump()} if grown else {})
