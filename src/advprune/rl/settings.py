"""Settings of the reinforcement-learning extra: rl/params.yaml, typed."""

from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from advprune.core.errors import UserError
from advprune.core.settings import Name, Settings, parse, text_of, yaml_of

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
# Who plays, and what moves its observations.
CURVES = (*product(("dense", "SAP"), ("noise", "FGSM", "PGD")), ("SAP", "BPDA"))


class DqnSettings(Settings):
    """Arguments of stable-baselines3's DQN, by its own names; the learning rate falls to zero."""

    learning_rate: Share = 1e-3
    batch_size: Count = 128
    buffer_size: Count = 50_000
    learning_starts: Count = 1000
    train_freq: Count = 4
    gradient_steps: Count = 2
    gamma: Share = 0.99
    target_update_interval: Count = 250
    exploration_fraction: Share = 0.2
    exploration_final_eps: Share = 0.05


class GameSettings(Settings):
    """An environment, the agent that learns to play it and the budgets at which it is attacked.

    env: gymnasium's id. hidden: widths of the ReLU layers. steps: of training. Every `probe_every`
    steps the greedy agent plays `probe_episodes` episodes; the best of these agents is kept.
    budgets: lambda, in standard deviations of each observed number; of pictures, in pixel values.
    """

    env: str
    hidden: list[Count] = Field(default=[128, 128], min_length=1)
    steps: Count
    probe_every: Count = 5000
    probe_episodes: Count = 20
    dqn: DqnSettings = DqnSettings()
    budgets: list[Annotated[float, Field(gt=0)]] = Field(min_length=1)


class SapSettings(Settings):
    """SAP behind every ReLU of the agent: see `advprune.pruning.sap`."""

    fraction: float = Field(default=1.0, gt=0, le=100)
    form: Literal["multinomial", "independent", "poisson"] = "multinomial"


class RlParams(Settings):
    """All of rl/params.yaml. draws: over which SAP's gradients and values are averaged."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    sap: SapSettings = SapSettings()
    episodes: int = Field(default=50, ge=2)
    draws: Count = 20
    games: dict[Name, GameSettings] = Field(min_length=1)

    def game(self, name: str) -> GameSettings:
        """The settings of a game; UserError for one that is not there."""
        if name in self.games:
            return self.games[name]
        raise UserError(f"no game {name!r} in rl/params.yaml; known: {', '.join(self.games)}")


def load(path: Path = Path("rl/params.yaml")) -> RlParams:
    """Read and check the settings; UserError names the key, its value and what is allowed."""
    return parse(RlParams, yaml_of(text_of(path), str(path)), where=str(path))
