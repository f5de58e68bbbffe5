"""Early-Growth: how wide the layers of a binary network have to be.

Stage 1 of RA-BNN (Rakin et al., 2021, arXiv 2103.13813; docs/binary-networks.md). A network
`factor` times as wide is trained with a gate on every channel. In the first epochs no gate is drawn
and none learns: gates of a network that has learned nothing follow noise, and the network shrinks.
After that cross-entropy alone says which channels stay; growth ends because the gates become steep.
The network of the channels found is trained from scratch (binary.py).
"""

from collections import defaultdict
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn

from advprune.core.device import salted
from advprune.core.settings import Settings
from advprune.core.train_settings import GrowthSettings, RecipeSettings, TrainSettings
from advprune.models.backward import straight_through
from advprune.models.binary import Latent, begin_epoch, latent
from advprune.models.resnet import ResNet, initialize
from advprune.models.spec import ModelSpec, convolution
from advprune.training.inputs import Inputs
from advprune.training.standard import History, Row, train

LEAST, MOST = -10, -2  # tenths: where the logits of channels beyond the base network start
RISING = 0.3  # share of the epochs in which rates still rise: gates at rest may still move


class Grown(Settings):
    """What growth found: `stages` and `inner` of a ModelSpec, and one row per epoch.

    base: the channels of the base network, those of its stages first.
    """

    stages: tuple[int, ...]
    inner: tuple[int, ...]
    base: tuple[int, ...]
    history: History = []


class Gate(nn.Module):
    """A group of channels that are on or off, one logit m each.

    In training on with probability `sigmoid(beta m)`, by `y = sigmoid(beta m + g) > 1/2` with
    logistic noise g (a hard Gumbel-sigmoid at temperature 1); the gradient is that of y. In
    evaluation mode on where m > 0. A group is never all off: its most likely channel stays. beta:
    the steepness of each. on: the last draw. frozen: all are on, and no logit learns.
    """

    beta: torch.Tensor
    on: torch.Tensor

    def __init__(self, channels: int, base: int, generator: torch.Generator) -> None:
        super().__init__()
        tenths = torch.randint(LEAST, MOST + 1, (channels,), generator=generator)
        self.frozen = False
        self.logits = nn.Parameter(tenths / 10)
        self.logits.data[:base] = 1.0
        self.register_buffer("beta", torch.ones(channels))
        self.register_buffer("on", torch.zeros(channels, dtype=torch.bool))

    @property
    def kept(self) -> torch.Tensor:
        """Which channels are on without noise, bool `[C]`."""
        return open_channels(self.logits.detach())

    def forward(self, noise: torch.Generator) -> torch.Tensor:
        """0 or 1 for each channel; noise is drawn on the CPU."""
        if not self.training:
            return self.kept.to(self.logits.dtype)
        if self.frozen:
            return 1 + 0 * self.logits
        uniform = torch.rand(len(self.logits), generator=noise, dtype=torch.float64)
        steep = self.beta * self.logits + uniform.logit(eps=1e-12).to(self.logits)
        self.on = open_channels(steep.detach())
        return straight_through(steep.sigmoid(), self.on.to(steep.dtype))


def open_channels(logits: torch.Tensor) -> torch.Tensor:
    """Which logits are above zero; the largest where none is."""
    on = logits > 0
    on[logits.argmax()] = True
    return on


