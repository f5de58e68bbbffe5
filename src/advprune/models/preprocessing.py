"""How a network was trained to be given images: normalization, and the size of the pictures, by
timm's configuration, torchvision's transforms, or a config.json beside a checkpoint, as timm writes
it for the Hugging Face Hub."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, Field

from advprune.core.errors import UserError, first_line
from advprune.core.files import read_json
from advprune.core.fit import Fit
from advprune.core.hub import CONFIGURATION
from advprune.core.networks import GIVEN, collection_of
from advprune.core.settings import Settings, parse
from advprune.models.foreign import COLOUR, installed_timm
from advprune.models.spec import MOST_CLASSES


@dataclass(frozen=True)
class Preprocessing:
    """How images were given to a network in its training."""

    mean: tuple[float, ...]  # of each channel of images in [0, 1]
    std: tuple[float, ...]
    fit: Fit | None  # how pictures become images of the network's size; None: in another way


class _Config(Settings):
    """A config.json of timm's kind. What it says of images is in pretrained_cfg, or beside it."""

    model_config = ConfigDict(extra="ignore")
    architecture: str
    num_classes: int | None = Field(default=None, ge=1, le=MOST_CLASSES)
    model_args: dict[str, Any] | None = None
    input_size: tuple[int, int, int] = (COLOUR, 1, 1)


def _config(checkpoint: Path) -> dict[str, Any] | None:
    """What the config.json beside a checkpoint holds, and what it says of images; None where there
    is none, or where it is not of timm's kind."""
    place = checkpoint.with_name(CONFIGURATION)
    read = read_json(place) if place.is_file() else None
    if not isinstance(read, dict) or "architecture" not in read:
        return None
    if not isinstance(images := read.get("pretrained_cfg") or {}, dict):
        raise UserError(f"{place}: pretrained_cfg is no mapping")
    top = {key: value for key, value in read.items() if value is not None}
    own = {key: top[key] for key in ("architecture", "num_classes") if key in top}
    return top | images | own


def described(checkpoint: Path) -> dict[str, Any]:
    """What the config.json beside a checkpoint says of its network: architecture, classes,
    channels, options. Empty where there is none, or where it is not of timm's kind."""
    if (held := _config(checkpoint)) is None:
        return {}
    config = parse(_Config, held, str(checkpoint.with_name(CONFIGURATION)))
    said = {
        "architecture": f"timm/{config.architecture}",
        "options": {k: v for k, v in (config.model_args or {}).items() if k not in GIVEN},
        "channels": config.input_size[0],
        "classes": config.num_classes,
    }
    return {key: value for key, value in said.items() if value}


def preprocessing_of(
    architecture: str, options: Mapping[str, Any], checkpoint: Path | None = None
) -> Preprocessing | None:
    """How a model of timm or torchvision was trained to be given images; None where nothing says.

    checkpoint: its file: a config.json beside it counts before timm's configuration, and of
    torchvision's weights those are taken that the file is called like, or the newest. A side among
    the `options` of a timm model counts first. UserError where timm is missing or the config.json
    is wrong.
    """
    collection, name = collection_of(architecture)
    if collection == "torchvision":
        from torchvision import models

        known = list(models.get_model_weights(name))
        called = [one for one in known if checkpoint and one.url.endswith(f"/{checkpoint.name}")]
        if not known:
            return None
        made = (called or [models.get_model_weights(name).DEFAULT])[0].transforms()
        fit = _fit(made.resize_size[0], made.crop_size[0], made.interpolation.value)
        return Preprocessing(tuple(made.mean), tuple(made.std), fit)
    if collection != "timm":
        return None
    timm = installed_timm(architecture)
    place = checkpoint.with_name(CONFIGURATION) if checkpoint else Path()
    side = options.get("img_size")
    sides = (side, side) if isinstance(side, int) else side
    given = {"input_size": (COLOUR, *sides)} if isinstance(sides, list | tuple) else {}
    try:
        own = checkpoint and _config(checkpoint)
        own = own or timm.get_pretrained_cfg(name).to_dict()
        found = importlib.import_module("timm.data").resolve_data_config(given, pretrained_cfg=own)
        (*_, height, width), mode = found["input_size"], found["crop_mode"]
        side, squash = floor(width / found["crop_pct"]), mode == "squash"
        fit = _fit(side, width, found["interpolation"], squash)
        mean, std = (tuple(map(float, found[key])) for key in ("mean", "std"))
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{place}: {first_line(error)}") from error
    return Preprocessing(mean, std, fit if mode != "border" and height == width else None)


def _fit(resize: int, crop: int, interpolation: str, squash: bool = False) -> Fit:
    said = {"resize": resize, "crop": crop, "interpolation": interpolation, "squash": squash}
    return parse(Fit, said, "the size of pictures")


def for_channels(name: str, numbers: Sequence[float], channels: int) -> tuple[float, ...]:
    """One number for each channel: of one, it is repeated; of several for grey images, their mean.
    UserError where they are not as many; `name` begins it."""
    if len(numbers) == channels:
        return tuple(numbers)
    if len(numbers) > 1 < channels:
        raise UserError(f"{name}: {len(numbers)} numbers for {channels} channels")
    return (sum(numbers) / len(numbers),) * channels
