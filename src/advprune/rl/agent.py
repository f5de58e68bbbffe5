"""The agent: a network Q(s, a) for observations of numbers or images, and its file.

Every ReLU may be followed by a layer of one's choice, which is how SAP gets into it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import nn

from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.models.checkpoint import read_tensors

Layer = Callable[[], nn.Module]
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride: Mnih et al. 2015
SMALL = ((16, 3, 1), (32, 3, 1))
SMALLEST_FOR_NATURE = 36  # the side that its three convolutions need


class AgentSpec(BaseModel):
    """What an agent is built from: shape of an observation, actions, widths of the ReLU layers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: tuple[int, ...]
    actions: int
    hidden: tuple[int, ...]

    @property
    def sees_images(self) -> bool:
        """Whether observations are images `[C, H, W]`."""
        return len(self.shape) == 3


class Agent(nn.Module):
    """Q values `[N, A]` of observations `[N, *shape]`; images are float in [0, 1].

    spread: the standard deviation of each observed number during training, in whose units
    attacks are measured; 1 for images.
    """

    spread: torch.Tensor

    def __init__(self, spec: AgentSpec, after_relu: Layer | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("spread", torch.ones(spec.shape))
        layers, width = _convolutions(spec.shape) if spec.sees_images else ([], spec.shape[0])
        for size in spec.hidden:
            layers.append([nn.Flatten(), nn.Linear(width, size)])
            width = size
        inserted = (lambda: [after_relu()]) if after_relu else list
        self.body = nn.Sequential(*(nn.Sequential(*b, nn.ReLU(), *inserted()) for b in layers))
        self.head = nn.Linear(width, spec.actions)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = self.head(self.body(observations))
        return values


def _convolutions(shape: tuple[int, ...]) -> tuple[list[list[nn.Module]], int]:
    """Blocks of convolutions for images of this shape, and how many numbers leave them."""
    channels, height, width = shape
    plan = NATURE if min(height, width) >= SMALLEST_FOR_NATURE else SMALL
    blocks: list[list[nn.Module]] = []
    for out, kernel, stride in plan:
        blocks.append([nn.Conv2d(channels, out, kernel, stride)])
        height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
        channels = out
    if min(height, width) < 1:
        raise UserError(f"images {list(shape)} are too small for the agent; 5x5 is the least")
    return blocks, channels * height * width


def build(spec: AgentSpec, seed: int, after_relu: Layer | None = None) -> Agent:
    """A fresh agent, its weights drawn from `seed`; torch's own random state stays as it is."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Agent(spec, after_relu)


def with_layers(agent: Agent, after_relu: Layer) -> Agent:
    """A copy of the agent with a layer behind every ReLU; the weights stay the same."""
    changed = build(agent.spec, 0, after_relu).to(agent.spread.device)
    changed.load_state_dict(agent.state_dict())
    return changed.requires_grad_(False).eval()


def save_agent(agent: Agent, path: Path) -> None:
    """Write spec and tensors to `path` (safetensors), whole or not at all."""
    tensors = {name: t.detach().cpu().clone() for name, t in agent.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"spec": agent.spec.model_dump_json()})


def load_agent(path: Path) -> Agent:
    """The agent stored at `path`; UserError where the file is missing, damaged or another's."""
    tensors, metadata = read_tensors(path)
    try:
        agent = build(AgentSpec.model_validate_json(metadata.get("spec", "")), seed=0)
        agent.load_state_dict(tensors)
    except (ValidationError, RuntimeError) as error:
        raise UserError(f"{path} holds no agent; delete it and train it anew") from error
    return agent.requires_grad_(False).eval()
