"""Residual networks for small images, at any width: He et al., Deep Residual Learning for Image
Recognition (CVPR 2016). ResNet18 has the stem that is usual for CIFAR (one 3x3 convolution, no
max-pooling); ResNet20 is their CIFAR network (section 4.2) with 1x1 convolutions on the shortcuts
that change shape."""

from itertools import pairwise

import torch
from torch import nn

from advprune.core.networks import BLOCKS
from advprune.models.foreign import Foreign
from advprune.models.spec import ModelSpec, Normalize, Site, convolution


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus the shortcut, then relu; `inner` channels between the two."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, inner: int) -> None:
        super().__init__()
        self.conv1 = convolution(fan_in, inner, stride=stride)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = Site()
        self.conv2 = convolution(inner, fan_out)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or fan_in != fan_out:
            project = convolution(fan_in, fan_out, 1, stride)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(fan_out))
        self.act2 = Site()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act1(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h)) + self.shortcut(x)
        return self.act2(h)


class ResNet(nn.Module):
    """Images `[N, C, H, W]` in [0, 1] to logits `[N, classes]`, of any size. Inserted layers and
    quantization, which the spec may ask for, are not built."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, blocks = spec, BLOCKS[spec.architecture]
        self.normalize = Normalize(spec.mean, spec.std)
        stem, widths = spec.streams[0], spec.blocks
        self.conv1 = convolution(spec.channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.act1 = Site()
        sizes = zip(pairwise((stem, *widths)), spec.inner or widths, strict=True)
        for index, count in enumerate(blocks):
            stage = nn.Sequential()
            for place in range(count):
                (fan_in, fan_out), inner = next(sizes)
                stride = 1 if place else spec.steps[index]
                stage.append(BasicBlock(fan_in, fan_out, stride, inner))
            self.add_module(f"layer{index + 1}", stage)
        self.stages = len(blocks)
        self.pool: nn.Module = nn.AdaptiveAvgPool2d(1)
        if spec.pool_norm:  # on maps of 1x1, the same as batch-norm of vectors
            self.pool = nn.Sequential(self.pool, nn.BatchNorm2d(widths[-1]))
        self.linear = nn.Linear(widths[-1], spec.classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act1(self.bn1(self.conv1(self.normalize(x))))  # [N, stem, H, W]
        for index in range(self.stages):
            h = getattr(self, f"layer{index + 1}")(h)
        return self.linear(self.pool(h).flatten(1))


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """He initialization of all convolutions and linear layers, from a generator, in place."""
    if isinstance(model, Foreign):  # a foreign network initializes itself
        model.initialize(generator)
        return
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
