"""The agent: a network Q(s, a) trained by stable-baselines3's DQN, its file, and its episodes."""

import json
from collections.abc import Callable
from functools import partial
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
    from stable_baselines3 import DQN
except ImportError as error:
    raise UserError(f"{error.name} is not installed; pip install 'advprune[rl]'") from error

Act = Callable[[torch.Tensor], torch.Tensor]  # observations [N, D] -> actions [N]


class Agent(nn.Module):
    """Q values `[N, A]` of observations `[N, D]`, by ReLU layers; sizes: `[D, hidden ..., A]`.
    spread: the standard deviation of each observed number during training, `[D]`."""

    spread: torch.Tensor

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("spread", torch.ones(sizes[0]))
        layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.body = nn.Sequential(*layers[:-1])
        self.requires_grad_(False).eval()

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return self.body(observations)


def save_agent(agent: Agent, path: Path) -> None:
    """Write sizes and tensors to `path` (safetensors), whole or not at all."""
    with atomic(path) as temporary:
        save_file(agent.state_dict(), temporary, metadata={"sizes": json.dumps(agent.sizes)})


def load_agent(path: Path) -> Agent:
    """The agent stored at `path`; UserError where the file is missing, damaged or another's."""
    tensors, metadata = read_tensors(path)
    try:
        agent = Agent(json.loads(metadata["sizes"]))
        agent.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} holds no agent; delete it and train it anew") from error
    return agent


def make(game: GameSettings) -> gymnasium.Env[Any, Any]:
    """A game's environment; UserError where it cannot be made or an agent cannot play it."""
    try:
        made = gymnasium.make(game.env)
    except (gymnasium.error.Error, ImportError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"gymnasium cannot make the environment {game.env!r}: {why}") from error
    if len(made.observation_space.shape or ()) != 1 or not hasattr(made.action_space, "n"):
        raise UserError(f"{game.env}: observations have to be vectors and actions discrete")
    return made


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
    options = game.dqn.model_dump() | {"policy_kwargs": {"net_arch": game.hidden}}
    options["learning_rate"] = lambda left: max(left, 0.0) * game.dqn.learning_rate
    dqn: Any = DQN("MlpPolicy", make(game), seed=seed, device="cpu", **options)
    sizes = [*dqn.observation_space.shape, *game.hidden, int(dqn.action_space.n)]
    best, probes = Agent(sizes), list[dict[str, float]]()
    seeds = episode_seeds(seed, "probe", game.probe_episodes)

    def probe(*_: Any) -> bool:
        """Called by the library after every step of the environment."""
        advance(1)
        step = dqn.num_timesteps
        if step % game.probe_every == 0 or step == game.steps:
            learned = dqn.q_net.q_net  # layers of the same names as `Agent.body`
            reward = float(play(game, seeds, lambda seen: learned(seen).argmax(1)).mean())
            if reward >= max((row["reward"] for row in probes), default=-np.inf):
                best.body.load_state_dict(learned.state_dict())
            probes.append({"step": step, "reward": reward})
        return True

    with progress(f"DQN, {game.steps:,} steps", game.steps) as advance:
        dqn.learn(game.steps, callback=probe)
    memory = dqn.replay_buffer.observations[: dqn.replay_buffer.size(), 0]  # [steps, D]
    spread = memory.std(0, dtype=np.float64)
    best.spread.copy_(torch.as_tensor(np.where(spread > 0, spread, 1)))  # 1: it never changed
    return best, probes
