"""Agents under attack: a game that is solved, gradients by hand, known intervals and verdicts."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.pruning.sap import StochasticPruning
from advprune.rl.agent import Agent, episode_seeds, load_agent, make, play, save_agent, train
from advprune.rl.attack import acting, draw_values, evaluate, fgsm, loss, with_sap
from advprune.rl.report import figure, interval, markdown, metrics, p_value, relative, results
from advprune.rl.report import sentence as sentence_of
from advprune.rl.settings import DqnSettings, GameSettings, RlParams, SapSettings, load

ROOT = Path(__file__).parent.parent
LENGTH = 5
POINTS = (("dense", "noise"), ("dense", "FGSM"), ("SAP", "noise"), ("SAP", "FGSM"), ("SAP", "BPDA"))


class Corridor(gymnasium.Env):
    """Walk to the right end of a corridor: -1 a step, cut off after 30. Best: the distance."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    seen: ClassVar[list[np.ndarray]] = []  # what agents acted on, if something is to be noted

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(LENGTH)), 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Corridor.seen.append(self._observation())
        self.place, self.steps = max(self.place + 2 * int(action) - 1, 0), self.steps + 1
        return self._observation(), -1.0, self.place == LENGTH, self.steps == 30, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.place / LENGTH, 1.0], dtype=np.float32)


def distance(seed: int) -> int:
    """Steps of the best walk from a seed's first place."""
    return LENGTH - round(LENGTH * float(Corridor().reset(seed=seed)[0][0]))


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("Corridor-v0", Corridor)
    yield
    del gymnasium.registry["Corridor-v0"]


def corridor(steps: int = 1000, **changes: Any) -> GameSettings:
    dqn = DqnSettings(
        learning_rate=5e-3, learning_starts=100, batch_size=32, exploration_fraction=1
    )
    few = {"hidden": [16], "probe_every": steps, "probe_episodes": 5, "budgets": [0.25, 0.5]}
    return GameSettings(env="Corridor-v0", steps=steps, dqn=dqn, **{**few, **changes})


def agent_of(weight: torch.Tensor) -> Agent:
    """Q(s) = W s, so that every gradient is known."""
    agent = Agent([weight.shape[1], len(weight)])
    agent.body[0].weight.copy_(weight)
    agent.body[0].bias.zero_()
    return agent


def test_training_solves_the_corridor_and_measures_what_it_saw() -> None:
    Corridor.seen.clear()
    agent, probes = train(corridor(), seed=0)
    seen = np.array(Corridor.seen[:1000])  # those that follow are the probe's
    assert agent.spread.tolist() == pytest.approx([seen[:, 0].std(), 1])  # 1 where all are equal
    assert [row["step"] for row in probes] == [1000]
    seeds = episode_seeds(1, "evaluate", 10)
    assert [-r for r in play(corridor(), seeds, acting(agent, "none", 0, 1))] == [
        distance(seed) for seed in seeds
    ]


def test_equal_seeds_give_equal_agents_and_others_do_not() -> None:
    one, again, other = (train(corridor(300), seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(again[name], value) for name, value in one.items())
    assert not torch.equal(one["body.0.weight"], other["body.0.weight"])


def test_the_last_of_the_best_agents_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, line, seen = iter([1.0, 3.0, 3.0, 2.0]), torch.linspace(-5, 5, 64)[:, None], []

    def scripted(game: GameSettings, seeds: list[int], act: Any) -> np.ndarray:
        seen.append(act(line * torch.tensor([1.0, 0.1])))
        return np.array([next(rewards)])

    monkeypatch.setattr("advprune.rl.agent.play", scripted)
    agent, _ = train(corridor(400, probe_every=100), seed=0)
    found = [torch.equal(agent(line * torch.tensor([1.0, 0.1])).argmax(1), one) for one in seen]
    assert found == [False, False, True, False]


def test_episodes_that_ended_are_not_counted_on() -> None:
    """A vector of environments starts the ended ones over while others still run."""
    seeds = episode_seeds(0, "probe", 20)
    found = play(corridor(), seeds, lambda seen: torch.ones(len(seen), dtype=torch.long))
    assert [-r for r in found] == [distance(seed) for seed in seeds]
    assert len(set(found)) > 1
    assert set(play(corridor(), seeds, lambda seen: torch.zeros(len(seen)).long())) == {-30}


def test_fgsm_moves_by_lambda_spreads_against_the_chosen_action() -> None:
    agent = agent_of(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]]))
    agent.spread.copy_(torch.tensor([1.0, 10.0, 3.0]))
    seen = torch.tensor([[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0]])  # actions 0 and 1
    moved = fgsm(agent, seen, 0.1, draws=3) - seen
    assert torch.allclose(moved, torch.tensor([[-0.1, 1.0, 0.0], [0.1, -1.0, 0.0]]))


