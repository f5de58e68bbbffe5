"""Agents under attack: targets by hand, a game that is solved, exact resumption, known intervals.

All but one test run without gymnasium, on a small game of our own with the same interface.
"""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.pruning.sap import StochasticPruning
from advprune.rl.agent import Agent, AgentSpec, build, load_agent, save_agent, with_layers
from advprune.rl.dqn import Trainer, double_targets, epsilon
from advprune.rl.environment import episode_seed, make, play, sizes
from advprune.rl.evaluate import act, cross_entropy_slope, draw_values, evaluate, fgsm
from advprune.rl.memory import Memory, Spread
from advprune.rl.report import figure, markdown, png, sentence
from advprune.rl.rewards import (
    gain_interval,
    mean_interval,
    metrics,
    relative,
    relative_interval,
    verdict,
)
from advprune.rl.settings import DqnSettings, EvaluateSettings, RlParams, SapSettings, load

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
LENGTH = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Corridor:
    """Walk to the right end of a corridor: -1 a step, cut off after 30. Best: the distance."""

    observation_space = SimpleNamespace(shape=(2,))
    action_space = SimpleNamespace(n=2)

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.place, self.steps = np.random.default_rng(seed).integers(LENGTH), 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.place, self.steps = max(self.place + 2 * action - 1, 0), self.steps + 1
        return self._seen(), -1.0, self.place == LENGTH, self.steps == 30, {}

    def close(self) -> None:
        pass

    def _seen(self) -> np.ndarray:
        return np.array([self.place / LENGTH, 1.0])


def distance(seed: int) -> int:
    """Steps of the best walk from a seed's first place."""
    return LENGTH - int(np.random.default_rng(seed).integers(LENGTH))


def dqn(steps: int = 1200, **changes: Any) -> DqnSettings:
    settings = {"lr": 5e-3, "warmup": 100, "batch": 32, "explore_steps": 600, "target": 50}
    more = {"memory": 1000, "probe_every": 300, "probe_episodes": 5, "save_every": 200}
    return DqnSettings(steps=steps, **{**settings, **more, **changes})


def trainer(path: Path, settings: DqnSettings, game: Callable[[], Any] = Corridor) -> Trainer:
    return Trainer(game, [16], settings, seed=0, device=CPU, state_path=path)


def test_double_targets_by_hand() -> None:
    online = torch.tensor([[1.0, 2.0], [5.0, 0.0], [0.0, 1.0]])  # picks actions 1, 0, 1
    target = torch.tensor([[10.0, 20.0], [30.0, 40.0], [7.0, 8.0]])
    rewards, ended = torch.tensor([1.0, -1.0, 3.0]), torch.tensor([False, False, True])
    found = double_targets(online, target, rewards, ended, gamma=0.5)
    assert found.tolist() == [1 + 0.5 * 20, -1 + 0.5 * 30, 3.0]


def test_epsilon_falls_linearly_and_stays() -> None:
    settings = dqn(explore_start=1.0, explore_end=0.2, explore_steps=100)
    assert [epsilon(step, settings) for step in (0, 50, 100, 500)] == pytest.approx(
        [1.0, 0.6, 0.2, 0.2]
    )


def test_memory_overwrites_the_oldest_and_samples_whole_transitions() -> None:
    memory = Memory(4, torch.zeros(1))
    for i in range(6):
        memory.add(torch.tensor([float(i)]), i, float(i), torch.tensor([i + 1.0]), i == 5)
    batch = memory.sample(200, torch.Generator().manual_seed(0))
    assert set(batch.actions.tolist()) == {2, 3, 4, 5}
    assert torch.equal(batch.states.squeeze(1), batch.rewards)
    assert torch.equal(batch.following.squeeze(1), batch.rewards + 1)
    assert torch.equal(batch.ended, batch.actions == 5)


def test_running_spread_is_that_of_all_observations() -> None:
    seen = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 5 + 100
    seen[:, 2] = 7.0
    spread = Spread((3,))
    for row in seen:
        spread.add(row)
    expected = seen.double().std(0, correction=0)
    assert torch.allclose(spread.std()[:2], expected[:2])
    assert spread.std()[2] == 1.0  # never changed