class SuperNet(nn.Module):
    """The wide network in training form, and a gate for every group of channels, which acts where
    they are read: a channel that is off has no part in the means and deviations of later layers.

    gates: by name of the group, `stem`, `layer1`, … for the residual streams and `layer1_0`, … for
    the channels inside a block. base: how many channels of each group are the base network's.
    """

    def __init__(self, spec: ModelSpec, factor: int, seed: int) -> None:
        super().__init__()
        inner = spec.inner or spec.blocks
        sizes = {"stages": [factor * n for n in spec.streams], "inner": [factor * n for n in inner]}
        known = spec.model_dump() | sizes | {"pool_norm": True}
        network = ResNet(ModelSpec.model_validate(known))
        # The stem's channels and those of the first stage are to be other channels: the first
        # block's shortcut projects, as it does where their numbers differ.
        block: Any = network.get_submodule("layer1.0")
        if not len(block.shortcut):
            before, after = block.conv1.in_channels, block.conv2.out_channels
            block.shortcut = nn.Sequential(convolution(before, after, 1), nn.BatchNorm2d(after))
        initialize(network, torch.Generator().manual_seed(seed))
        self.network = latent(network)
        generator = torch.Generator().manual_seed(salted(seed, "gates"))
        self.readers = readers(network)
        self.base = dict(zip(self.readers, (*spec.streams, *inner), strict=True))
        self.gates: dict[str, Gate] = {
            name: Gate(factor * n, n, generator) for name, n in self.base.items()
        }
        self.registered = nn.ModuleDict(self.gates)
        self.seed, self.noise = seed, torch.Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, layers in self.readers.items():
            mask = self.gates[name](self.noise)
            for layer in layers:
                layer.mask = mask
        try:
            return self.network(x)
        finally:
            for layer in chain.from_iterable(self.readers.values()):
                layer.mask = None

    def begin_epoch(self, epoch: int, settings: GrowthSettings) -> None:
        """Before an epoch, counted from 0: its slopes, steepness after the last one, its noise."""
        begin_epoch(self.network, epoch, settings.epochs, settings.t)
        for gate in self.gates.values():
            gate.frozen = epoch < settings.frozen
            if epoch > settings.frozen:  # of the channels that were on in the last draw
                gate.beta = torch.where(gate.on, gate.beta * settings.rate, gate.beta)
        self.noise.manual_seed(salted(self.seed, "gate noise", str(epoch)))

    def density(self) -> Row:
        """The share of channels that are on: of all, of the base network's, and of each group."""
        kept = {name: gate.kept for name, gate in self.gates.items()}
        first = [kept[name][:n] for name, n in self.base.items()]
        shares = {"density": torch.cat([*kept.values()]), "base_density": torch.cat(first)}
        shares |= {f"density_{name}": on for name, on in kept.items()}
        return {name: round(int(on.sum()) / len(on), 4) for name, on in shares.items()}

    def channels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many channels are on: of the stem and the stages, and inside each block."""
        kept = {name: int(gate.kept.sum()) for name, gate in self.gates.items()}
        inside = tuple(n for name, n in kept.items() if "_" in name)
        return tuple(n for name, n in kept.items() if "_" not in name), inside


def readers(network: ResNet) -> dict[str, list[Latent]]:
    """The layers that read each group of channels, streams first."""
    streams, inside, before = defaultdict[str, list[nn.Module]](list), {}, "stem"
    for stage in (f"layer{index}" for index in range(1, network.stages + 1)):
        blocks: Any = network.get_submodule(stage)
        for place, block in enumerate(blocks):
            streams[before] += [block.conv1, *block.shortcut]
            inside[f"{stage}_{place}"] = [block.conv2]
            before = stage
    streams[before].append(network.linear)
    return {
        name: [layer for layer in layers if isinstance(layer, Latent)]
        for name, layers in (streams | inside).items()
    }


def settled(history: History, tolerance: float, patience: int) -> bool:
    """Whether the density changed by less than `tolerance` in each of the last epochs."""
    last = [row["density"] for row in history[-patience - 1 :]]
    steps = [abs(b - a) for a, b in pairwise(last)]
    return len(steps) == patience and max(steps) < tolerance


def grow(
    spec: ModelSpec, settings: GrowthSettings, optimizer: TrainSettings, inputs: Inputs
) -> Grown:
    """Find the channels of a binary network that starts from `spec`, the base network.

    optimizer: the profile's, without label smoothing; gates have no weight decay. The rows of the
    history are those of Trainer with `density`. UserError where the loss stops being a number.
    """
    network = SuperNet(spec, settings.factor, inputs.seed).to(inputs.device)
    optimizer = optimizer.model_copy(update={"lr": settings.lr, "label_smoothing": 0.0})
    gates = [gate.logits for gate in network.gates.values()]
    first = max(RISING * settings.epochs, settings.frozen + settings.patience)  # epoch, to end with
    history = train(
        network,
        inputs,
        optimizer,
        RecipeSettings(epochs=settings.epochs),
        after_epoch=lambda history: None,  # whose epochs are those of the network that is trained
        before_epoch=lambda epoch: network.begin_epoch(epoch, settings),
        measure=network.density,
        finished=lambda history: (
            len(history) > first and settled(history, settings.tolerance, settings.patience)
        ),
        groups=[{"params": gates, "lr": settings.gate_lr, "weight_decay": 0.0}],
    )
    stages, inner = network.channels()
    return Grown(stages=stages, inner=inner, base=tuple(network.base.values()), history=history)
