"""Networks for images of 32x32 that published robust and pruned checkpoints are made for.

Tensors have the names of the benchmarks' files. wide_resnet: Zagoruyko and Komodakis, Wide Residual
Networks (BMVC 2016), as in RobustBench. preact_resnet18: He et al., Identity Mappings in Deep
Residual Networks (ECCV 2016), as in RobustBench and AdversarialPruningBenchmark. vgg16: Simonyan
and Zisserman (ICLR 2015) with batch-norm and fewer linear layers than for ImageNet, as in
AdversarialPruningBenchmark. On images of 32x32 pooling is theirs; of other sizes, it is adaptive.
"""

from collections.abc import Callable

import torch
from torch import nn

from advprune.models.spec import Site


def _conv(fan_in: int, fan_out: int, side: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(fan_in, fan_out, side, stride, padding=side // 2, bias=False)


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
        self.conv1 = _conv(fan_in, fan_out, stride=stride)
        self.bn2, self.relu2 = nn.BatchNorm2d(fan_out), Site()
        self.conv2 = _conv(fan_out, fan_out)
        self.name, self.early = shortcut if stride != 1 or fan_in != fan_out else None, early
        if self.name is not None:
            project: nn.Module = _conv(fan_in, fan_out, 1, stride)
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
        self.conv1 = _conv(channels, before)
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
        self.conv1, before = _conv(channels, width), width
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
