"""Pictures: read where they come from, split once by seed, store and load the splits."""

import contextlib
import hashlib
import io
import json
import lzma
import os
import socket
import struct
import sys
import tarfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray

from advprune.core import files
from advprune.core.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = (".png", ".jpg", ".jpeg")
CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
CIFAR10_FOLDER, CIFAR10_ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
CIFAR10_WAYS = (
    "to provide it, (1) run once with internet access, (2) put it on disk, as "
    f"{CIFAR10_FOLDER}/, as {CIFAR10_ARCHIVE} or as an image folder or tar of one, and set "
    "profiles.<profile>.data.root, or (3) set the environment variable ADVPRUNE_DATA to that "
    "place; `profile: digits` needs no such data"
)
REDO = "run `dvc repro prepare`"
LARGEST_FILE = 1 << 28  # bytes of one picture: more than PIL accepts once decoded
BROKEN_IMAGE = (OSError, SyntaxError, ValueError, EOFError, Warning, struct.error, zlib.error)
BROKEN_ARCHIVE = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error)

Image = NDArray[np.uint8]  # [1 or 3, H, W]
Pictures = dict[tuple[str, str, str], Image]  # by (split, class, file name)
# Path parts below the image folder, and how to read the file; None for a folder.
Item = tuple[tuple[str, ...], Callable[[], bytes] | None]


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures: images uint8 [N, C, H, W], labels int64 [N], one name per class.

    `source` says for people where the pictures are from. Raises UserError on any other dtype or
    shape, on no images at all, and on a label outside the classes.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        images, labels, count = self.images, self.labels, len(self.classes)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.numel() == 0:
            found = f"{images.dtype} {list(images.shape)}"
            raise UserError(f"images must be uint8 [N, C, H, W] and not empty, but are {found}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            found = f"{labels.dtype} {list(labels.shape)}"
            raise UserError(f"labels must be int64 [{len(images)}], one an image, but are {found}")
        outside = ((labels < 0) | (labels >= count)).nonzero().flatten().tolist()
        if outside:
            label = int(labels[outside[0]])
            raise UserError(
                f"label {label} at index {outside[0]} is outside the {count} classes (from 0)"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image, `(C, H, W)`."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def pick(self, indices: torch.Tensor) -> "Split":
        """Return the split of these images only, in the order of `indices` (int64 [M])."""
        return Split(self.images[indices], self.labels[indices], self.classes, self.source)


def prepare(
    source: str,
    *,
    root: str | None,
    cache: Path,
    val_fraction: float,
    test_fraction: float,
    size: int | None,
    train_limit: int | None,
    test_limit: int | None,
    seed: int,
) -> dict[str, Split]:
    """Read "digits", "cifar10" or "imagefolder" into {"train", "val", "test"}.

    Parts that the source does not have are taken from train, stratified, test before val;
    fractions are of what train holds then, in (0, 1). `size` (pixels) resizes the pictures of an
    image folder. The limits cut train (without val) and test down to stratified subsets. What lies
    class by class, as image folders are read, is put into the order of `interleaved`: some studies
    take the first n images. `cache` is where an official CIFAR-10 is downloaded or unpacked. Raises
    UserError on unusable input.
    """
    native = {"digits": 8, "cifar10": 32, "imagefolder": size}
    if source not in native:
        raise UserError(f"unknown data source {source!r}; choose one of {', '.join(native)}")
    if size is not None and (size < 1 or size != native[source]):
        raise UserError(f"size {size} cannot be had from {source}; leave `size` out")
    if source == "digits":
        found = {"train": _digits()}
    elif source == "cifar10":
        found = _cifar10(root or os.environ.get("ADVPRUNE_DATA"), cache)
    elif root:
        found = _image_folder(_existing(root), size)
    else:
        raise UserError("the imagefolder source needs `root`: an image folder or a tar of one")
    for name, fraction in (("test", test_fraction), ("val", val_fraction)):
        if name not in found:
            found["train"], found[name] = _cut(found["train"], name, fraction, seed)
    for name, limit in (("train", train_limit), ("test", test_limit)):
        if limit is not None:
            found[name] = _limited(found[name], name, limit, seed)
    return {name: _mixed(found[name], seed) for name in SPLITS}


def interleaved(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Return an order (int64 [N]) of `labels` (int64 [N]) whose every beginning is stratified.

    Among the first n, each class has its share of n to within one image where classes are about
    equally large. Within a class the order is drawn. The same arguments give the same order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = labels[order]
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in drawn.unique():
        own = drawn == label
        place[own] = (torch.arange(int(own.sum()), dtype=torch.float64) + 0.5) / own.sum()
    return order[torch.argsort(place, stable=True)]


def stratified_subset(labels: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """Return n sorted indices (int64 [n]) into `labels` (int64 [N]), drawn class by class.

    Class counts are in proportion, by largest remainder, ties to the lower label. The same
    arguments give the same indices. Raises UserError unless 1 <= n <= N.
    """
    total = len(labels)
    if not 1 <= n <= total:
        raise UserError(f"cannot choose {n} images out of {total}")
    shares = torch.bincount(labels) * n
    take = shares // total
    by_remainder = torch.argsort(shares % total, descending=True, stable=True)
    take[by_remainder[: n - int(take.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, count in enumerate(take.tolist()):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the indices of `labels` (int64 [N]) into (kept, taken), both sorted int64.

    `taken` has round(fraction * N) of them, chosen by stratified_subset. Raises UserError where
    `fraction` is not inside (0, 1) or where either part would be empty.
    """
    count = round(fraction * len(labels)) if 0 < fraction < 1 else 0
    if not 0 < count < len(labels):
        raise UserError(
            f"{fraction} of {len(labels)} images leaves a part empty; choose from (0, 1)"
        )
    taken = stratified_subset(labels, count, seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[taken] = False
    return kept.nonzero().flatten(), taken


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Turn uint8 images 0..255 of any shape into float32 in [0, 1]; UserError if not uint8."""
    if images.dtype != torch.uint8:
        raise UserError(f"images must be uint8 to be scaled to [0, 1], but are {images.dtype}")
    return images.to(torch.float32).div_(255)


def save_split(split: Split, path: Path) -> None:
    """Write a split as a safetensors file, whole or not at all; equal splits give equal bytes.

    Raises UserError where `path` cannot be written.
    """
    from safetensors.torch import save

    digest = _sha256(split.images, split.labels)
    about = {"classes": split.classes, "source": split.source, "sha256": digest}
    tensors = {"images": split.images.contiguous(), "labels": split.labels.contiguous()}
    # One key only: safetensors writes several metadata keys in random order.
    contents = save(tensors, metadata={"split": json.dumps(about)})
    with files.atomic(path) as temporary:
        temporary.write_bytes(contents)


def read_split(path: Path) -> Split:
    """Read a split that save_split wrote, checked against its sha256.

    Raises UserError, with the file's name, where it is missing, cut short or altered.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} does not exist; {REDO}")
    try:
        with safe_open(str(path), framework="pt") as stored:
            about = json.loads(stored.metadata()["split"])
            # Copies: the stored tensors are maps of a file that may change later.
            images, labels = (stored.get_tensor(key).clone() for key in ("images", "labels"))
        split = Split(images, labels, tuple(map(str, about["classes"])), str(about["source"]))
        expected = about["sha256"]
    except UserError as error:
        raise UserError(f"{path}: {error}; {REDO}") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is cut short or no split file ({_line(error)}); {REDO}") from error
    if _sha256(images, labels) != expected:
        raise UserError(f"{path} was altered: its images do not match their sha256; {REDO}")
    return split


def load_split(directory: Path | str, name: str = "test") -> tuple[torch.Tensor, torch.Tensor]:
    """Load `directory`/`name`.safetensors: images float32 [N, C, H, W] in [0, 1], labels int64 [N].

    Raises UserError where read_split does.
    """
    split = read_split(Path(directory) / f"{name}.safetensors")
    return to_float(split.images), split.labels


def _sha256(images: torch.Tensor, labels: torch.Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(tensor.contiguous().flatten().numpy().data)
    return digest.hexdigest()


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(":")


def _existing(place: str) -> Path:
    path = Path(place).expanduser().absolute()
    if not path.exists():
        raise UserError(f"{place} does not exist; check data.root or ADVPRUNE_DATA")
    return path


def _cut(split: Split, name: str, fraction: float, seed: int) -> tuple[Split, Split]:
    """Take `name` from `split`; every class must keep an image and have one to spare."""
    try:
        kept, taken = (split.pick(part) for part in stratified_split(split.labels, fraction, seed))
    except UserError as error:
        raise UserError(f"{split.source}: {name}_fraction cannot be used: {error}") from error
    before, after = (
        torch.bincount(part.labels, minlength=len(split.classes)) for part in (split, kept)
    )
    for label in ((before < 2) | (after < 1)).nonzero().flatten().tolist():
        raise UserError(
            f"{split.source}: class {split.classes[label]!r} has {before[label]} image(s), too "
            f"few to take {name}_fraction {fraction} away; a class needs at least 2"
        )
    return kept, taken


def _limited(split: Split, name: str, limit: int, seed: int) -> Split:
    if not 1 <= limit <= len(split.labels):
        count = len(split.labels)
        raise UserError(f"{name}_limit is {limit}, but {split.source} has {count} {name} images")
    return split.pick(stratified_subset(split.labels, limit, seed))


def _mixed(split: Split, seed: int) -> Split:
    """A split that lies class by class, interleaved; any other as it is."""
    in_turn = bool((split.labels.diff() >= 0).all())
    return split.pick(interleaved(split.labels, seed)) if in_turn else split


def _digits() -> Split:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
    names = tuple(str(digit) for digit in range(10))
    labels = torch.from_numpy(labels.astype(np.int64))
    return Split(torch.from_numpy(images), labels, names, "scikit-learn digits")


def _cifar10(place: str | None, cache: Path) -> dict[str, Split]:
    if not place:
        return _official(_downloaded(cache))
    path = _existing(place)
    if path.name == CIFAR10_FOLDER and path.is_dir():
        return _official(path.parent)
    if (path / CIFAR10_FOLDER).is_dir():
        return _official(path)
    archive = path / CIFAR10_ARCHIVE if path.is_dir() else path
    if archive.name == CIFAR10_ARCHIVE and archive.is_file():
        return _official(_unpacked(archive, cache))
    found = _image_folder(path, None)
    classes, shape = found["train"].classes, tuple(found["train"].images.shape[1:])
    if classes != CIFAR10_CLASSES:
        odd = ", ".join(sorted(set(classes) ^ set(CIFAR10_CLASSES)))
        raise UserError(f"{place}: not the ten classes of CIFAR-10; missing or unknown: {odd}")
    if shape != (3, 32, 32):
        raise UserError(f"{place}: CIFAR-10 is 32x32 RGB, but its images are {list(shape)}")
    if "test" not in found:
        raise UserError(f"{place}: no folder test/; CIFAR-10 comes with its own test images")
    return found


def _downloaded(cache: Path) -> Path:
    from torchvision.datasets import CIFAR10

    if not (cache / CIFAR10_FOLDER).is_dir():
        print(f"downloading CIFAR-10 (170 MB) from {CIFAR10.url} to {cache}", file=sys.stderr)
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # torchvision sets none: a dead proxy would hold us for ever
    try:
        CIFAR10(str(cache), download=True)
    except Exception as error:
        text = f"CIFAR-10 cannot be downloaded ({_line(error)}); {CIFAR10_WAYS}"
        raise UserError(text) from error
    finally:
        socket.setdefaulttimeout(patience)
    return cache


def _unpacked(archive: Path, cache: Path) -> Path:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    try:
        if not check_integrity(archive, CIFAR10.tgz_md5):
            raise UserError(f"{archive} is not the official archive (its md5 differs); get it anew")
        extract_archive(str(archive), str(cache))
    except OSError as error:
        raise UserError(f"cannot unpack {archive} into {cache}: {_line(error)}") from error
    return cache


def _official(root: Path) -> dict[str, Split]:
    """Read `root`/cifar-10-batches-py; these pickles are opened only after their md5 is checked."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    found = {}
    try:
        meta = (CIFAR10.meta["filename"], CIFAR10.meta["md5"])
        for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
            if not check_integrity(root / CIFAR10_FOLDER / name, md5):
                what = f"{root / CIFAR10_FOLDER / name} is missing or not the official file"
                raise UserError(f"{what} (by its md5); get CIFAR-10 anew")
        for name in ("train", "test"):
            stored = CIFAR10(str(root), train=name == "train")
            images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(stored.targets, dtype=torch.int64)
            what = "CIFAR-10 (official, by torchvision)"
            found[name] = Split(images, labels, CIFAR10_CLASSES, what)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot read {root / CIFAR10_FOLDER}: {_line(error)}") from error
    return found


def _image_folder(place: Path, size: int | None) -> dict[str, Split]:
    """Read train/, val/ and test/, those there are, of an image folder or of a tar of one."""
    pictures, folders = _pictures(place, size)
    _check_layout(place, pictures, folders)
    source = f"image folder {place.name}"
    if place.is_file():
        source += f" (sha256 {files.sha256_of(place)[:12]})"
    classes = sorted({kind for split, kind, _ in pictures if split == "train"})
    number = {kind: label for label, kind in enumerate(classes)}
    channels = max(len(image) for image in pictures.values())
    height, width = _one_size(place, pictures)
    found = {}
    for name in SPLITS:
        keys = sorted(key for key in pictures if key[0] == name)
        if keys:
            images = np.empty((len(keys), channels, height, width), np.uint8)
            for row, key in enumerate(keys):
                images[row] = pictures[key]  # a gray picture among RGB ones fills all three
            labels = torch.tensor([number[kind] for _, kind, _ in keys])
            found[name] = Split(torch.from_numpy(images), labels, tuple(classes), source)
    return found


def _pictures(place: Path, size: int | None) -> tuple[Pictures, set[tuple[str, ...]]]:
    """Decode every picture, and list the folders seen: splits (split,), classes (split, class)."""
    pictures: Pictures = {}
    folders: set[tuple[str, ...]] = set()
    try:
        with contextlib.closing(_walk(place)) as items:
            for parts, read in items:
                if any(part.startswith(".") for part in parts):
                    continue
                name = "/".join(parts)
                picture = read is not None and name.lower().endswith(SUFFIXES)
                if len(parts) + (read is None) > 3 or (picture and len(parts) < 3):
                    raise UserError(f"{place}: {name!r} is out of place in <split>/<class>/<file>")
                if read is None or len(parts) == 3:
                    folders.update((parts[:1], parts[:2]))
                if read and picture:
                    pictures[parts[0], parts[1], parts[2]] = _decode(place, name, read(), size)
    except BROKEN_ARCHIVE as error:
        what = "cannot be read" if place.is_dir() else "is no tar archive, cut short or corrupt"
        raise UserError(f"{place} {what}: {_line(error)}") from error
    return pictures, folders


def _walk(place: Path) -> Generator[Item, None, None]:
    """Yield what lies in train/, val/ and test/ of a folder or of a tar."""
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    text, off = f"reading {place.name}", not console.is_terminal
    if place.is_dir():
        for path in progress.track(_listing(place), text, console=console, disable=off):
            yield path.relative_to(place).parts, None if path.is_dir() else path.read_bytes
        return
    with progress.open(place, "rb", description=text, console=console, disable=off) as raw:
        yield from _walk_tar(place, raw)


def _listing(root: Path) -> list[Path]:
    """List all that lies down to <split>/<class>/<file>, following links."""
    level = [root / split for split in SPLITS if (root / split).is_dir()]
    found = list(level)
    for _ in range(2):
        level = [below for path in level if path.is_dir() for below in path.iterdir()]
        found += level
    return found


def _walk_tar(place: Path, raw: BinaryIO) -> Iterator[Item]:
    """Yield the members below at most one leading folder, in memory, refusing odd ones."""
    leading = set()
    with tarfile.open(fileobj=raw, mode="r:*") as archive:
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{place}: refused, its member {member.name!r} points outside it")
            start = 0 if path.parts[:1] and path.parts[0] in SPLITS else 1
            parts = path.parts[start:]
            if not parts or parts[0] not in SPLITS:
                continue
            leading.add(path.parts[:start])
            if len(leading) > 1:
                raise UserError(f"{place}: holds more than one image folder, see {member.name!r}")
            if member.isdir():
                yield parts, None
            elif member.isfile() and member.size <= LARGEST_FILE:
                yield parts, cast(BinaryIO, archive.extractfile(member)).read
            else:
                raise UserError(f"{place}: {member.name!r} is a link or larger than 256 MB")
        _check_end(cast(BinaryIO, archive.fileobj), archive.offset)


def _check_end(stream: BinaryIO, end: int) -> None:
    """Require zeros, and some, from `end` on: tarfile takes any damaged header for the end."""
    stream.seek(end)
    blocks = [block.count(0) == len(block) for block in iter(lambda: stream.read(1 << 20), b"")]
    if not blocks or not all(blocks):
        raise tarfile.ReadError("a member's header is damaged or the end is missing")


def _decode(place: Path, name: str, contents: bytes, size: int | None) -> Image:
    """Return uint8 [1 or 3, H, W], resized to `size` x `size` pixels if that is given."""
    from PIL import Image as PILImage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PILImage.DecompressionBombWarning)
            picture = PILImage.open(io.BytesIO(contents), formats=("PNG", "JPEG"))
        if picture.mode[0] in "IF":
            raise ValueError("more than 8 bits a pixel")  # PIL would clip, not scale them
        converted = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except (*BROKEN_IMAGE, PILImage.DecompressionBombError) as error:
        why = _line(error) if contents else "the file is empty"
        raise UserError(f"{place}: {name!r} is no image that can be used: {why}") from error
    if size is not None:
        converted = converted.resize((size, size), PILImage.Resampling.BILINEAR)
    pixels = np.asarray(converted)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _check_layout(place: Path, pictures: Pictures, folders: set[tuple[str, ...]]) -> None:
    """Require train/, pictures in every folder seen, and no class that train/ does not have."""
    filled = {key[:depth] for key in pictures for depth in (1, 2)}
    if ("train",) not in folders:
        raise UserError(f"{place}: has no folder train/ with a folder of PNG or JPEG files a class")
    for folder in sorted(folders - filled, key=lambda folder: (-len(folder), folder)):
        raise UserError(f"{place}: folder {'/'.join(folder)!r} holds no PNG or JPEG pictures")
    for split, kind, _ in sorted(pictures):
        if ("train", kind) not in filled:
            raise UserError(f"{place}: class {kind!r} of {split}/ is not among those of train/")


def _one_size(place: Path, pictures: Pictures) -> tuple[int, int]:
    """Return the (height, width) that all pictures have; UserError names the odd one."""
    sizes = Counter(image.shape[1:] for image in pictures.values())
    height, width = sizes.most_common(1)[0][0]
    for key in sorted(pictures):
        found = pictures[key].shape[1:]
        if found != (height, width):
            raise UserError(
                f"{place}: {'/'.join(key)!r} is {found[1]}x{found[0]} pixels but most are "
                f"{width}x{height}; the imagefolder source resizes them if `size` is set"
            )
    return height, width