def test_training_solves_the_corridor(tmp_path: Path) -> None:
    agent, history = trainer(tmp_path / "state.pt", dqn()).run()
    seeds = [episode_seed(1, "evaluate", i) for i in range(10)]
    played = play(Corridor, seeds, lambda s: agent(s).argmax(1))
    assert [-episode.reward for episode in played] == [distance(seed) for seed in seeds]
    assert [episode.steps for episode in played] == [distance(seed) for seed in seeds]
    assert history[-1]["step"] == 1200
    assert 0.05 < agent.spread[0] < 0.6 and agent.spread[1] == 1.0


def test_resumed_training_equals_unbroken(tmp_path: Path) -> None:
    class Killed(Corridor):
        left = 700

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            Killed.left -= 1
            if Killed.left == 0:
                raise KeyboardInterrupt
            return super().step(action)

    settings, path = dqn(800), tmp_path / "broken.pt"
    whole = trainer(tmp_path / "whole.pt", settings)
    expected, rows = whole.run()
    with pytest.raises(KeyboardInterrupt):
        trainer(path, settings, Killed).run()
    assert path.is_file()
    resumed = trainer(path, settings)
    found, again = resumed.run()
    assert again == rows
    for mine, other in ((found, expected), (resumed.agent, whole.agent)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"state\.pt is damaged"):
        trainer(path, dqn()).run()


def agent_of(weight: torch.Tensor, images: bool = False) -> Agent:
    """Q(s) = W s, so that every gradient is known."""
    shape = (1, 6, 6) if images else (weight.shape[1],)
    agent = Agent(AgentSpec(shape=shape, actions=len(weight), hidden=(2,)))
    agent.body = nn.Sequential(nn.Flatten())
    agent.head = nn.Linear(weight.shape[1], len(weight), bias=False)
    agent.head.weight.data = weight
    return agent.requires_grad_(False)


def test_fgsm_moves_by_lambda_spreads_against_the_chosen_action() -> None:
    agent = agent_of(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]]))
    agent.spread.copy_(torch.tensor([1.0, 10.0, 3.0]))
    seen = torch.tensor([[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0]])  # actions 0 and 1
    moved = fgsm(agent, seen, 0.1, draws=3) - seen
    assert torch.allclose(moved, torch.tensor([[-0.1, 1.0, 0.0], [0.1, -1.0, 0.0]]))
    assert fgsm(agent, seen, 0.0, draws=1) is seen


def test_fgsm_is_not_lost_where_the_agent_is_certain() -> None:
    agent = agent_of(torch.tensor([[1e4, -1e4], [0.0, 0.0]]))
    seen = torch.tensor([[1.0, -1.0]])
    assert torch.allclose(fgsm(agent, seen, 0.5, draws=1), torch.tensor([[0.5, -0.5]]))


def test_slope_is_that_of_cross_entropy_up_to_its_size() -> None:
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    action = torch.tensor([0, 4, 2])
    loss = nn.functional.cross_entropy(values.flatten(0, 1), action.repeat(4), reduction="sum")
    (expected,) = torch.autograd.grad(loss, values)
    found = cross_entropy_slope(values.detach(), action)
    factor = found.norm(dim=(0, 2)) / expected.norm(dim=(0, 2))  # one for each observation
    assert torch.allclose(found, expected * factor[None, :, None], atol=1e-6)


def test_attacked_images_stay_images_within_the_budget() -> None:
    agent = agent_of(torch.randn(3, 36, generator=torch.Generator().manual_seed(0)), images=True)
    seen = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    moved = fgsm(agent, seen, 0.2, draws=1)
    assert moved.min() >= 0 and moved.max() <= 1
    assert (moved - seen).abs().max() <= 0.2 + 1e-6
    inside = (seen > 0.2) & (seen < 0.8)
    assert torch.allclose((moved - seen)[inside].abs(), torch.tensor(0.2))


