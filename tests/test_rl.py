"""Agents under attack: a game that is solved, gradients by hand, known intervals and verdicts."""

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

pytest.importorskip("stable_baselines3", reason="the extra `rl` is not installed")
import gymnasium

from advprune.core.errors import UserError
from advprune.pruning.sap import StochasticPruning
from advprune.rl import report
from advprune.rl.agent import Agent, episode_seeds, load_agent, make, play, save_agent, train
from advprune.rl.attack import acting, draw_values, evaluate, loss, pgd, with_sap
from advprune.rl.report import interval, p_value, relative, results, rewards, worst
from advprune.rl.settings import CURVES, DqnSettings, GameSettings, RlParams, SapSettings, load

SETTINGS = Path(__file__).parent.parent / "rl" / "params.yaml"
LENGTH = 5


class Corridor(gymnasium.Env):
    """Walk to the right end of a corridor: -1 a step, cut off after 30. Best: the distance."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    seen: ClassVar[list[np.ndarray]] = []  # what has been acted on

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = int(self.np_random.integers(LENGTH)), 0
        return self._observation(), {}

    def step(self, action):
        Corridor.seen.append(self._observation())
        self.place, self.steps = max(self.place + 2 * int(action) - 1, 0), self.steps + 1
        return self._observation(), -1.0, self.place == LENGTH, self.steps == 30, {}

    def _observation(self):
        return np.array([self.place / LENGTH, 1.0], dtype=np.float32)


class Lights(gymnasium.Env):
    """Pictures of 4 x 4 pixels, channels last: press the button of the channel that is lit."""

    observation_space = gymnasium.spaces.Box(0, 1, (4, 4, 3), bool)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action):
        reward, self.steps = float(action == self.lit), self.steps + 1
        return self._observation(), reward, False, self.steps == 10, {}

    def _observation(self):
        self.lit = int(self.np_random.integers(3))
        seen = np.zeros((4, 4, 3), dtype=bool)
        seen[:, :, self.lit] = self.np_random.random((4, 4)) < 0.5
        return seen


gymnasium.register("Corridor-v0", Corridor)
gymnasium.register("Lights-v0", Lights)


def best(seeds):
    """The rewards of the shortest walks from the seeds' first places."""
    return [round(LENGTH * float(Corridor().reset(seed=seed)[0][0])) - LENGTH for seed in seeds]


def corridor(steps=1000, **changes):
    few = {"hidden": [16], "probe_every": steps, "probe_episodes": 5, "budgets": [0.25, 0.5]}
    dqn = DqnSettings(learning_rate=5e-3, learning_starts=100, batch_size=32)
    return GameSettings(**{"env": "Corridor-v0", "steps": steps, "dqn": dqn, **few, **changes})


def agent_of(weight):
    """Q(s) = W s, so that every gradient is known."""
    agent = Agent([weight.shape[1]], [], len(weight))
    agent.body[0].load_state_dict({"weight": weight, "bias": torch.zeros(len(weight))})
    return agent


