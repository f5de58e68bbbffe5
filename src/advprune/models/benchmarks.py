"""The networks of RobustBench and AdversarialPruningBenchmark, for images of 32x32, with the names
of tensors of their files, by some of which each is told. ResNet18 in the form that is usual for
CIFAR is this library's `resnet18`.

wide_resnet: Zagoruyko and Komodakis, Wide Residual Networks (BMVC 2016). preact_resnet18: He et
al., Identity Mappings in Deep Residual Networks (ECCV 2016). vgg16: Simonyan and Zisserman (ICLR
2015) with batch-norm and fewer linear layers than for ImageNet.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from advprune.core.errors import UserError
from advprune.models.spec import Site, convolution
from advprune.models.tensor_file import bare

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Recognized:
    """The network of a file."""

    tensors: dict[str, torch.Tensor]  # by this library's names
    given: dict[str, Any]  # what describes it
    normalized: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # mean and std, if held
    notes: list[str] = field(default_factory=list)  # what was left out


@dataclass(frozen=True)
class _Dialect:
    architecture: str
    signature: tuple[str, ...]  # names that all such files have
    options: Callable[[Tensors], dict[str, Any]]  # of the network, from the tensors
    absent: tuple[str, ...] = ()  # names that no such file has
    rename: Callable[[str], str | None] = str  # from their names to ours; None: it has no use


def _out(tensors: Tensors, name: str) -> int:
    if not tensors[name].ndim:
        raise UserError(f"{name} is a single number where these networks have weights")
    return int(tensors[name].shape[0])


def _vgg(tensors: Tensors) -> dict[str, Any]:
    hidden = _out(tensors, "classifier.0.weight") if "classifier.0.weight" in tensors else 0
    bias = "features.0.bias" in tensors
    return {"width": _out(tensors, "features.0.weight"), "hidden": hidden, "bias": bias}


PWOA = {"layer6.0": "classifier.0", "layer7.0": "classifier.2", "layer8": "classifier.4"}
# PwoA's `layer<stage>.<place>.<0 or 1>`, for convolutions and their batch-norms.
PWOA |= {
    f"layer{stage}.{place}.{part}": f"features.{start + 3 * place + part}"
    for stage, start in enumerate((0, 7, 14, 24, 34), 1)
    for place in range(3)
    for part in (0, 1)
}


def _from_stages(name: str) -> str:
    """The name of a tensor of PwoA's VGG16 in ours."""
    layer, _, tensor = name.rpartition(".")
    return f"{PWOA[layer]}.{tensor}" if layer in PWOA else name


VGG = ("features.0.weight", "features.40.weight", "features.41.running_var")
DIALECTS = (
    _Dialect(
        "cifar/wide_resnet",  # Carmon's, HYDRA's and others after TRADES' code
        ("block1.layer.0.conv1.weight", "conv1.weight", "fc.weight"),
        lambda t: {
            "depth": 6 * len({n.split(".")[2] for n in t if n.startswith("block1.layer.")}) + 4,
            "widen": _out(t, "block1.layer.0.conv1.weight") // 16,
        },
        rename=lambda name: None if name.startswith("sub_block1.") else name,
    ),
    _Dialect(
        "cifar/preact_resnet18",  # Wong's, Rice's; RobustBird and FlyingBird
        ("layer1.0.bn1.weight", "layer4.0.shortcut.0.weight", "conv1.weight", "linear.weight"),
        lambda tensors: {"width": _out(tensors, "conv1.weight"), "norm": "bn.weight" in tensors},
        absent=("bn1.weight", "layer4.0.shortcut.1.weight"),
    ),
    _Dialect("cifar/vgg16", (*VGG, "classifier.weight"), _vgg),  # RADMM, TwinRep, the Birds
    _Dialect("cifar/vgg16", (*VGG, "classifier.4.weight"), _vgg),  # HYDRA and HARP
    _Dialect(
        "cifar/vgg16",  # PwoA
        ("layer1.0.0.weight", "layer5.2.0.weight", "layer8.weight"),
        lambda tensors: _vgg({_from_stages(name): tensor for name, tensor in tensors.items()}),
        rename=_from_stages,
    ),
)


def recognized(tensors: Tensors) -> Recognized | None:
    """The benchmark's network in a file, by its tensors; None where it is none of these."""
    held: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        held.setdefault(bare(name), tensor)
    seen = {name.removesuffix("_orig"): tensor for name, tensor in held.items()}  # of masked layers
    for dialect in DIALECTS:
        fits = all(name in seen for name in dialect.signature)
        if not fits or len(held) < len(tensors) or any(name in seen for name in dialect.absent):
            continue
        # RobustBench's networks keep what they normalize by among their tensors.
        buffers = [held.pop(name).flatten().tolist() for name in ("mu", "sigma") if name in held]
        renamed = {dialect.rename(name): tensor for name, tensor in held.items()}
        left = sum(dialect.rename(name) is None for name in held)
        return Recognized(
            {name: tensor for name, tensor in renamed.items() if name is not None},
            {"architecture": dialect.architecture, "options": dialect.options(seen)},
            (tuple(buffers[0]), tuple(buffers[1])) if len(buffers) == 2 else None,
            [f"{left} tensors were left out that the network does not use"] if left else [],
        )
    return None


