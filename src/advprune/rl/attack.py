"""Rewards under attack: FGSM and PGD on every observation that an agent acts on, dense and SAP.

Dhillon et al., Stochastic Activation Pruning (ICLR 2018), section on reinforcement learning. There
is no label to move away from, so the attack takes the action that the agent would choose:

    a = argmax mean_d Q_d(s)
    s' = s + lambda * spread * sign( mean_d grad_s CE(softmax(Q_d(s)), a) )

over draws d of the random layers; the agent then acts by `argmax mean_d Q_d(s')`, drawn anew.
PGD takes `STEPS` such steps of lambda / 4, projected onto `s +- lambda * spread`. Pictures stay in
[0, 1].
"""

import copy

import pandas as pd
import torch
import torch.nn.functional as F

from advprune.core.progress import progress
from advprune.models.insert import places, put
from advprune.pruning.sap import StochasticPruning
from advprune.rl.agent import Act, Agent, episode_seeds, play
from advprune.rl.settings import CURVES, GameSettings, RlParams, SapSettings

STEPS = 10  # of PGD


def with_sap(agent: Agent, sap: SapSettings, backward: str = "constant") -> Agent:
    """A copy of the agent with stochastic activation pruning behind every ReLU."""
    pruned = copy.deepcopy(agent)
    for name in places(pruned, "relu"):
        put(pruned, "relu", name, StochasticPruning(sap.fraction, sap.form, backward))
    return pruned


def draw_values(agent: Agent, observations: torch.Tensor, draws: int) -> torch.Tensor:
    """Q values `[draws, N, A]`, the random layers drawn anew for each of them."""
    repeated = observations.expand(draws, *observations.shape).flatten(0, 1)
    return agent(repeated).unflatten(0, (draws, -1))


def loss(values: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """What has the gradient of sum_d CE(softmax(Q_d), a), times a positive number per observation.
    dCE/dQ = (1 - p_a) d(logsumexp of the others - Q_a)/dQ, with the factors 1 - p_a normalized over
    draws, or a confident agent's would be rounded to 0. values: `[draws, N, A]`; action: `[N]`."""
    chosen = F.one_hot(action, values.shape[2]).bool()  # [N, A]
    others = values.masked_fill(chosen, -torch.inf).logsumexp(2)  # [draws, N]
    factors = (others - values.logsumexp(2)).softmax(0).detach()
    return (factors * (others - values.masked_fill(~chosen, 0).sum(2))).sum()


def moved(agent: Agent, observations: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Observations plus a step; pictures are cut to [0, 1]."""
    there = observations + step
    return there.clamp(0, 1) if agent.pictures else there


def pgd(
    agent: Agent, observations: torch.Tensor, budget: float, draws: int, steps: int
) -> torch.Tensor:
    """The observations moved against the agent's own action; one step is FGSM; see above."""
    reach = budget * agent.spread
    length = reach if steps == 1 else reach / 4
    found, action = observations, None
    for _ in range(steps):
        seen = found.clone().requires_grad_()
        values = draw_values(agent, seen, draws)
        if action is None:
            action = values.mean(0).argmax(1)
        (gradient,) = torch.autograd.grad(loss(values, action), seen)
        found = moved(agent, found, length * gradient.sign())
        found = found.clamp(observations - reach, observations + reach)
    return found


def acting(agent: Agent, attack: str, budget: float, draws: int) -> Act:
    """How an agent acts on observations after an attack."""

    def act(seen: torch.Tensor) -> torch.Tensor:
        if attack == "noise":  # moved as far, each number up or down at random: the control
            seen = moved(agent, seen, budget * agent.spread * torch.randn_like(seen).sign())
        elif attack != "none":
            seen = pgd(agent, seen, budget, draws, STEPS if attack == "PGD" else 1)
        return draw_values(agent, seen, draws).mean(0).argmax(1)

    return act


def evaluate(dense: Agent, game: GameSettings, params: RlParams) -> pd.DataFrame:
    """One row per episode (agent, attack, budget, seed, reward), all from the same first states.
    Random play; the dense agent and SAP unattacked, and under each attack at each budget."""
    torch.set_num_threads(1)
    points = [("random", "none", 0.0), ("dense", "none", 0.0), ("SAP", "none", 0.0)]
    points += [(*curve, budget) for curve in CURVES for budget in sorted(set(game.budgets))]
    seeds, tables = episode_seeds(params.seed, "evaluate", params.episodes), []
    with progress("points under attack", len(points)) as advance, torch.random.fork_rng():
        for agent, attack, budget in points:
            act: Act = lambda seen: torch.randint(dense.sizes["actions"], (len(seen),))  # noqa: E731
            if agent == "dense":
                act = acting(dense, attack, budget, draws=1)
            elif agent == "SAP":
                rule = "identity" if attack in ("BPDA", "PGD") else "constant"
                act = acting(with_sap(dense, params.sap, rule), attack, budget, params.draws)
            torch.manual_seed(params.seed)
            head = {"agent": agent, "attack": attack, "budget": budget, "seed": seeds}
            tables.append(pd.DataFrame({**head, "reward": play(game, seeds, act)}))
            advance(1)
    return pd.concat(tables, ignore_index=True)