def test_training_solves_the_corridor_measures_what_it_saw_and_follows_its_seed():
    Corridor.seen.clear()
    agent, _ = train(corridor(), seed=0)
    seen = np.array(Corridor.seen[:1000])  # those that follow are the probe's
    assert agent.spread.tolist() == pytest.approx([seen[:, 0].std(), 1])  # 1 where all are equal
    seeds = episode_seeds(1, "evaluate", 10)
    assert play(corridor(), seeds, acting(agent, "none", 0, 1)).tolist() == best(seeds)
    one, again, other = (train(corridor(300), seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(again[name], value) for name, value in one.items())
    assert not torch.equal(one["body.0.weight"], other["body.0.weight"])


def test_the_last_of_the_best_agents_is_kept(monkeypatch):
    rewards, actions = iter(np.array([1.0, 3.0, 3.0, 2.0])), []
    line = torch.linspace(-5, 5, 64)[:, None] * torch.tensor([1.0, 0.1])
    play = "advprune.rl.agent.play"
    monkeypatch.setattr(play, lambda _, __, act: actions.append(act(line)) or next(rewards))
    agent, probes = train(corridor(400, probe_every=100), seed=0)
    assert [torch.equal(agent(line).argmax(1), a) for a in actions] == [False, False, True, False]
    assert probes[2] == {"step": 300, "reward": 3}


def test_episodes_that_ended_are_not_counted_on():
    seeds = episode_seeds(0, "probe", 20)
    right = play(corridor(), seeds, lambda seen: torch.ones(len(seen)).long())
    assert right.tolist() == best(seeds) and len(set(right)) > 1
    assert set(play(corridor(), seeds, lambda seen: torch.zeros(len(seen)).long())) == {-30}


def test_fgsm_and_noise_move_by_lambda_spreads():
    agent = agent_of(torch.tensor([[1.0, -2.0, 0.0], [0.0, 1.0, 0.0]]))
    agent.spread.copy_(torch.tensor([1.0, 10.0, 3.0]))
    seen = torch.tensor([[3.0, 0.0, 1.0], [-3.0, 0.0, 1.0]])  # actions 0 and 1
    moved = pgd(agent, seen, 0.1, draws=3, steps=1) - seen
    assert torch.allclose(moved, torch.tensor([[-0.1, 1.0, 0.0], [0.1, -1.0, 0.0]]))
    certain = agent_of(torch.tensor([[1e4, -1e4], [0.0, 0.0]]))  # whose softmax is 1 exactly
    assert pgd(certain, torch.tensor([[1.0, -1.0]]), 0.5, 1, steps=1).tolist() == [[0.5, -0.5]]
    agent, moved = agent_of(torch.eye(2)), []
    agent.spread.copy_(torch.tensor([1.0, 10.0]))
    agent.body.register_forward_pre_hook(lambda _, seen: moved.append(seen[0]))
    acting(agent, "noise", 0.1, 1)(torch.zeros(400, 2))
    assert torch.allclose(moved[0].abs(), torch.tensor([0.1, 1.0]))
    assert moved[0].sign().mean(0).abs().max() < 0.2


def test_pgd_reaches_what_one_step_cannot():
    """Q = |s - 1| through two ReLUs: from 1.2 FGSM by 0.8 goes left, where Q is as large again."""
    agent = Agent([1], [2], 2)
    first, last = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    agent.body[0].load_state_dict({"weight": first, "bias": torch.tensor([-1.0, 1.0])})
    agent.body[2].load_state_dict({"weight": last, "bias": torch.tensor([0.0, 0.1])})
    seen = torch.tensor([[1.2]])  # Q = 0.2 and 0.1: below 1.1 and above 0.9 the other action wins
    assert pgd(agent, seen, 0.8, 1, steps=1).item() == pytest.approx(0.4)
    found = pgd(agent, seen, 0.8, 1, steps=9)
    assert abs(found.item() - 1) < 0.25 and agent(found).max() <= 0.2
    far = pgd(agent_of(torch.eye(2)), torch.tensor([[2.0, 1.0]]), 0.1, 1, steps=10)
    assert torch.allclose(far, torch.tensor([[1.9, 1.1]]))  # and never more than the budget


def test_an_agent_learns_from_pictures_and_is_attacked_inside_them(tmp_path):
    game = corridor(3000, env="Lights-v0", probe_every=1500)
    agent, _ = train(game, seed=0)
    assert agent.spread.unique().tolist() == [1] and agent.spread.shape == (3, 4, 4)
    seeds = episode_seeds(1, "evaluate", 10)
    assert play(game, seeds, acting(agent, "none", 0, 1)).mean() > 9
    assert play(game, seeds, acting(agent, "PGD", 0.5, 1)).mean() < 5
    seen = (torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    pruned = with_sap(agent, SapSettings(), "identity")
    found = pgd(pruned, seen, 0.3, draws=2, steps=3)
    assert sum(isinstance(module, StochasticPruning) for module in pruned.modules()) == 2
    assert found.min() >= 0 and found.max() <= 1 and (found - seen).abs().max() <= 0.3 + 1e-6
    save_agent(agent, tmp_path / "agent.safetensors")
    assert torch.equal(load_agent(tmp_path / "agent.safetensors")(seen), agent(seen))


def test_the_loss_has_the_gradient_of_cross_entropy_up_to_its_size():
    values = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    action = torch.tensor([0, 4, 2])
    entropy = F.cross_entropy(values.flatten(0, 1), action.repeat(4), reduction="sum")
    (expected,) = torch.autograd.grad(entropy, values)
    (found,) = torch.autograd.grad(loss(values, action), values)
    factor = found.norm(dim=(0, 2)) / expected.norm(dim=(0, 2))  # one for each observation
    assert torch.allclose(found, expected * factor[None, :, None], atol=1e-6)


def test_gradients_are_averaged_over_draws():
    agent, seen = agent_of(torch.eye(2)), torch.tensor([[2.0, 1.0]])
    signs = torch.tensor([[-1.0], [1.0], [1.0]])  # what a random layer does to each draw
    agent.body.register_forward_pre_hook(lambda _, given: given[0] * signs)
    assert draw_values(agent, seen, 3).tolist() == [[[-2, -1]], [[2, 1]], [[2, 1]]]
    assert acting(agent, "none", 0, 3)(seen).tolist() == [0]
    # dCE/ds by draw, with p = sigmoid(1): p (1, -1), then twice (1 - p) (-1, 1). 0.73 > 2 * 0.27.
    assert torch.allclose(pgd(agent, seen, 0.1, draws=3, steps=1), torch.tensor([[2.1, 0.9]]))
    signs = torch.tensor([[-1.0], [1.0], [1.0], [1.0]])  # turns the mean: 0.73 < 3 * 0.27
    assert torch.allclose(pgd(agent, seen, 0.1, draws=4, steps=1), torch.tensor([[1.9, 1.1]]))


def test_sap_sits_behind_every_relu_and_keeps_weights_and_mean():
    torch.manual_seed(0)
    agent, seen = Agent([3], [16, 8], 4), torch.rand(2, 3)
    pruned = with_sap(agent, SapSettings())
    kinds = [type(module) for module in pruned.body.modules() if not list(module.children())]
    kinds = [kind for kind in kinds if kind is not torch.nn.Linear]
    assert kinds == [torch.nn.ReLU, StochasticPruning] * 2
    assert not torch.equal(pruned(seen), pruned(seen))  # random in evaluation mode
    assert torch.equal(pruned.body[0].weight, agent.body[0].weight)
    shallow = Agent([3], [16], 4)  # Q is linear in what SAP prunes, so its mean is the dense Q
    mean = draw_values(with_sap(shallow, SapSettings()), seen, 20_000).mean(0)
    assert torch.allclose(mean, shallow(seen), atol=0.01)


def test_agents_are_stored_whole_and_damaged_ones_refused(tmp_path):
    agent, path = Agent([3], [4], 2), tmp_path / "agent.safetensors"
    agent.spread.fill_(2.5)
    save_agent(agent, path)
    again = load_agent(path).state_dict()
    assert all(torch.equal(again[name], value) for name, value in agent.state_dict().items())
    path.write_bytes(b"cut")
    with pytest.raises(UserError, match=r"damaged \(.*\); make or copy it anew$"):
        load_agent(path)


def test_relative_reward_by_hand():
    assert relative(np.array([30.0, 30.0]), np.array([10.0, 30.0]))["relative"] == 0.5
    assert {*relative(np.full(2, -50.0), np.full(2, -100.0)).values()} == {0.5}  # less lost is more
    assert np.isnan(relative(np.ones(2), np.zeros(2))["relative"])
    assert p_value(np.ones(5), np.ones(5)) == 1
    low, high = stats.t.interval(
        0.975, 2, loc=2, scale=stats.sem([1, 2, 3])
    )  # of two tests at 95 %
    found = interval("x", np.array([1.0, 2.0, 3.0]), tests=2)
    assert found == pytest.approx({"x": 2.0, "x_low": low, "x_high": high})


def records(gains, sign=1, blind=-50):
    """Episodes: the dense agent's (mean 100), random play's, and SAP's with these gains (under
    FGSM; under BPDA and PGD; under noise the larger one)."""
    noise, means = np.random.default_rng(0).normal(0, 5, 40), {("random", "none", 0.0): blind}
    for budget, (own, other) in gains.items():
        attacks = zip(CURVES, (0, 0, 0, max(own, other), own, other, other), strict=True)
        means |= {(who, by if budget else "none", budget): gain for (who, by), gain in attacks}
    tables = []
    for shift, ((agent, attack, budget), gain) in enumerate(means.items()):
        point = {"agent": agent, "attack": attack, "budget": budget, "seed": range(40)}
        tables.append(pd.DataFrame({**point, "reward": sign * 100 + gain + np.roll(noise, shift)}))
    return pd.concat(tables)


def test_the_sentence_follows_from_the_episodes():
    """A gain under FGSM that BPDA undoes is none in the worst case."""
    raw = records({0.0: (-50, -50), 0.1: (50, 0), 0.2: (50, 50), 0.3: (0, -50)})
    assert "Unattacked, SAP earns -50% (-5" in (text := report.sentence(results(raw)))
    assert "each agent under its worst attack: none; less: 0.1, 0.2, 0.3; more, and" in text
    assert text.endswith(
        "more: 0.1, 0.2; less: none. PGD nowhere costs significantly less than FGSM."
    )
    raw.loc[(raw.agent == "dense") & (raw.attack == "PGD") & (raw.budget == 0.2), "reward"] += 20
    assert report.sentence(results(raw)).endswith("PGD costs less than FGSM (dense at 0.2).")
    raw = records({0.0: (60, 60), 0.1: (50, 50), 0.2: (50, 40)})
    gained = "worst attack: {}; less: none; more, and more than random play: {}."
    assert gained.format("0.1, 0.2", "0.1, 0.2") in report.sentence(results(raw))
    raw = records({0.0: (50, 50), 0.1: (50, 50)}, blind=60)
    assert gained.format("0.1", "none") in report.sentence(results(raw))


def test_the_worst_attack_is_chosen_on_other_episodes_than_it_is_scored_on():
    known = {"agent": "SAP", "seed": range(4)}
    tables = [
        pd.DataFrame({**known, "attack": attack, "budget": budget, "reward": reward})
        for attack, budget, reward in (
            ("none", 0.0, [9, 9, 9, 9]),
            ("FGSM", 0.1, [1, 5, 2, 7]),  # least in the first half, episodes 0 and 2
            ("PGD", 0.1, [3, 4, 4, 2]),  # least in the other half
            ("PGD", 0.2, [0, 0, 0, 9]),
        )
    ]
    raw = pd.concat(tables)
    found, chosen = worst(raw, "SAP", 0.1)
    assert found.tolist() == [3, 5, 4, 7] and chosen == "PGD 0.1 and FGSM 0.1"
    assert worst(raw, "SAP", 0.0)[0].tolist() == [9, 9, 9, 9]
    tables[3] = tables[3].assign(reward=8)  # an attack within less reach is in reach as well
    found, chosen = worst(pd.concat(tables), "SAP", 0.2)
    assert found.tolist() == [3, 5, 4, 7] and "0.2" not in chosen
    # Of attacks that are alike, choosing on the scored episodes would find a harm of 0.5 sigma.
    noise = np.random.default_rng(0).normal(0, 1, (3, 4000))
    blind = [
        pd.DataFrame({"agent": "SAP", "seed": range(4000), "attack": a, "budget": 0.1, "reward": r})
        for a, r in zip(("noise", "FGSM", "PGD"), noise, strict=True)
    ]
    assert abs(worst(pd.concat(blind), "SAP", 0.1)[0].mean()) < 0.05


def test_gains_are_parts_of_what_the_dense_agent_earns_above_random_play():
    raw = records({0.0: (0, 0), 0.1: (30, -30), 0.2: (60, -60)})
    found = report.gains({"corridor": raw}).set_index("attack")
    point = {
        at: rewards(raw, "SAP", "FGSM", at) - rewards(raw, "dense", "FGSM", at) for at in (0.1, 0.2)
    }
    each = (point[0.1] + point[0.2]) / 2
    whole = rewards(raw, "dense", "none", 0).mean() - rewards(raw, "random", "none", 0).mean()
    assert found.gain["FGSM"] == pytest.approx(each.mean() / whole, abs=1e-5)
    assert found.error["FGSM"] == pytest.approx(stats.sem(each) / whole, abs=1e-5)
    assert found.gain["worst"] < 0 < found.gain["FGSM"] and found.episodes.tolist() == [40, 40]


def test_metrics_and_report_of_negative_rewards():
    raw = records({0.0: (0, 0), 0.5: (50, -50), 0.7: (2, 0)}, sign=-1)
    games = {"acrobot": (table := results(raw))}
    found = report.metrics(games)
    assert found["acrobot_SAP_FGSM_relative_0.5"] == pytest.approx(0.5, abs=0.05)
    assert found["acrobot_SAP_worst_relative_0.5"] == pytest.approx(-0.5, abs=0.05)
    assert found["acrobot_random_none_reward_0"] == pytest.approx(-150, abs=3)
    pairs = [[rewards(raw, who, "FGSM", at) for who in ("SAP", "dense")] for at in (0.5, 0.7)]
    sure, unsure = (p_value(*pair) for pair in pairs)
    found = table.p[(table.agent == "SAP") & (table.attack == "FGSM")].tolist()
    assert found[1:] == pytest.approx([2 * sure, unsure]) and sure < unsure < 1  # Holm
    ends = table[(table.agent == "SAP") & (table.attack == "FGSM")].iloc[1:]
    alone = [report.relative(*pair) for pair in pairs]
    assert all(ends.relative_low < [one["relative_low"] for one in alone])  # for both budgets
    assert ((ends.p < 0.05) == (ends.relative_low * ends.relative_high >= 0)).all()
    assert report.sentence(table) in report.markdown(games, load(SETTINGS))
    assert (
        report.wide(table.assign(relative=np.nan)).loc["0.5", "relative, FGSM"].startswith("–, p")
    )
    assert len(report.figure(games).axes[0].containers) == 10


def test_every_agent_plays_the_same_episodes_at_every_budget():
    dense, params = (
        Agent([2], [8], 2),
        RlParams(episodes=3, draws=4, games={"corridor": corridor()}),
    )
    state = torch.get_rng_state()
    table = evaluate(dense, corridor(), params)
    assert torch.equal(torch.get_rng_state(), state)
    groups = table.groupby(["agent", "attack", "budget"])
    attacked = {(*who, budget) for who in CURVES for budget in (0.25, 0.5)}
    assert {*groups.groups} == attacked | {(who, "none", 0) for who in ("random", "dense", "SAP")}
    assert all(list(rows.seed) == list(table.seed[:3]) for _, rows in groups)
    pd.testing.assert_frame_equal(evaluate(dense, corridor(), params), table)


def test_wrong_settings_and_a_missing_library_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"no game 'chess'.*known: cartpole"):
        load(SETTINGS).game("chess")
    (tmp_path / "p.yaml").write_text(SETTINGS.read_text().replace("draws: 20", "draws: 0"))
    with pytest.raises(UserError, match="draws"):
        load(tmp_path / "p.yaml")
    for env, fault in (("No-v0", "make .*No"), ("Pendulum-v1", "discrete"), ("Taxi-v4", "vectors")):
        with pytest.raises(UserError, match=fault):
            make(corridor(env=env))
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "advprune.rl.agent")
    with pytest.raises(UserError, match=r"stable_baselines3 is not installed; pip install"):
        __import__("advprune.rl.agent")