def test_fgsm_is_not_lost_where_the_agent_is_certain() -> None:
    agent = agent_of(torch.tensor([[1e4, -1e4], [0.0, 0.0]]))
    seen = torch.tensor([[1.0, -1.0]])
    assert torch.allclose(fgsm(agent, seen, 0.5, draws=1), torch.tensor([[0.5, -0.5]]))


def test_the_loss_has_the_gradient_of_cross_entropy_up_to_its_size() -> None:
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    action = torch.tensor([0, 4, 2])
    entropy = nn.functional.cross_entropy(values.flatten(0, 1), action.repeat(4), reduction="sum")
    (expected,) = torch.autograd.grad(entropy, values)
    (found,) = torch.autograd.grad(loss(values, action), values)
    factor = found.norm(dim=(0, 2)) / expected.norm(dim=(0, 2))  # one for each observation
    assert torch.allclose(found, expected * factor[None, :, None], atol=1e-6)


def test_noise_moves_as_far_as_fgsm_in_random_directions() -> None:
    agent, moved = agent_of(torch.eye(2)), []
    agent.spread.copy_(torch.tensor([1.0, 10.0]))
    agent.forward = lambda seen: moved.append(seen) or seen  # type: ignore[method-assign,func-returns-value]
    acting(agent, "noise", 0.1, 1)(torch.zeros(400, 2))
    assert torch.allclose(moved[0].abs(), torch.tensor([0.1, 1.0]))
    assert moved[0].sign().mean(0).abs().max() < 0.2


