"""Settings of the reinforcement-learning extra: rl/params.yaml, typed. Needs neither torch nor gym.

Its own file and its own pipeline, so that the main ones neither run it nor depend on it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from advprune.core.errors import UserError
from advprune.core.settings import Name, Settings, parse, parse_fraction

Lambda = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0)]


class DqnSettings(Settings):
    """Double DQN. Counts are of environment steps.

    lr: Adam's rate, which falls linearly to zero. memory: transitions that are kept. warmup: steps
    before the first update. every: steps between updates. target: steps between copies to the
    target network. explore_*: epsilon falls from start to end within `explore_steps`.
    clip_rewards: learn from the reward's sign (Atari). probe_*: every so many steps the greedy
    agent plays so many episodes, and the best of these agents is kept. save_every: steps between
    the states that a killed run is resumed from.
    """

    steps: int = Field(ge=1)
    batch: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0, le=1)
    gamma: float = Field(default=0.99, ge=0, le=1)
    memory: int = Field(default=50_000, ge=1)
    warmup: int = Field(default=1000, ge=1)
    every: int = Field(default=1, ge=1)
    target: int = Field(default=500, ge=1)
    explore_start: float = Field(default=1.0, ge=0, le=1)
    explore_end: float = Field(default=0.05, ge=0, le=1)
    explore_steps: int = Field(default=10_000, ge=1)
    clip_rewards: bool = False
    probe_every: int = Field(default=2500, ge=1)
    probe_episodes: int = Field(default=10, ge=1)
    save_every: int = Field(default=10_000, ge=1)

    @model_validator(mode="after")
    def _warm_enough(self) -> "DqnSettings":
        if self.warmup < self.batch:
            raise ValueError("warmup: the first update needs at least `batch` steps before it")
        return self


class GameSettings(Settings):
    """An environment, the agent that plays it and the budgets at which it is attacked.

    env: gymnasium's id; options: arguments of its constructor. hidden: widths of the ReLU layers
    (behind the convolutions, for images). budgets: lambda, in standard deviations of each
    observed number, or as a fraction of the pixel range for images.
    """

    env: str = Field(min_length=1)
    options: dict[str, Any] = Field(default={})
    hidden: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    train: DqnSettings
    budgets: list[Lambda] = Field(min_length=1)

    @model_validator(mode="after")
    def _budgets_differ(self) -> "GameSettings":
        if len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets: a budget is given twice")
        return self


class SapSettings(Settings):
    """SAP behind every ReLU of the agent: see `advprune.pruning.sap`."""

    fraction: float = Field(default=1.0, gt=0, le=100)
    form: Literal["multinomial", "independent", "poisson"] = "multinomial"


class EvaluateSettings(Settings):
    """Episodes a point, and draws over which SAP's gradients and values are averaged."""

    episodes: int = Field(default=50, ge=2)
    draws: int = Field(default=20, ge=1)


class RlParams(Settings):
    """All of rl/params.yaml."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    games: dict[Name, GameSettings] = Field(min_length=1)
    sap: SapSettings
    evaluate: EvaluateSettings

    def game(self, name: str) -> GameSettings:
        """The settings of a game; UserError for one that is not there."""
        if name not in self.games:
            known = ", ".join(self.games)
            raise UserError(f"there is no game {name!r} in rl/params.yaml; known: {known}")
        return self.games[name]


def load(path: Path) -> RlParams:
    """Read and check the settings; UserError names the key, its value and what is allowed."""
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds no settings; restore it from the repository")
    return parse(RlParams, raw, where=str(path))
