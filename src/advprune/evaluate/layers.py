"""Where an attack acts: clean against adversarial feature maps, layer by layer."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from advprune.core.device import device_of, salted
from advprune.evaluate.acting import LOOKED_AT
from advprune.models.insert import WrappedConv2d, watched
from advprune.models.spec import Site
from advprune.models.stochastic import frozen_copy

SAMPLE = 1 << 14  # values a batch and layer, for the distance between the distributions
SIDES = ("clean", "adv", "noise")
CHANGED = 0.1  # in clean standard deviations of the layer: a smaller change of a unit is none
TOP = 0.999  # the percentile of sizes that stands for a layer's largest values


@dataclass
class _Sums:
    """Figures of one layer's output by side: `of` are summed, `most` the largest of all batches;
    on the device until the end."""

    of: defaultdict[str, Any] = field(default_factory=lambda: defaultdict(float))
    most: defaultdict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))

    def add(self, parts: dict[str, Tensor], images: int) -> None:
        """Take in one batch: outputs `[N, ...]` of the same layer by side, of so many images."""
        values = {side: part.flatten().double() for side, part in parts.items()}
        clean = values["clean"]
        least = CHANGED * clean.std(correction=0)
        rank = max(1, round(TOP * clean.numel()))
        sums: dict[str, Any] = {"values": clean.numel(), "batches": 1, "images": images}
        sums["distance"] = wasserstein(clean, values["adv"])
        for side, own in values.items():
            change, size = (own - clean).abs(), own.abs()
            sums |= {f"{side}_sum": own.sum(), f"{side}_square": own.square().sum()}
            sums |= {
                f"{side}_change": change.sum(),
                f"{side}_squared_change": change.square().sum(),
            }
            sums[f"{side}_changed"] = (change > least).sum().double()
            sums[f"{side}_top"] = ordered(size)[rank - 1]
            self.most[f"{side}_size"].append(size.max())
            self.most[f"{side}_change"].append(change.max())
        # Image by image `[n]`: figures by side, what the attack's is compared with, and its unit.
        each = {side: part.view(images, -1) for side, part in values.items()}
        own, rank = each["clean"], max(1, round(TOP * each["clean"].shape[1]))
        sigma = {side: v.std(1, correction=0) for side, v in each.items()}
        changed = {side: ((v - own).abs() > least).double().mean(1) for side, v in each.items()}
        top = {side: ordered(v.abs())[:, rank - 1] for side, v in each.items()}
        for name, figures, to, unit in (
            ("sigma", sigma, "clean", sigma["clean"]),
            ("changed", changed, "noise", own.new_ones(images)),
            ("top", top, "noise", top["clean"]),
        ):
            gain = figures["adv"] - figures[to]
            sums |= {f"{name}_gain": gain.sum(), f"{name}_gain_squared": gain.square().sum()}
            sums[f"{name}_scale"] = unit.sum()
        for key, number in sums.items():
            self.of[key] += number

    def row(self) -> dict[str, float]:
        """The layer's figures."""
        of = {key: float(number) for key, number in self.of.items()}
        most = {key: max(map(float, numbers)) for key, numbers in self.most.items()}
        size, n = max(of["clean_square"], 1e-24), of["images"]
        relative = {side: (of[f"{side}_squared_change"] / size) ** 0.5 for side in SIDES}
        figures: dict[str, float] = {}
        for side in SIDES:
            mean = of[f"{side}_sum"] / of["values"]
            variance = max(of[f"{side}_square"] / of["values"] - mean**2, 0.0)
            figures |= {f"{side}_mean": mean, f"{side}_sigma": variance**0.5}
            figures[f"{side}_max"] = most[f"{side}_size"]
            figures[f"{side}_top"] = of[f"{side}_top"] / of["batches"]
            if side != "clean":
                figures[f"{side}_changed"] = of[f"{side}_changed"] / of["values"]
        for name in ("sigma", "changed", "top"):
            gain, scale = of[f"{name}_gain"] / n, max(of[f"{name}_scale"], 1e-12)
            squares = max(of[f"{name}_gain_squared"] / n - gain**2, 0.0)
            figures[f"{name}_gain"] = of[f"{name}_gain"] / scale
            error = (squares / max(n - 1, 1)) ** 0.5  # of the mean over images
            figures[f"{name}_gain_error"] = error * n / scale
        return {
            "mean_difference": of["adv_change"] / of["values"],
            "max_difference": most["adv_change"],
            "relative_difference": relative["adv"],
            "distance": of["distance"] / of["batches"] / max(figures["clean_sigma"], 1e-12),
            **figures,
            "noise_relative": relative["noise"],
        }