def test_gradients_are_averaged_over_draws() -> None:
    class Flip(nn.Module):
        """Turns the sign of every third sample of a batch."""

        every = 3

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            signs = torch.ones(len(h), 1)
            signs[:: self.every] = -1
            return h * signs

    agent = agent_of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    flip = Flip()
    agent.body = nn.Sequential(nn.Flatten(), flip)
    seen = torch.tensor([[2.0, 1.0]])
    assert draw_values(agent, seen, 3).tolist() == [[[-2, -1]], [[2, 1]], [[2, 1]]]
    assert act(agent, seen, 3).tolist() == [0]
    # dCE/ds by draw, with p = sigmoid(1): p (1, -1), then twice (1 - p) (-1, 1). 0.73 > 2 * 0.27.
    assert torch.allclose(fgsm(agent, seen, 0.1, draws=3), torch.tensor([[2.1, 0.9]]))
    # One draw more of the same kind turns the mean: 0.73 < 3 * 0.27.
    flip.every = 4
    assert torch.allclose(fgsm(agent, seen, 0.1, draws=4), torch.tensor([[1.9, 1.1]]))


@pytest.mark.parametrize("shape", [(3,), (2, 6, 7), (4, 84, 84)])
def test_sap_sits_behind_every_relu_and_keeps_the_weights(shape: tuple[int, ...]) -> None:
    agent = build(AgentSpec(shape=shape, actions=4, hidden=(8, 8)), seed=0)
    pruned = with_layers(agent, partial(StochasticPruning, 1.0))
    kinds = [type(module) for module in pruned.modules() if not list(module.children())]
    relus = [i for i, kind in enumerate(kinds) if kind is nn.ReLU]
    assert len(relus) == {1: 2, 3: 5 if shape[-1] == 84 else 4}[len(shape)]
    assert all(kinds[i + 1] is StochasticPruning for i in relus)
    assert kinds.count(StochasticPruning) == len(relus)
    torch.manual_seed(0)
    seen = torch.rand(16, *shape)  # of a few, small networks may draw the same twice
    assert pruned(seen).shape == (16, 4)
    assert not torch.equal(pruned(seen), pruned(seen))  # random in evaluation mode
    assert pruned.state_dict().keys() == agent.state_dict().keys()


