"""Pictures in an image folder `<split>/<class>/<file>`, or in a tar of one, which is not unpacked.
In a folder without parts, `<class>/<file>`, all belong to one. What cannot be used is named."""

import contextlib
import io
import lzma
import tarfile
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from advprune.core.errors import UserError, first_line
from advprune.core.files import existing, sha256_of
from advprune.core.fit import Fit
from advprune.core.memory import bounded_memory
from advprune.core.progress import progress
from advprune.data.split import SPLITS, Split

PICTURES = (".png", ".jpg", ".jpeg")
# What may lie beside pictures, and is not read.
TEXTS = (".txt", ".md", ".csv", ".json", "license", "readme", "thumbs.db", "desktop.ini")
LARGEST_FILE = 1 << 28  # bytes of one picture: more than PIL accepts once decoded

Parts = tuple[str, ...]  # (split,), (split, class) or (split, class, file)
Read = Callable[[], bytes]
Item = tuple[Parts, Read | None]  # None: a folder
Pictures = dict[Parts, NDArray[np.uint8]]  # by (split, class, file): [1 or 3, H, W]


@bounded_memory()
def read_image_folder(root: str, size: int | None) -> dict[str, Split]:
    """Read train/, val/ and test/, those there are; pictures are resized to `size` x `size`.

    Images are grey where all pictures are. UserError on a layout or a picture that cannot be used.
    """
    place = existing(root)
    fit = None if size is None else Fit(resize=size, squash=True)
    source, found, folders = f"image folder {place.name}", Pictures(), list[Parts]()
    if place.is_file():
        source += f" (sha256 {sha256_of(place)[:12]})"
    try:
        items = _in_tar(place) if place.is_file() else _shown(place)
        with contextlib.closing(items):
            for parts, read in checked(place, items):
                if read is None:
                    folders.append(parts)
                else:
                    found[parts[0] or "train", *parts[1:]] = decode(place, parts, read(), fit)
    except (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        what = "is no tar archive, cut short or corrupt" if place.is_file() else "cannot be read"
        raise UserError(f"{place} {what}: {first_line(error)}") from error
    pictures = dict(sorted(found.items()))
    filled = {parts[:depth] for parts in pictures for depth in (1, 2)}
    for parts in sorted(folders, key=lambda parts: (-len(parts), parts)):
        if (parts[0] or "train", *parts[1:]) not in filled:
            raise UserError(f"{place}: folder {named(parts)!r} holds no PNG or JPEG pictures")
    classes = sorted({kind for part, kind, _ in pictures if part == "train"})
    if not classes:
        raise UserError(f"{place}: has no folder train/ with one folder of PNG or JPEG per class")
    for part, kind, _ in pictures:
        if kind not in classes:
            raise UserError(f"{place}: class {kind!r} of {part}/ is not among those of train/")
    images = stacked(place, pictures, "the imagefolder source resizes them if `size` is set")
    labels = torch.tensor([classes.index(kind) for _, kind, _ in pictures])
    counts = Counter(part for part, *_ in pictures)  # in the order of the pictures
    own = zip(images.split([*counts.values()]), labels.split([*counts.values()]), strict=True)
    return {
        part: Split(*pair, tuple(classes), source) for part, pair in zip(counts, own, strict=True)
    }


def in_folder(place: Path, only: str | None = None) -> Generator[Item, None, None]:
    """What lies in the parts of an image folder, or in one of them alone, down to the third level.
    Where there are no parts, what lies in the folder itself is of the part ''."""
    visible = [one.name for one in place.iterdir() if one.is_dir() and one.name[0] != "."]
    parted = any(name in SPLITS for name in visible)
    levels: list[tuple[Parts, Path]] = [
        ((name,), place / name) for name in visible if only in (None, name)
    ]
    if not parted:
        levels = [(("",), place)]
    for name in visible if parted else ():
        yield (name,), None
    for parts, folder in levels:  # which grows
        for one in folder.iterdir():
            inside = one.is_dir()
            yield (*parts, one.name), None if inside else partial(contents, one)
            if inside and len(parts) == 1:
                levels.append(((*parts, one.name), one))


def _shown(place: Path) -> Generator[Item, None, None]:
    """The same of all parts, with progress."""
    items = [*in_folder(place)]
    with progress(f"reading {place.name}, files", len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def contents(path: Path) -> bytes:
    """Of a file; UserError for a pipe, a device, or one that is too large for a picture."""
    if not path.is_file() or path.stat().st_size > LARGEST_FILE:
        raise UserError(f"{path} is no plain file of up to 256 MB")
    return path.read_bytes()


def _in_tar(place: Path) -> Generator[Item, None, None]:
    """The members below at most one leading folder, refusing all but plain files and folders."""
    leading, seen = set[Parts](), 0
    with (
        progress(f"reading {place.name}, bytes", place.stat().st_size) as advance,
        place.open("rb") as raw,
        tarfile.open(fileobj=raw, mode="r:*") as archive,
    ):
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{place}: refused, its member {member.name!r} points outside it")
            start = 0 if path.parts[:1] and path.parts[0] in SPLITS else 1
            parts = path.parts[start:]
            if not parts or (len(parts) == 1 and not member.isdir()):
                continue  # the leading folder, or a file beside the parts
            leading |= {path.parts[:start]} if parts[0] in SPLITS else set()
            if len(leading) > 1:
                raise UserError(f"{place}: holds more than one image folder, see {member.name!r}")
            if not (member.isdir() or (member.isfile() and member.size <= LARGEST_FILE)):
                raise UserError(f"{place}: {member.name!r} is a link or larger than 256 MB")
            reader = None if member.isdir() else cast(BinaryIO, archive.extractfile(member)).read
            yield (parts if parts[0] in SPLITS else path.parts), reader
            advance(raw.tell() - seen)
            seen = raw.tell()
        # tarfile takes any damaged header for the end, which is all zeros in a sound archive.
        end = cast(BinaryIO, archive.fileobj)
        end.seek(archive.offset)
        blocks = [block.count(0) == len(block) for block in iter(lambda: end.read(1 << 20), b"")]
        if not blocks or not all(blocks):
            raise tarfile.ReadError("a member's header is damaged or the end is missing")


def checked(place: Path, items: Iterable[Item]) -> Iterator[Item]:
    """The pictures among what lies at a place, and then all folders. UserError for visible files
    that are neither PNG nor JPEG, nor text, by their names, for what lies on another level, for
    folders that are no part, and for names that are no text or alike but for case or Unicode form.
    """
    folders, seen = set[Parts](), set[Parts]()
    for parts, read in items:
        name = named(parts)
        if any(part.startswith(".") for part in parts):
            continue
        if parts[0] not in ("", *SPLITS):
            raise UserError(
                f"{place}: {name!r} is not read; the parts are train, val and test; move it away"
            )
        folders |= {parts[:depth] for depth in (1, 2) if len(parts) > depth or read is None}
        if read is None and len(parts) < 3:
            continue
        if read is not None and name.lower().endswith(TEXTS):
            continue
        if read is None or len(parts) != 3:
            raise UserError(
                f"{place}: {name!r} is out of place in <split>/<class>/<file>; move it away"
            )
        if not name.lower().endswith(PICTURES):
            raise UserError(
                f"{place}: {name!r} is neither PNG nor JPEG by its name; convert or rename it, or "
                "take it out"
            )
        if parts in seen:
            raise UserError(f"{place}: holds {name!r} twice")
        seen.add(parts)
        yield parts, read
    known: dict[Parts, str] = {}
    for folder in sorted(folders):
        shown = (name := "/".join(folder)).encode("utf-8", "replace").decode()
        if name != shown or not shown.isprintable():
            raise UserError(f"{place}: the name of folder {shown!a} is no UTF-8 text; rename it")
        alike = tuple(unicodedata.normalize("NFKC", part).casefold() for part in folder)
        if (other := known.setdefault(alike, shown)) != shown:
            raise UserError(
                f"{place}: folders {other!r} and {shown!r} differ in case or Unicode form only; "
                "rename one"
            )
    yield from ((folder, None) for folder in folders)


def named(parts: Parts) -> str:
    """Where a picture lies, for a message."""
    return "/".join(parts).lstrip("/")


def stacked(place: Path, pictures: Pictures, remedy: str) -> torch.Tensor:
    """Pictures as uint8 [N, C, H, W]: a grey one among RGB fills all three. UserError where one has
    another size than most; `remedy` says what to do."""
    (most, _), *_ = Counter(picture.shape[1:] for picture in pictures.values()).most_common(1)
    for key, picture in pictures.items():
        if (size := picture.shape[1:]) != most:
            one, other = (f"{width}x{height}" for height, width in (size, most))
            raise UserError(
                f"{place}: {named(key)!r} is {one} pixels but most are {other}; {remedy}"
            )
    channels = max(map(len, pictures.values()))
    every = (np.broadcast_to(one, (channels, *most)) for one in pictures.values())
    return torch.from_numpy(np.stack(list(every)))


def decode(place: Path, parts: Parts, contents: bytes, fit: Fit | None = None) -> NDArray[np.uint8]:
    """Return uint8 [1 or 3, H, W], resized or cut by `fit` if that is given."""
    name = named(parts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture: Image.Image = Image.open(io.BytesIO(contents), formats=("PNG", "JPEG"))
        # PIL would clip such numbers, or leave their lower half out.
        if picture.mode[0] in "IF" or any(
            ";16" in str(tile) for tile in getattr(picture, "tile", ())
        ):
            raise ValueError("more than 8 bits a pixel")
        if getattr(picture, "n_frames", 1) > 1:
            raise ValueError("it is animated")
        picture = ImageOps.exif_transpose(picture)  # as it is meant to be seen
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            if picture.getchannel("A").getextrema() != (255, 255):
                raise ValueError("it is transparent in places; put it on a background")
        converted = picture.convert("L" if picture.mode in ("1", "L") else "RGB")
    except Exception as error:  # PIL raises many kinds
        why = first_line(error) if contents else "the file is empty"
        if isinstance(error, UnidentifiedImageError) and contents:
            why = "it is neither PNG nor JPEG"
        raise UserError(f"{place}: {name!r} is no image that can be used: {why}") from error
    pixels = np.asarray(fit(converted) if fit else converted)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