def wasserstein(first: Tensor, second: Tensor) -> Tensor:
    """1-Wasserstein distance of two equally large samples, mean |difference of sorted values|, both
    thinned evenly to `SAMPLE` values."""
    thin = max(1, first.numel() // SAMPLE)
    return (ordered(first[::thin]) - ordered(second[::thin])).abs().mean()


def ordered(values: Tensor) -> Tensor:
    """Values from small to large along the last dimension; on a CPU numpy is ten times as fast."""
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.numpy()))


def looked_at(model: nn.Module) -> dict[str, nn.Module]:
    """The layers looked at, by name: modules without children (but an empty Sequential, the
    identity of a shortcut), and as a whole activation sites and layers with something behind."""
    kinds = (Site, WrappedConv2d)
    whole = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    found = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{one}.") for one in whole)
        plain = not any(module.children()) and not isinstance(module, nn.Sequential)
        if name in whole or (plain and not inside):
            found[name] = module
    return found


@torch.no_grad()
def where(
    model: nn.Module, images: Tensor, adv: Tensor, noisy: Tensor, batch: int = 64
) -> pd.DataFrame:
    """Compare every layer's output on clean, adversarial and `noisy` images, float `[N, C, H, W]`:
    the last the same images under random noise of the same size. The first `LOOKED_AT` count.

    One row per layer in the order of the forward pass: depth (0 is the normalized input), layer,
    kind; mean_difference, max_difference of |adv - clean|; relative_difference, the L2 norm of the
    difference over that of the clean maps (noise_relative: of noise); distance, the 1-Wasserstein
    distance of the distributions of values in clean sigmas. By side (clean, adv, noise): mean,
    sigma, max and top (99.9th percentile) of |value|, and changed, the share of units that change
    by more than a tenth of the clean sigma. Image by image, means with their standard errors
    (`…_error`): changed_gain and top_gain, by how much changed and top (over the clean mean) are
    above those under noise, and sigma_gain, above the clean one's. Random layers draw once, the
    same for all. A layer of a foreign network has a row if its output begins with the batch.
    """
    model = frozen_copy(model)
    device, found = device_of(model), looked_at(model)
    given = tuple(pictures[:LOOKED_AT] for pictures in (images, adv, noisy))
    sums: dict[str, _Sums] = {}
    total = 0

    def look(name: str, module: nn.Module, inputs: object, output: Any) -> None:
        maps = output[0] if isinstance(output, tuple) and output else output
        if not (isinstance(maps, Tensor) and maps.is_floating_point() and maps.ndim):
            return
        if maps.numel() and len(maps) % total == 0:  # the batch or its images' parts
            own = dict(zip(SIDES, maps.chunk(len(SIDES)), strict=True))
            sums.setdefault(name, _Sums()).add(own, total // len(SIDES))

    with watched(found, look):
        for parts in zip(*(pictures.split(batch) for pictures in given), strict=True):
            total = len(SIDES) * len(parts[0])
            model(torch.cat(parts).to(device))
    return pd.DataFrame(
        {"depth": depth, "layer": name, "kind": type(found[name]).__name__} | sums[name].row()
        for depth, name in enumerate(sums)
    )


def noisy_images(images: Tensor, adv: Tensor, seed: int) -> Tensor:
    """`images` plus the change of each pixel in `adv` at a random place and sign, in [0, 1]: noise
    of the same sizes that knows nothing of the model."""
    generator = torch.Generator().manual_seed(salted(seed, "layers", "noise"))
    change = (adv - images).flatten(1)
    order = torch.rand(change.shape, generator=generator).argsort(1)
    signs = torch.randint(2, change.shape, generator=generator) * 2 - 1
    noise = (change.gather(1, order) * signs).view_as(images)
    return (images + noise).clamp(0, 1)