def test_agents_are_stored_whole_and_strangers_refused(tmp_path: Path) -> None:
    agent = build(AgentSpec(shape=(3,), actions=2, hidden=(4,)), seed=0)
    agent.spread.fill_(2.5)
    save_agent(agent, tmp_path / "agent.safetensors")
    seen = torch.randn(5, 3)
    assert torch.equal(load_agent(tmp_path / "agent.safetensors")(seen), agent(seen))
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_agent(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        load_agent(tmp_path / "cut.safetensors")


def test_relative_reward_by_hand() -> None:
    assert relative(np.array([30.0, 30.0]), np.array([10.0, 30.0])) == 0.5
    assert relative(np.array([-50.0]), np.array([-100.0])) == 0.5  # less lost is more earned
    assert np.isnan(relative(np.array([1.0]), np.array([0.0])))
    assert relative_interval(np.array([1.0, 2.0]), np.zeros(2)).value is None


def test_intervals_cover_as_often_as_they_say() -> None:
    rng, n, trials = np.random.default_rng(0), 40, 300
    hits = np.zeros(3)
    for _ in range(trials):
        dense, pruned = rng.exponential(10, n) + 10, rng.normal(25, 5, n)
        found = (
            (mean_interval(pruned), 25),
            (relative_interval(pruned, dense), 0.25),
            (gain_interval(pruned, dense, comparisons=1), 5),
        )
        hits += [e.low <= truth <= e.high for e, truth in found]
    assert all(0.90 < rate < 0.985 for rate in hits / trials), hits / trials


def records(
    gains: dict[float, tuple[float, float]], sign: float = 1.0, blind: float = -50.0
) -> pd.DataFrame:
    """Episodes: the dense agent's (mean 100), SAP's with these gains (own, BPDA), random play's."""
    noise, rows = np.random.default_rng(0).normal(0, 5, 40), []
    for budget, (own, bpda) in gains.items():
        for name, rule, gain in (
            ("dense", "exact", 0.0),
            ("SAP", "constant", own),
            ("SAP", "identity", bpda),
        ):
            spread = np.roll(noise, len(rows))
            rows += [
                {"agent": name, "rule": rule, "budget": budget, "seed": i, "steps": 1}
                | {"reward": sign * 100 + gain + spread[i]}
                for i in range(40)
            ]
    rows += [
        {"agent": "random", "rule": "none", "budget": 0.0, "seed": i, "steps": 1}
        | {"reward": sign * 100 + blind + noise[i]}
        for i in range(40)
    ]
    return pd.DataFrame(rows)


def test_the_sentence_follows_from_the_episodes() -> None:
    table = records({0.0: (-50, -50), 0.1: (50, 0), 0.2: (50, 50), 0.3: (0, -50)})
    own, bpda = verdict(table, ("SAP", "constant")), verdict(table, ("SAP", "identity"))
    assert (own.more, own.less) == ([0.1, 0.2], [])
    assert (bpda.more, bpda.less) == ([0.2], [0.3])
    assert "does not bear it out: the gain at lambda 0.1." in sentence(table)
    assert "dense agent's is -50% (-5" in sentence(table)
    assert "random play" not in sentence(table)
    lucky = records({0.1: (50, 50)}, blind=60.0)
    assert "No better than random play under BPDA, so no use: the gain at lambda 0.1" in sentence(
        lucky
    )
    none = sentence(records({0.0: (0, 0), 0.1: (0, 0)}))
    assert none.count("no gain of SAP over the dense agent is shown") == 2


def test_metrics_and_report_of_negative_rewards(tmp_path: Path) -> None:
    table = records({0.0: (0, 0), 0.5: (50, -50)}, sign=-1.0)
    found = metrics(table)
    assert found["SAP_constant_relative_0.5"] == pytest.approx(0.5, abs=0.05)
    assert found["SAP_identity_relative_0.5"] == pytest.approx(-0.5, abs=0.05)
    params = load(ROOT / "rl" / "params.yaml")
    text = markdown({"acrobot": table}, params)
    assert sentence(table) in text and "Acrobot-v1" in text
    assert png(figure({"acrobot": table})).startswith(b"\x89PNG")


def test_every_agent_plays_the_same_episodes_at_every_budget() -> None:
    dense = build(AgentSpec(shape=(2,), actions=2, hidden=(8,)), seed=0).requires_grad_(False)
    settings, state = EvaluateSettings(episodes=3, draws=4), torch.get_rng_state()
    play_all = partial(evaluate, dense, Corridor, [0.0, 0.5], SapSettings(), settings, 0)
    table = play_all()
    assert torch.equal(torch.get_rng_state(), state)
    groups = table.groupby(["agent", "rule", "budget"])
    assert set(groups.groups) == {
        (agent, rule, budget)
        for agent, rule in (("dense", "exact"), ("SAP", "constant"), ("SAP", "identity"))
        for budget in (0.0, 0.5)
    } | {("random", "none", 0.0)}
    assert all(list(rows.seed) == list(table.seed[:3]) for _, rows in groups)
    pd.testing.assert_frame_equal(play_all(), table)


def test_unknown_games_and_wrong_settings_are_named(tmp_path: Path) -> None:
    params = load(ROOT / "rl" / "params.yaml")
    with pytest.raises(UserError, match=r"no game 'chess'.*known: cartpole"):
        params.game("chess")
    text = (ROOT / "rl" / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "p.yaml").write_text(text.replace("draws: 20", "draws: 0"), encoding="utf-8")
    with pytest.raises(UserError, match=r"evaluate\.draws"):
        load(tmp_path / "p.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "none.yaml")
    assert isinstance(params, RlParams)


@pytest.mark.parametrize(
    ("shape", "actions", "message"),
    [((84, 84, 3), 2, "channels first"), ((4,), None, "discrete"), ((2, 2), 2, "not \\[2, 2\\]")],
)
def test_environments_that_do_not_fit_are_refused(
    shape: tuple[int, ...], actions: int | None, message: str
) -> None:
    environment: Any = SimpleNamespace(
        observation_space=SimpleNamespace(shape=shape),
        action_space=SimpleNamespace(**({"n": actions} if actions else {})),
    )
    with pytest.raises(UserError, match=message):
        sizes(environment)


def test_a_missing_gymnasium_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"pip install gymnasium"):
        make("CartPole-v1", {})


def test_gymnasium_environments_fit() -> None:
    pytest.importorskip("gymnasium")
    assert sizes(make("CartPole-v1", {})) == ((4,), 2)
    with pytest.raises(UserError, match="Nothing-v0"):
        make("Nothing-v0", {})
    seeds = [episode_seed(0, "evaluate", i) for i in range(3)]
    played = play(partial(make, "CartPole-v1", {}), seeds, lambda s: torch.zeros(len(s)).long())
    assert all(8 <= episode.reward == episode.steps <= 12 for episode in played)  # it falls over
