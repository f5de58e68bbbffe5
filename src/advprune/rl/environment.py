"""Environments that follow gymnasium's interface, and episodes played in them.

gymnasium is imported only where an environment is made, so that everything else works without it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, SupportsFloat

import numpy as np
import torch

from advprune.core.errors import UserError

PURPOSES = ("train", "probe", "evaluate")  # their episodes begin with different seeds


class Environment(Protocol):
    """What is used of gymnasium's `Env`."""

    observation_space: Any
    action_space: Any

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; the first observation."""

    def step(self, action: int) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Observation, reward, whether the episode ended, whether it was cut off, and more."""

    def close(self) -> None:
        """Done with it."""


Make = Callable[[], Environment]
Act = Callable[[torch.Tensor], torch.Tensor]  # observations [N, ...] -> actions [N]


def make(env: str, options: dict[str, Any]) -> Environment:
    """An environment by gymnasium's id; Atari games (`ALE/...`) with the usual preprocessing.

    Raises UserError where gymnasium is missing or does not make it.
    """
    gymnasium = _module("gymnasium", "pip install gymnasium")
    try:
        if env.startswith("ALE/"):
            return _atari(gymnasium, env, options)
        made: Environment = gymnasium.make(env, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"gymnasium cannot make the environment {env!r}: {reason}") from error
    return made


def _module(name: str, remedy: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"{name} is not installed; {remedy}") from error


def _atari(gymnasium: Any, env: str, options: dict[str, Any]) -> Environment:
    """Grey 84x84 frames, every fourth with the two before it maximized, four stacked [4, 84, 84].

    Mnih et al., Human-level control through deep reinforcement learning (Nature, 2015).
    """
    remedy = "pip install ale-py opencv-python-headless"
    gymnasium.register_envs(_module("ale_py", remedy))
    _module("cv2", remedy)
    raw = gymnasium.make(env, **{"frameskip": 1, **options})  # skipping is the wrapper's task
    frames = gymnasium.wrappers.AtariPreprocessing(raw)
    stacked: Environment = gymnasium.wrappers.FrameStackObservation(frames, 4)
    return stacked


def sizes(environment: Environment) -> tuple[tuple[int, ...], int]:
    """Shape of an observation, `[D]` or `[C, H, W]`, and number of actions.

    Raises UserError where observations have another form or actions are not discrete.
    """
    shape = tuple(int(n) for n in getattr(environment.observation_space, "shape", None) or ())
    actions = getattr(environment.action_space, "n", None)
    if actions is None:
        raise UserError("DQN needs an environment with discrete actions")
    if len(shape) not in (1, 3):
        raise UserError(f"observations are numbers [D] or images [C, H, W], not {list(shape)}")
    if len(shape) == 3 and shape[0] > min(shape[1:]):
        raise UserError(f"images {list(shape)} should have their channels first")
    return shape, int(actions)


def episode_seed(seed: int, purpose: str, index: int) -> int:
    """The seed from which an episode starts: its own for each run, purpose and episode."""
    words = np.random.SeedSequence([seed, PURPOSES.index(purpose), index]).generate_state(1)
    return int(words[0]) // 2


def to_tensor(observation: Any) -> torch.Tensor:
    """An observation as a tensor: images (uint8) stay as they are, the rest becomes float32."""
    array = np.asarray(observation)
    return torch.tensor(array if array.dtype == np.uint8 else array.astype(np.float32))


def to_float(observations: torch.Tensor) -> torch.Tensor:
    """What the agent reads: uint8 images as float32 in [0, 1], the rest unchanged."""
    return observations / 255 if observations.dtype == torch.uint8 else observations


@dataclass
class Episode:
    """One episode: its seed, the sum of its rewards and its length."""

    seed: int
    reward: float = 0.0
    steps: int = 0


def play(make_one: Make, seeds: Sequence[int], act: Act) -> list[Episode]:
    """Play one episode from each seed, all at the same time, actions chosen for a whole batch."""
    environments = [make_one() for _ in seeds]
    episodes = [Episode(seed) for seed in seeds]
    seen = [to_tensor(e.reset(seed=s)[0]) for e, s in zip(environments, seeds, strict=True)]
    running = list(range(len(seeds)))
    while running:
        actions = act(to_float(torch.stack([seen[i] for i in running])))
        ended = [
            _step(environments[i], episodes[i], seen, i, int(action))
            for i, action in zip(running, actions, strict=True)
        ]
        running = [i for i, end in zip(running, ended, strict=True) if not end]
    for environment in environments:
        environment.close()
    return episodes


def _step(
    environment: Environment, episode: Episode, seen: list[torch.Tensor], index: int, action: int
) -> bool:
    """Take a step, note what came of it; whether the episode is over."""
    observation, reward, terminated, truncated, _ = environment.step(action)
    seen[index] = to_tensor(observation)
    episode.reward += float(reward)
    episode.steps += 1
    return bool(terminated or truncated)
