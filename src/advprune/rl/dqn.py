"""Double DQN: van Hasselt, Guez and Silver, Deep Reinforcement Learning with Double Q-learning.

AAAI 2016, with the replay memory, target network and epsilon-greedy play of Mnih et al. (2015).
Every episode starts from a seed of its own and all other draws come from one generator whose state
is stored, so a run that is killed and resumed gives the same weights as an unbroken one.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import Adam

from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.core.progress import progress
from advprune.rl.agent import Agent, AgentSpec, build
from advprune.rl.environment import Make, episode_seed, play, sizes, to_float, to_tensor
from advprune.rl.memory import Batch, Memory, Spread
from advprune.rl.settings import DqnSettings

History = list[dict[str, float]]  # a row a probe
LARGEST_GRADIENT = 10.0  # to whose norm gradients are cut


def double_targets(
    online: torch.Tensor,
    target: torch.Tensor,
    rewards: torch.Tensor,
    ended: torch.Tensor,
    gamma: float,
) -> torch.Tensor:
    """y = r + gamma (1 - ended) Q_target(s', argmax_a Q_online(s', a)), `[B]`.

    online, target: the two networks' values `[B, A]` of the next states.
    """
    chosen = target.gather(1, online.argmax(1, keepdim=True)).squeeze(1)  # [B]
    return rewards + gamma * torch.where(ended, 0.0, chosen)


def epsilon(step: int, settings: DqnSettings) -> float:
    """The probability of a random action: falls linearly to `explore_end`."""
    share = min(step / settings.explore_steps, 1.0)
    return settings.explore_start + share * (settings.explore_end - settings.explore_start)


class Trainer:
    """One training run.

    make: makes the environment. state_path: where the state is kept, to be resumed after a kill.
    """

    def __init__(
        self,
        make: Make,
        hidden: list[int],
        settings: DqnSettings,
        seed: int,
        device: torch.device,
        state_path: Path,
    ) -> None:
        self.make, self.settings, self.seed, self.device = make, settings, seed, device
        self.state_path, self.environment = state_path, make()
        shape, actions = sizes(self.environment)
        spec = AgentSpec(shape=shape, actions=actions, hidden=tuple(hidden))
        self.agent = build(spec, seed).to(device)
        self.target = copy.deepcopy(self.agent).requires_grad_(False)
        self.best = copy.deepcopy(self.agent).requires_grad_(False)
        self.optimizer = Adam(self.agent.parameters(), lr=settings.lr)
        self.generator = torch.Generator().manual_seed(seed)
        first = to_tensor(self.environment.reset(seed=seed)[0])
        self.memory, self.spread = Memory(settings.memory, first), Spread(shape)
        self.step = self.episode = self.saved = 0
        self.rewards: list[float] = []  # of the episodes since the last probe
        self.history: History = []

    def run(self) -> tuple[Agent, History]:
        """Train to the last step; the agent that did best when probed, and the probes."""
        self._resume()
        with progress(f"DQN, {self.settings.steps:,} steps", self.settings.steps) as advance:
            advance(self.step)
            while self.step < self.settings.steps:
                before = self.step
                self._play_episode()
                self._probe_if_due(before)
                self._save_if_due()
                advance(self.step - before)
        self.environment.close()
        return self.best.eval(), self.history

    def _play_episode(self) -> None:
        """One episode of epsilon-greedy play, learning on the way."""
        start = episode_seed(self.seed, "train", self.episode)
        state, over, total = to_tensor(self.environment.reset(seed=start)[0]), False, 0.0
        while not over and self.step < self.settings.steps:
            action = self._act(state)
            observation, earned, ended, cut_off, _ = self.environment.step(action)
            following, reward = to_tensor(observation), float(earned)
            total, over = total + reward, bool(ended or cut_off)
            self._remember(state, action, reward, following, bool(ended))
            state = following
        self.episode += 1
        self.rewards.append(total)

    def _remember(
        self,
        state: torch.Tensor,
        action: int,
        reward: float,
        following: torch.Tensor,
        ended: bool,
    ) -> None:
        if self.settings.clip_rewards:
            reward = float((reward > 0) - (reward < 0))
        self.memory.add(state, action, reward, following, ended)
        if not self.agent.spec.sees_images:
            self.spread.add(state)
        self.step += 1
        if self.step >= self.settings.warmup:
            self._learn_if_due()

    @torch.no_grad()
    def _act(self, state: torch.Tensor) -> int:
        if float(torch.rand((), generator=self.generator)) < epsilon(self.step, self.settings):
            actions = self.agent.spec.actions
            return int(torch.randint(actions, (), generator=self.generator))
        return int(self.agent(to_float(state[None].to(self.device))).argmax())

    def _learn_if_due(self) -> None:
        if self.step == self.settings.warmup or self.step % self.settings.target == 0:
            self._copy_to_target()
        if self.step % self.settings.every == 0:
            batch = self.memory.sample(self.settings.batch, self.generator)
            self._learn(batch.to(self.device))

    def _copy_to_target(self) -> None:
        """The target becomes the agent; the agent takes note of the spread found so far."""
        if not self.agent.spec.sees_images:
            self.agent.spread.copy_(self.spread.std())
        self.target.load_state_dict(self.agent.state_dict())

    def _learn(self, batch: Batch) -> None:
        """One step on the Huber loss of Q(s, a) against the double target; its rate falls to 0."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * (1 - self.step / self.settings.steps)
        following = to_float(batch.following)
        with torch.no_grad():
            wanted = double_targets(
                self.agent(following),
                self.target(following),
                batch.rewards,
                batch.ended,
                self.settings.gamma,
            )
        values = self.agent(to_float(batch.states)).gather(1, batch.actions[:, None]).squeeze(1)
        self.optimizer.zero_grad()
        F.smooth_l1_loss(values, wanted).backward()
        torch.nn.utils.clip_grad_norm_(self.agent.parameters(), LARGEST_GRADIENT)
        self.optimizer.step()

    def _probe_if_due(self, before: int) -> None:
        """Let the greedy agent play; keep it where it is the best so far (the later of equals)."""
        every, last = self.settings.probe_every, self.step >= self.settings.steps
        if self.step // every == before // every and not last:
            return
        reward = self._probe()
        if reward >= max([row["probe"] for row in self.history], default=-float("inf")):
            self.best.load_state_dict(self.agent.state_dict())
        training = sum(self.rewards) / len(self.rewards)
        row = {"step": self.step, "episodes": self.episode, "training": training, "probe": reward}
        self.history.append(row)
        self.rewards = []

    @torch.no_grad()
    def _probe(self) -> float:
        """Mean reward of the greedy agent over the probing episodes."""
        seeds = [episode_seed(self.seed, "probe", i) for i in range(self.settings.probe_episodes)]
        played = play(self.make, seeds, lambda s: self.agent(s.to(self.device)).argmax(1))
        return sum(episode.reward for episode in played) / len(played)

    def _save_if_due(self) -> None:
        if self.step - self.saved < self.settings.save_every:
            return
        self.saved = self.step
        with atomic(self.state_path) as temporary:
            torch.save(self._state(), temporary)

    def _state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on."""
        networks = {"agent": self.agent, "target": self.target, "best": self.best}
        return {
            **{name: network.state_dict() for name, network in networks.items()},
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "memory": self.memory.state(),
            "spread": self.spread.state(),
            "counts": [self.step, self.episode, self.saved],
            "rewards": self.rewards,
            "history": self.history,
        }

    def _resume(self) -> None:
        """Take up a stored state, if there is one."""
        if not self.state_path.is_file():
            return
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds: pickle, zip, EOF, runtime
            raise UserError(
                f"the training state {self.state_path} is damaged; delete it to start anew"
            ) from error
        for name in ("agent", "target", "best", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.memory.restore(state["memory"])
        self.spread.restore(state["spread"])
        self.step, self.episode, self.saved = state["counts"]
        self.rewards, self.history = state["rewards"], state["history"]
