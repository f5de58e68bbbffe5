"""The agent: a network Q(s, a) trained by stable-baselines3's DQN, its file, and its episodes."""

import json
from collections.abc import Callable
from functools import partial
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from advprune.core.device import salted
from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.core.progress import progress
from advprune.models.checkpoint import read_tensors
from advprune.rl.settings import GameSettings

try:
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.wrappers import TransformObservation
    from stable_baselines3 import DQN
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
except ImportError as error:
    raise UserError(f"{error.name} is not installed; pip install 'advprune[rl]'") from error

Act = Callable[[torch.Tensor], torch.Tensor]  # observations [N, ...] -> actions [N]
CHANNELS = 16  # of the convolution that reads pictures, as in MinAtar's own network


class Pictures(BaseFeaturesExtractor):
    """Of pictures `[N, C, H, W]`: one convolution of 3 x 3 and a ReLU, flattened."""

    def __init__(self, space: Box) -> None:
        channels, height, width = space.shape
        super().__init__(space, CHANNELS * (height - 2) * (width - 2))
        self.layers = nn.Sequential(nn.Conv2d(channels, CHANNELS, 3), nn.ReLU(), nn.Flatten())

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.layers(pictures)


class Agent(nn.Module):
    """Q values `[N, A]` of observations: vectors `[N, D]` or pictures `[N, C, H, W]` in [0, 1].

    shape: of one observation; hidden: widths of the ReLU layers, behind a convolution for pictures.
    spread: the standard deviation of each observed number during training; 1 for pictures.
    """

    spread: torch.Tensor

    def __init__(self, shape: list[int], hidden: list[int], actions: int) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {"shape": shape, "hidden": hidden, "actions": actions}
        self.register_buffer("spread", torch.ones(*shape))
        self.pictures = len(shape) == 3
        space = Box(0, 1, tuple(shape))
        self.front = Pictures(space) if self.pictures else FlattenExtractor(space)
        widths = [self.front.features_dim, *hidden, actions]
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        self.requires_grad_(False).eval()

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.body(self.front(observations))


def save_agent(agent: Agent, path: Path) -> None:
    """Write sizes and tensors to `path` (safetensors), whole or not at all."""
    with atomic(path) as temporary:
        save_file(agent.state_dict(), temporary, metadata={"sizes": json.dumps(agent.sizes)})


def load_agent(path: Path) -> Agent:
    """The agent stored at `path`; UserError where the file is missing, damaged or another's."""
    tensors, metadata = read_tensors(path)
    try:
        agent = Agent(**json.loads(metadata["sizes"]))
        agent.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no agent; train it anew") from error
    return agent


def make(game: GameSettings) -> gymnasium.Env[Any, Any]:
    """A game's environment, pictures with channels first; UserError where no agent can play it."""
    try:
        if game.env not in gymnasium.registry:
            for plugin in entry_points(group="gymnasium.envs"):  # games of other packages
                plugin.load()()
        made = gymnasium.make(game.env)
    except (gymnasium.error.Error, ImportError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"gymnasium cannot make the environment {game.env!r}: {why}") from error
    space: Any = made.observation_space
    pictures = len(space.shape or ()) == 3 and space.dtype == bool
    if not (pictures or len(space.shape or ()) == 1) or not hasattr(made.action_space, "n"):
        what = "vectors, or pictures of pixels that are on or off, and actions discrete"
        raise UserError(f"{game.env}: observations have to be {what}")
    if not pictures:
        return made
    height, width, channels = space.shape
    first = Box(0, 1, (channels, height, width))
    return TransformObservation(made, lambda seen: np.float32(seen.transpose(2, 0, 1)), first)


def episode_seeds(seed: int, purpose: str, count: int) -> list[int]:
    """The seeds from which episodes start: different for each run, purpose and episode."""
    words = np.random.SeedSequence(salted(seed, "rl", purpose)).generate_state(count)
    return [int(word) // 2 for word in words]


def play(game: GameSettings, seeds: list[int], act: Act) -> np.ndarray:
    """The reward of one episode from each seed, `[N]`, all played at the same time."""
    envs = gymnasium.vector.SyncVectorEnv([partial(make, game)] * len(seeds))
    seen, _ = envs.reset(seed=list(seeds))
    total, running = np.zeros(len(seeds)), np.ones(len(seeds), dtype=bool)
    actions = np.zeros(len(seeds), dtype=np.int64)
    while running.any():
        actions[running] = act(torch.as_tensor(seen[running], dtype=torch.float32)).numpy()
        seen, earned, ended, cut_off, _ = envs.step(actions)
        total += np.where(running, earned, 0)
        running &= ~(ended | cut_off)  # an environment that starts over is not counted again
    envs.close()
    return total


def train(game: GameSettings, seed: int) -> tuple[Agent, list[dict[str, float]]]:
    """Train by DQN; the agent that did best when probed (the last of equals), and the probes."""
    torch.set_num_threads(1)  # networks of this size are slower on several, and on a GPU
    env: Any = make(game)
    policy: dict[str, Any] = {"net_arch": game.hidden}
    if len(env.observation_space.shape) == 3:
        policy["features_extractor_class"] = Pictures
    options = game.dqn.model_dump() | {"policy_kwargs": policy}
    options["learning_rate"] = lambda left: max(left, 0.0) * game.dqn.learning_rate
    dqn: Any = DQN("MlpPolicy", env, seed=seed, device="cpu", **options)
    best = Agent(env.observation_space.shape, game.hidden, int(dqn.action_space.n))
    probes = list[dict[str, float]]()
    seeds = episode_seeds(seed, "probe", game.probe_episodes)

    def probe(*_: Any) -> bool:
        """Called by the library after every step of the environment."""
        advance(1)
        step = dqn.num_timesteps
        if step % game.probe_every == 0 or step == game.steps:
            front, body = dqn.q_net.features_extractor, dqn.q_net.q_net  # named as in `Agent`
            reward = float(play(game, seeds, lambda seen: body(front(seen)).argmax(1)).mean())
            if reward >= max((row["reward"] for row in probes), default=-np.inf):
                best.front.load_state_dict(front.state_dict())
                best.body.load_state_dict(body.state_dict())
            probes.append({"step": step, "reward": reward})
        return True

    with progress(f"DQN, {game.steps:,} steps", game.steps) as advance:
        dqn.learn(game.steps, callback=probe)
    if not best.pictures:
        memory = dqn.replay_buffer.observations[: dqn.replay_buffer.size(), 0]  # [steps, D]
        spread = memory.std(0, dtype=np.float64)
        best.spread.copy_(torch.as_tensor(np.where(spread > 0, spread, 1)))  # 1: it never changed
    return best, probes
