"""Rewards under attack: FGSM on every observation that the agent acts on, dense and with SAP.

Dhillon et al., Stochastic Activation Pruning (ICLR 2018), section on reinforcement learning. There
is no label to move away from, so the attack takes the action that the agent would choose:

    a = argmax mean_d Q_d(s)
    s' = s + lambda * spread * sign( mean_d grad_s CE(softmax(Q_d(s)), a) )

over draws d of the random layers; the agent then acts by `argmax mean_d Q_d(s')`, drawn anew.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import product

import pandas as pd
import torch
import torch.nn.functional as F

from advprune.core.progress import progress
from advprune.models.stochastic import set_backward
from advprune.pruning.sap import StochasticPruning
from advprune.rl.agent import Agent, with_layers
from advprune.rl.environment import Act, Episode, Make, episode_seed, play
from advprune.rl.settings import EvaluateSettings, SapSettings

OWN, BPDA = "constant", "identity"  # SAP's published gradient; its layers passed over (BPDA)
EXACT = "exact"  # the dense agent's gradient
RANDOM = ("random", "none")  # no agent at all
Part = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]


def draw_values(agent: Agent, observations: torch.Tensor, draws: int) -> torch.Tensor:
    """Q values `[draws, N, A]`, the random layers drawn anew for each of them."""
    repeated = observations.repeat(draws, *[1] * (observations.ndim - 1))
    values: torch.Tensor = agent(repeated)
    return values.view(draws, len(observations), -1)


def act(agent: Agent, observations: torch.Tensor, draws: int) -> torch.Tensor:
    """The action of the largest mean value, `[N]`."""
    return draw_values(agent, observations, draws).mean(0).argmax(1)


def cross_entropy_slope(values: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """dCE/dQ = softmax(Q) - onehot(a), each observation's divided by its largest probability != a.

    The division is by one positive number for all draws and actions of an observation and leaves
    the sign of the gradient as it is; without it a confident agent's gradient is lost to rounding.
    values: `[draws, N, A]`; action: `[N]`.
    """
    chosen = F.one_hot(action, values.shape[2]).bool()  # [N, A]
    others = values.double().log_softmax(2).masked_fill(chosen, -torch.inf)
    others = (others - others.amax((0, 2), keepdim=True)).exp()
    return torch.where(chosen, -others.sum(2, keepdim=True), others).to(values.dtype)


@torch.enable_grad()
def fgsm(agent: Agent, observations: torch.Tensor, budget: float, draws: int) -> torch.Tensor:
    """The observations moved by one FGSM step against the agent's own action; see above.

    budget: lambda, in standard deviations of each number; for images as a fraction of the pixel
    range, and the result stays in [0, 1].
    """
    if budget == 0:
        return observations
    seen = observations.detach().clone().requires_grad_()
    values = draw_values(agent, seen, draws)
    slope = cross_entropy_slope(values.detach(), values.detach().mean(0).argmax(1))
    (gradient,) = torch.autograd.grad(values, seen, slope)
    moved = observations + budget * agent.spread * gradient.sign()
    return moved.clamp(0, 1) if agent.spec.sees_images else moved


def contenders(dense: Agent, sap: SapSettings) -> dict[tuple[str, str], Agent]:
    """By (agent, rule): the dense agent, and SAP under its own gradient and under BPDA."""
    found = {("dense", EXACT): dense}
    for rule in (OWN, BPDA):
        pruned = with_layers(dense, partial(StochasticPruning, sap.fraction, sap.form))
        set_backward(pruned, rule)
        found["SAP", rule] = pruned
    return found


def attacked_action(
    agent: Agent, budget: float, draws: int, observations: torch.Tensor
) -> torch.Tensor:
    """What the agent does after its observations were attacked, `[N]`."""
    moved = fgsm(agent, observations.to(agent.spread.device), budget, draws)
    with torch.no_grad():
        return act(agent, moved, draws)


def random_action(actions: int, observations: torch.Tensor) -> torch.Tensor:
    """Any action, `[N]`."""
    return torch.randint(actions, (len(observations),))


def seeded(choose: Act, make: Make, episodes: int, seed: int) -> list[Episode]:
    """Episodes from the same first states for the same seed, whoever acts, draws seeded too."""
    seeds = [episode_seed(seed, "evaluate", index) for index in range(episodes)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return play(make, seeds, choose)


def point(who: tuple[str, str], budget: float, played: Callable[[], list[Episode]]) -> pd.DataFrame:
    """A row an episode: agent, rule, budget, seed, reward, steps."""
    head = {"agent": who[0], "rule": who[1], "budget": budget}
    return pd.DataFrame([{**head, **asdict(episode)} for episode in played()])


def evaluate(
    dense: Agent,
    make: Make,
    budgets: list[float],
    sap: SapSettings,
    settings: EvaluateSettings,
    seed: int,
    part: Part = lambda name, compute: compute(),
) -> pd.DataFrame:
    """Episodes of every contender at every budget, and of random play, which sees nothing.

    part: keeps the table of a finished point under a name, and reads it back after a kill.
    """
    run = partial(seeded, make=make, episodes=settings.episodes, seed=seed)
    blind = partial(run, partial(random_action, dense.spec.actions))
    tables = [part("random", partial(point, RANDOM, 0.0, blind))]
    agents = contenders(dense, sap)
    with progress("episodes under attack", len(agents) * len(budgets)) as advance:
        for (who, agent), budget in product(agents.items(), budgets):
            draws = settings.draws if who[0] == "SAP" else 1
            played = partial(run, partial(attacked_action, agent, budget, draws))
            tables.append(part(f"{'-'.join(who)}-{budget!r}", partial(point, who, budget, played)))
            advance(1)
    return pd.concat(tables, ignore_index=True)
