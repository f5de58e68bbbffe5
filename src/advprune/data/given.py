"""Labelled pictures that a network is evaluated on: a folder with one sub-folder per class, a split
or a `.npz` file. Of a folder only the pictures that are drawn are opened."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from advprune.core.errors import UserError, first_line
from advprune.core.files import existing, plain_file
from advprune.core.fit import Fit
from advprune.core.memory import bounded_memory
from advprune.data.imagefolder import checked, contents, decode, in_folder, stacked
from advprune.data.sampling import interleaved
from advprune.data.split import SPLITS, Split, read_split

MOST_CLASSES = 100_000
HELD = "images (uint8 [N, C, H, W] or [N, H, W, C]) and labels (whole numbers [N])"


@bounded_memory()
def read_given(
    place: Path,
    most: int | None = None,
    classes: Sequence[str] = (),
    fit: Fit | None = None,
    part: str = "test",
) -> Split:
    """Read the pictures at `place`: at most that many, drawn at random, each class with its share.

    classes: names in the order of the network's outputs; by default those of a folder's sub-folders
    in alphabetical order, of a split its own, of a `.npz` file its numbers. fit: resizes or cuts
    the pictures of a folder. part: the sub-folder that is read of a folder which has train/ and
    test/. UserError on what cannot be used.
    """
    place = existing(str(place), "--data")
    if place.is_dir():
        if not (place / part).is_dir() and any((place / name).is_dir() for name in SPLITS):
            raise UserError(f"{place} has no {part}/; give a folder with one sub-folder per class")
        held = [parts for parts, _ in checked(place, in_folder(place, part))]
        files = sorted(parts for parts in held if len(parts) == 3)
        kinds = sorted(parts[1] for parts in held if len(parts) == 2)
        names = tuple(classes or kinds)
        if unknown := [kind for kind in kinds if kind not in names]:
            raise UserError(
                f"{place}: sub-folder {unknown[0]!r} is none of the {len(names)} classes"
            )
        if len(names) < 2 or not files:
            raise UserError(
                f"{place}: give a folder of at least two sub-folders, one per class, of PNG or JPEG"
            )
        labels = torch.tensor([names.index(kind) for _, kind, _ in files])
        drawn = _drawn(labels, most)
        chosen = [files[number] for number in drawn.tolist()]
        pictures = {one: decode(place, one, contents(place.joinpath(*one)), fit) for one in chosen}
        images = stacked(place, pictures, "bring them to one size (--resize, --crop)")
        return Split(images, labels[drawn], names, f"{place.name}/")
    if place.suffix == ".npz":
        split = read_npz(place, classes)
    elif place.suffix == ".safetensors":
        split = read_split(place)
        if classes and len(classes) != len(split.classes):
            raise UserError(
                f"{place} has {len(split.classes)} classes, and there are {len(classes)} names"
            )
    else:
        raise UserError(f"{place} is no folder of pictures, no split (.safetensors) and no .npz")
    return split.pick(_drawn(split.labels, most))


def read_names(path: Path) -> tuple[str, ...]:
    """Names of classes, one per line; UserError for less than two, or one that is there twice."""
    plain_file(path, "file of names", "write one name of a class a line")
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from error
    while names and not names[-1]:
        names = names[:-1]
    if len(set(names)) < max(len(names), 2) or not all(names):
        raise UserError(f"{path}: write at least two names of classes, one per line, none twice")
    return names


def _drawn(labels: torch.Tensor, most: int | None) -> torch.Tensor:
    """Which of the pictures are taken, and in which order."""
    by_class = bool((labels.diff() >= 0).all())  # probes take the first of them
    if (most is None or most >= len(labels)) and not by_class:
        return torch.arange(len(labels))
    return interleaved(labels, seed=0)[:most]


def read_npz(place: Path, classes: Sequence[str]) -> Split:
    """Read a `.npz` file; its classes are numbered, or have these names."""
    try:
        with np.load(place, allow_pickle=False) as held:
            if len(set(held.files)) < len(held.files):
                raise UserError(f"{place} holds several arrays of one name")
            # a member that is no array comes as bytes
            images, labels = np.asarray(held["images"]), np.asarray(held["labels"])
    except UserError:
        raise
    except Exception as error:  # numpy and zipfile raise many kinds
        raise UserError(f"{place} does not hold {HELD}: {first_line(error)}") from error
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{place} holds {images.dtype} images and {labels.dtype} labels, not {HELD}"
        )
    numbers = torch.from_numpy(labels.astype(np.int64))
    count = int(numbers.max()) + 1 if numbers.numel() else 0
    if count > MOST_CLASSES:
        raise UserError(f"{place}: label {count - 1} is too large; number classes from 0")
    names = tuple(classes) or tuple(map(str, range(max(count, 2))))
    return Split(torch.from_numpy(np.ascontiguousarray(images)), numbers, names, place.name)
