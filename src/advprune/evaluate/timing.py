"""How long a network takes on this machine, as PyTorch runs it here.

Networks take turns, call by call, so that what else the machine does meets all of them. Nothing
that is compared byte by byte may contain times.
"""

import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from advprune.core.device import device_of
from advprune.models.border import admitted

WARM_UP, CALLS = 3, 50  # calls per network and batch size
SECONDS = 20.0  # of each network and batch size, at most; five calls at least
CARD = ("macs", "nonzero", "file_bytes")  # of the card, beside the times


@torch.no_grad()
def timings(
    models: Mapping[str, tuple[nn.Module, Mapping[str, Any]]], images: Tensor, batch: int
) -> pd.DataFrame:
    """One row per network and batch size, 1 and `batch`: median and quartiles in seconds per call.

    models: networks with their cards, by name. images: float `[N, C, H, W]` in [0, 1]; repeated
    where there are fewer than `batch`. A call is a forward pass in evaluation mode on the network's
    device, until the device is done.
    """
    ready = {name: admitted("time", model, images) for name, (model, _) in models.items()}
    rows = []
    for size in dict.fromkeys((1, batch)):
        pictures = images[torch.arange(size) % len(images)]
        given = {name: pictures.to(device_of(model)) for name, model in ready.items()}
        taken: dict[str, list[float]] = {name: [] for name in ready}  # seconds of each call
        for call in range(-WARM_UP, CALLS):
            for name, network in ready.items():
                _wait(given[name].device)
                began = time.perf_counter()
                network(given[name])
                _wait(given[name].device)
                if call >= 0:
                    taken[name].append(time.perf_counter() - began)
            if call >= 4 and max(map(sum, taken.values())) > SECONDS:
                break
        for name, (model, card) in models.items():
            low, middle, high = np.quantile(taken[name], (0.25, 0.5, 0.75))
            row: dict[str, Any] = {"model": name, "batch": size}
            row |= {"latency": middle, "latency_low": low, "latency_high": high}
            row |= {"calls": len(taken[name])} | {key: card[key] for key in CARD}
            rows.append(row | machine(device_of(model)))
    return pd.DataFrame(rows)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, Any]:
    """What the times are of: the processor's name and, on a CPU, the threads that torch uses."""
    if device.type == "cuda":
        return {"processor": torch.cuda.get_device_name(device), "threads": None}
    known = Path("/proc/cpuinfo")
    text = known.read_text(encoding="utf-8") if known.is_file() else ""
    named = re.search(r"^model name\s*: (.*)$", text, re.MULTILINE)
    name = named[1] if named else platform.processor() or platform.machine()
    return {"processor": name, "threads": torch.get_num_threads()}