class _PreActivated(nn.Module):
    """bn-relu-conv-bn-relu-conv, plus the input, or what a convolution makes of it. shortcut: the
    name of that convolution. early: it sees the input before the first batch-norm."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        stride: int,
        shortcut: str = "shortcut",
        early: bool = False,
    ) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(fan_in), Site()
        self.conv1 = convolution(fan_in, fan_out, stride=stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(fan_out), Site()
        self.conv2 = convolution(fan_out, fan_out)
        self.name, self.early = shortcut if stride != 1 or fan_in != fan_out else None, early
        if self.name is not None:
            project: nn.Module = convolution(fan_in, fan_out, 1, stride)
            self.add_module(
                self.name, project if shortcut != "shortcut" else nn.Sequential(project)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.relu1(self.bn1(x))
        if self.name is not None:
            x = self.get_submodule(self.name)(x if self.early else h)
        return x + self.conv2(self.relu2(self.bn2(self.conv1(h))))


class WideResNet(nn.Module):
    """Three blocks of `(depth - 4) / 6` layers each, of 16, 32 and 64 times `widen` channels."""

    def __init__(self, classes: int, channels: int, depth: int = 28, widen: int = 10) -> None:
        super().__init__()
        count, before = (depth - 4) // 6, 16
        if depth != 6 * count + 4 or count < 1 or not 1 <= widen <= 64:
            raise ValueError("depth is 10, 16, 22, 28, 34, …; widen is from 1 to 64")
        self.conv1 = convolution(channels, before)
        for place, stride in enumerate((1, 2, 2)):
            wide, layer = 16 * 2**place * widen, nn.Sequential()
            for step in (stride, *(1,) * (count - 1)):
                layer.append(_PreActivated(before, wide, step, "convShortcut"))
                before = wide
            block = nn.Module()
            block.layer = layer
            self.add_module(f"block{place + 1}", block)
        self.bn1, self.relu, self.pool = nn.BatchNorm2d(before), Site(), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(x)
        for place in (1, 2, 3):
            h = self.get_submodule(f"block{place}.layer")(h)
        return self.fc(self.pool(self.relu(self.bn1(h))).flatten(1))


class PreActResNet18(nn.Module):
    """Four stages of two blocks. norm: a batch-norm and a ReLU before pooling; the benchmarks'
    networks that have it give their shortcuts the activated input, and those without the raw."""

    def __init__(self, classes: int, channels: int, width: int = 64, norm: bool = True) -> None:
        super().__init__()
        self.conv1, before = convolution(channels, width), width
        for place in range(4):
            wide, stage = width * 2**place, nn.Sequential()
            for stride in (1 if place == 0 else 2, 1):
                stage.append(_PreActivated(before, wide, stride, early=not norm))
                before = wide
            self.add_module(f"layer{place + 1}", stage)
        self.bn = nn.BatchNorm2d(before) if norm else None
        self.relu = Site() if norm else None
        self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(before, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(x)
        for place in (1, 2, 3, 4):
            h = self.get_submodule(f"layer{place}")(h)
        if self.bn is not None and self.relu is not None:
            h = self.relu(self.bn(h))
        return self.linear(self.pool(h).flatten(1))


VGG16 = (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8)  # widths in parts; 0 is max-pooling


class Vgg16(nn.Module):
    """13 convolutions with batch-norm. hidden: channels of two linear layers before the last, on
    maps of 2x2; none where it is 0, on maps of 1x1. bias: of the convolutions."""

    def __init__(
        self, classes: int, channels: int, width: int = 64, hidden: int = 0, bias: bool = True
    ) -> None:
        super().__init__()
        self.features, before = nn.Sequential(), channels
        for part in VGG16:
            if not part:
                self.features.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(before, part * width, 3, padding=1, bias=bias)
            before = part * width
            self.features.extend([conv, nn.BatchNorm2d(before), nn.ReLU(inplace=True)])
        if not hidden:
            self.features.append(nn.MaxPool2d(2))
        self.pool = nn.AdaptiveAvgPool2d(2 if hidden else 1)
        self.classifier: nn.Module = nn.Linear(before, classes)
        if hidden:
            first, second = nn.Linear(4 * before, hidden), nn.Linear(hidden, hidden)
            last = nn.Linear(hidden, classes)
            self.classifier = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)).flatten(1))


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "wide_resnet": WideResNet,
    "preact_resnet18": PreActResNet18,
    "vgg16": Vgg16,
}