def test_gradients_are_averaged_over_draws() -> None:
    class Flip(nn.Module):
        """Turns the sign of every n-th sample of a batch."""

        every = 3

        def forward(self, h: torch.Tensor) -> torch.Tensor:
            signs = torch.ones(len(h), 1)
            signs[:: self.every] = -1
            return h * signs

    agent = agent_of(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    flip = Flip()
    agent.body.insert(0, flip)
    seen = torch.tensor([[2.0, 1.0]])
    assert draw_values(agent, seen, 3).tolist() == [[[-2, -1]], [[2, 1]], [[2, 1]]]
    assert acting(agent, "none", 0, 3)(seen).tolist() == [0]
    # dCE/ds by draw, with p = sigmoid(1): p (1, -1), then twice (1 - p) (-1, 1). 0.73 > 2 * 0.27.
    assert torch.allclose(fgsm(agent, seen, 0.1, draws=3), torch.tensor([[2.1, 0.9]]))
    # One draw more of the same kind turns the mean: 0.73 < 3 * 0.27.
    flip.every = 4
    assert torch.allclose(fgsm(agent, seen, 0.1, draws=4), torch.tensor([[1.9, 1.1]]))


def test_sap_sits_behind_every_relu_and_keeps_weights_and_mean() -> None:
    torch.manual_seed(0)
    agent, seen = Agent([3, 16, 8, 4]), torch.rand(2, 3)
    pruned = with_sap(agent, SapSettings())
    kinds = [type(module) for module in pruned.modules() if not list(module.children())]
    relus = [i for i, kind in enumerate(kinds) if kind is nn.ReLU]
    assert len(relus) == kinds.count(StochasticPruning) == 2
    assert all(kinds[i + 1] is StochasticPruning for i in relus)
    assert not torch.equal(pruned(seen), pruned(seen))  # random in evaluation mode
    assert torch.equal(pruned.body[0].weight, agent.body[0].weight)
    shallow = Agent([3, 16, 4])  # Q is linear in what SAP prunes, so its mean is the dense Q
    mean = draw_values(with_sap(shallow, SapSettings()), seen, 20_000).mean(0)
    assert torch.allclose(mean, shallow(seen), atol=0.01)


def test_agents_are_stored_whole_and_strangers_refused(tmp_path: Path) -> None:
    agent, seen = Agent([3, 4, 2]), torch.randn(5, 3)
    agent.spread.fill_(2.5)
    save_agent(agent, tmp_path / "agent.safetensors")
    again = load_agent(tmp_path / "agent.safetensors")
    assert torch.equal(again(seen), agent(seen)) and torch.equal(again.spread, agent.spread)
    with pytest.raises(UserError, match="there is no checkpoint"):
        load_agent(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="damaged"):
        load_agent(tmp_path / "cut.safetensors")


def test_relative_reward_by_hand() -> None:
    assert relative(np.array([30.0, 30.0]), np.array([10.0, 30.0]))["relative"] == 0.5
    less_lost = relative(np.array([-50.0, -50.0]), np.array([-100.0, -100.0]))
    assert list(less_lost.values()) == [0.5, 0.5, 0.5]  # is more earned
    assert np.isnan(relative(np.array([1.0, 2.0]), np.zeros(2))["relative"])
    assert p_value(np.ones(5), np.ones(5)) == 1


def test_intervals_cover_and_tests_alarm_as_often_as_they_say() -> None:
    rng, trials, hits = np.random.default_rng(0), 400, np.zeros(2)
    for _ in range(trials):
        dense, pruned = rng.exponential(10, 40) + 15, rng.normal(25, 5, 40)
        _, low, high = interval("", pruned).values()
        hits += low <= 25 <= high, p_value(pruned, dense) >= 0.05
    assert all(0.92 < rate < 0.98 for rate in hits / trials), hits / trials


def records(gains: dict[float, tuple[float, float]], sign: float = 1, blind: float = -50) -> Any:
    """Episodes: the dense agent's (mean 100), SAP's with these gains (own, BPDA), random play's."""
    noise, means = np.random.default_rng(0).normal(0, 5, 40), {("random", "none", 0.0): blind}
    for budget, (own, bpda) in gains.items():
        attacks = zip(POINTS, (0, 0, 0, own, bpda), strict=True)
        means |= {(who, by if budget else "none", budget): gain for (who, by), gain in attacks}
    tables = [
        pd.DataFrame({"agent": who, "attack": by, "budget": at, "seed": range(40)}).assign(
            reward=sign * 100 + gain + np.roll(noise, i)
        )
        for i, ((who, by, at), gain) in enumerate(means.items())
    ]
    return pd.concat(tables)


def test_the_sentence_follows_from_the_episodes() -> None:
    table = results(records({0.0: (-50, -50), 0.1: (50, 0), 0.2: (50, 50), 0.3: (0, -50)}))
    text = sentence_of(table)
    assert "dense agent: -50% (-5" in text
    assert "more at lambda 0.1, 0.2 under FGSM, 0.2 under BPDA; less at 0.3 under BPDA." in text
    assert text.endswith("than random play, at 0.2.")
    lucky = sentence_of(results(records({0.0: (0, 0), 0.1: (50, 50)}, blind=60)))
    assert "0.1 under FGSM, 0.1 under BPDA" in lucky and lucky.endswith("at none.")
    nothing = sentence_of(results(records({0.0: (0, 0), 0.1: (0, 0)})))
    assert "none under FGSM, none under BPDA; less at none" in nothing


def test_p_values_are_holms_over_the_attacked_budgets() -> None:
    raw = records({0.0: (0, 0), 0.1: (3, 0), 0.2: (50, 0)})
    table = results(raw)
    own = table[(table.agent == "SAP") & (table.attack == "FGSM")].set_index("budget").p
    pair = (
        raw[(raw.agent == who) & (raw.attack == "FGSM") & (raw.budget == 0.2)].reward.to_numpy()
        for who in ("SAP", "dense")
    )
    assert own[0.2] == pytest.approx(2 * p_value(*pair))


def test_metrics_and_report_of_negative_rewards() -> None:
    games = {"acrobot": results(records({0.0: (0, 0), 0.5: (50, -50)}, sign=-1))}
    found = metrics(games)
    assert found["acrobot_SAP_FGSM_relative_0.5"] == pytest.approx(0.5, abs=0.05)
    assert found["acrobot_SAP_BPDA_relative_0.5"] == pytest.approx(-0.5, abs=0.05)
    assert found["acrobot_random_none_reward_0"] == pytest.approx(-150, abs=3)
    text = markdown(games, load(ROOT / "rl" / "params.yaml"))
    assert sentence_of(games["acrobot"]) in text and "Acrobot-v1" in text
    assert len(figure(games).axes) == 1


def test_every_agent_plays_the_same_episodes_at_every_budget() -> None:
    dense, params = Agent([2, 8, 2]), RlParams(episodes=3, draws=4, games={"corridor": corridor()})
    state = torch.get_rng_state()
    table = evaluate(dense, corridor(), params)
    assert torch.equal(torch.get_rng_state(), state)
    groups = table.groupby(["agent", "attack", "budget"])
    assert set(groups.groups) == {(*who, budget) for who in POINTS for budget in (0.25, 0.5)} | {
        (who, "none", 0.0) for who in ("random", "dense", "SAP")
    }
    assert all(list(rows.seed) == list(table.seed[:3]) for _, rows in groups)
    pd.testing.assert_frame_equal(evaluate(dense, corridor(), params), table)


def test_unknown_games_and_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no game 'chess'.*known: cartpole"):
        load(ROOT / "rl" / "params.yaml").game("chess")
    text = (ROOT / "rl" / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "p.yaml").write_text(text.replace("draws: 20", "draws: 0"), encoding="utf-8")
    with pytest.raises(UserError, match="draws"):
        load(tmp_path / "p.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("env", "message"),
    [("Nothing-v0", "cannot make .*Nothing"), ("Pendulum-v1", "discrete"), ("Taxi-v4", "vectors")],
)
def test_environments_that_do_not_fit_are_refused(env: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(GameSettings(env=env, steps=1, budgets=[1]))


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "advprune.rl.agent")
    with pytest.raises(UserError, match=r"stable_baselines3 is not installed; pip install"):
        __import__("advprune.rl.agent")
