"""A split of a data set, and its file: safetensors with the sha256 of pixels and labels."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from advprune.core import files
from advprune.core.errors import UserError, first_line

SPLITS = ("train", "val", "test")
REDO = "run `dvc repro prepare`"


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures: images uint8 [N, C, H, W], labels int64 [N], one name per class. source:
    where they are from, for people. made: `sources.key_of` what they were made from. UserError on
    any other dtype or shape, on no images at all, and on a label outside the classes."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    source: str
    made: str = ""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        images, labels, count = self.images, self.labels, len(self.classes)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.numel() == 0:
            found = f"{images.dtype} {list(images.shape)}"
            raise UserError(f"images must be uint8 [N, C, H, W] and not empty, but are {found}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {list(labels.shape)}"
            raise UserError(f"labels must be int64 [{len(images)}], one per image, but are {found}")
        for index in ((labels < 0) | (labels >= count)).nonzero().flatten().tolist():
            label = int(labels[index])
            raise UserError(f"label {label} at index {index} is outside the {count} classes")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, `(C, H, W)`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pick(self, indices: torch.Tensor) -> "Split":
        """Return the split of these images only, in the order of `indices` (int64 [M])."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 images 0..255 of any shape into float32 in [0, 1]; UserError if not uint8."""
    if images.dtype != torch.uint8:
        raise UserError(f"images must be uint8 to be scaled to [0, 1], but are {images.dtype}")
    return images.to(torch.float32).div_(255)


def save_split(split: Split, path: Path) -> None:
    """Write a split as a safetensors file, whole or not at all; equal splits give equal bytes.
    UserError where `path` cannot be written."""
    about = {"classes": split.classes, "source": split.source, "sha256": sha256_of(split)}
    about |= {"made": split.made}
    tensors = {"images": split.images.contiguous(), "labels": split.labels.contiguous()}
    # One key only: safetensors writes several metadata keys in random order.
    contents = save(tensors, metadata={"split": json.dumps(about)})
    with files.atomic(path) as temporary:
        temporary.write_bytes(contents)


def read_split(path: Path) -> Split:
    """Read a split that save_split wrote; UserError, with the file's name, where it is missing, cut
    short or altered (by its sha256)."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; {REDO}")
    try:
        with safe_open(str(path), framework="pt") as stored:
            about = json.loads(stored.metadata()["split"])
            # Copies: the stored tensors are maps of a file that may change later.
            images, labels = (stored.get_tensor(key).clone() for key in ("images", "labels"))
        known = tuple(map(str, about["classes"])), str(about["source"]), str(about.get("made", ""))
        split = Split(images, labels, *known)
        expected = about["sha256"]
    except UserError as error:
        raise UserError(f"{path}: {error}; {REDO}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        why = first_line(error)
        raise UserError(f"{path} is cut short or no split file ({why}); {REDO}") from error
    if sha256_of(split) != expected:
        raise UserError(f"{path} was altered: its images do not match their sha256; {REDO}")
    return split


def load_split(directory: Path | str, name: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    """Load `directory`/`name`.safetensors: images float32 [N, C, H, W] in [0, 1], labels int64 [N];
    UserError where read_split raises it."""
    split = read_split(Path(directory) / f"{name}.safetensors")
    return to_float(split.images), split.labels


def sha256_of(split: Split) -> str:
    """Hex sha256 of a split's pixels and labels."""
    digest = hashlib.sha256()
    for tensor in (split.images, split.labels):
        digest.update(tensor.contiguous().flatten().numpy().data)
    return digest.hexdigest()
