"""An image folder `<split>/<class>/<file>`, or a tar of one that is read in memory. In a folder
without parts, `<class>/<file>`, all is train.

Nothing is unpacked, and every picture that cannot be used is named.
"""

import contextlib
import io
import lzma
import tarfile
import unicodedata
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Generator
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

SUFFIXES = (".png", ".jpg", ".jpeg")
# Pictures and other inputs that PIL does not know by their names.
OTHERS = ".heic .heif .svg .svgz .jxl .exr .raw .dng .cr2 .nef .arw .npy .npz .dcm .mp4 .avi .mov"
MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8", b"II*\0", b"MM\0*")
ALIKE = ("valid", "validation", "dev", "training", "testing")  # names that others give the parts
LARGEST_FILE = 1 << 28  # bytes of one picture: more than PIL accepts once decoded

Pictures = dict[tuple[str, ...], NDArray[np.uint8]]  # (split, class, file): [1 or 3, H, W]
Folders = set[tuple[str, ...]]  # (split,) and (split, class)
# Path parts below the image folder, and how to read the file; None for a folder.
Item = tuple[tuple[str, ...], Callable[[], bytes] | None]


@bounded_memory()
def read_image_folder(root: str, size: int | None) -> dict[str, Split]:
    """Read train/, val/ and test/, those there are; pictures are resized to `size` x `size`.

    Images are grey where all pictures are. UserError on a layout or a picture that cannot be used.
    """
    place = existing(root)
    fit = None if size is None else Fit(resize=size, squash=True)
    pictures = read_pictures(place, fit)
    images = stacked(place, pictures, "the imagefolder source resizes them if `size` is set")
    source = f"image folder {place.name}"
    if place.is_file():
        source += f" (sha256 {sha256_of(place)[:12]})"
    classes = sorted({kind for split, kind, _ in pictures if split == "train"})
    labels = torch.tensor([classes.index(kind) for _, kind, _ in pictures])
    parts, counts = np.unique([split for split, _, _ in pictures], return_counts=True)
    rows = zip(images.split(counts.tolist()), labels.split(counts.tolist()), strict=True)
    return {
        str(part): Split(*own, tuple(classes), source)
        for part, own in zip(parts, rows, strict=True)  # pictures are sorted by part
    }


def stacked(place: Path, pictures: Pictures, remedy: str) -> torch.Tensor:
    """Pictures as uint8 [N, C, H, W]: a grey one among RGB fills all three. UserError where one has
    another size than most; `remedy` says what to do."""
    (most, _), *_ = Counter(picture.shape[1:] for picture in pictures.values()).most_common(1)
    for key, picture in pictures.items():
        if (size := picture.shape[1:]) != most:
            one, other = (f"{width}x{height}" for height, width in (size, most))
            raise UserError(
                f"{place}: {'/'.join(key)!r} is {one} pixels but most are {other}; {remedy}"
            )
    channels = max(map(len, pictures.values()))
    every = (np.broadcast_to(one, (channels, *most)) for one in pictures.values())
    return torch.from_numpy(np.stack(list(every)))


def read_pictures(place: Path, fit: Fit | None) -> Pictures:
    """Decode every picture, sorted by split, class and file name, and check the layout."""
    pictures: Pictures = {}
    folders: Folders = set()
    others: list[str] = []  # pictures of formats that are not read
    try:
        walk = _from_folder if place.is_dir() else _from_tar
        with contextlib.closing(walk(place)) as items:
            for parts, read in items:
                if any(part.startswith(".") for part in parts):
                    continue
                name = "/".join(parts)
                picture = read is not None and name.lower().endswith(SUFFIXES)
                if len(parts) + (read is None) > 3 or (picture and len(parts) < 3):
                    raise UserError(f"{place}: {name!r} is out of place in <split>/<class>/<file>")
                if read is None or len(parts) == 3:
                    folders.update((parts[:1], parts[:2]))
                if read and not picture:
                    contents = b"" if is_other(name) else read()
                    bitmap = contents[:2] == b"BM"
                    bitmap = bitmap and contents[2:6] == len(contents).to_bytes(4, "little")
                    if is_other(name) or bitmap or contents.startswith(MAGIC):
                        others.append(name)
                elif read:
                    if parts in pictures:
                        raise UserError(f"{place}: holds {name!r} twice")
                    pictures[parts[0], parts[1], parts[2]] = decode(place, name, read(), fit)
    except (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        what = "cannot be read" if place.is_dir() else "is no tar archive, cut short or corrupt"
        raise UserError(f"{place} {what}: {first_line(error)}") from error
    if others:
        raise UserError(
            f"{place}: {len(others)} pictures are neither PNG nor JPEG by their names, such as "
            f"{min(others)!r}; convert or rename them, or take them out"
        )
    filled = {key[:depth] for key in pictures for depth in (1, 2)}
    if ("train",) not in folders:
        raise UserError(f"{place}: has no folder train/ with one folder of PNG or JPEG per class")
    check_names(place, folders)
    for folder in sorted(folders - filled, key=lambda folder: (-len(folder), folder)):
        raise UserError(f"{place}: folder {'/'.join(folder)!r} holds no PNG or JPEG pictures")
    for split, kind, _ in sorted(pictures):
        if ("train", kind) not in filled:
            raise UserError(f"{place}: class {kind!r} of {split}/ is not among those of train/")
    return dict(sorted(pictures.items()))


def check_names(place: Path, folders: Folders) -> None:
    """UserError where names of classes are no text, or the same but for case or Unicode form."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    for folder in sorted(folders):
        shown = "/".join(folder).encode("utf-8", "replace").decode()
        if "/".join(folder) != shown or not shown.isprintable():
            raise UserError(f"{place}: the name of folder {shown!a} is no UTF-8 text; rename it")
        alike = tuple(unicodedata.normalize("NFKC", part).casefold() for part in folder)
        if (other := known.setdefault(alike, folder)) != folder:
            raise UserError(
                f"{place}: folders {'/'.join(other)!r} and {shown!r} differ in case or "
                "Unicode form only; rename one"
            )


def is_other(name: str) -> bool:
    """Whether a file is a picture by its name, of a format that is not read."""
    suffix = "." + name.lower().rpartition(".")[2]
    known = suffix in Image.registered_extensions() or suffix in OTHERS.split()
    return known and suffix not in SUFFIXES


def _check_part(place: Path, name: str) -> None:
    """UserError where a folder beside train/ would be left out because of its name."""
    if name not in SPLITS and name.casefold() in (*SPLITS, *ALIKE):
        raise UserError(f"{place}: folder {name!r} is not read; the parts are train, val and test")


def _from_folder(place: Path) -> Generator[Item, None, None]:
    """All that lies down to <split>/<class>/<file>, following links; <class>/<file> is train."""
    for path in place.iterdir():
        if path.is_dir():
            _check_part(place, path.name)
    if flat := not any((place / split).is_dir() for split in SPLITS):
        yield ("train",), None
    patterns = [split + below for split in SPLITS for below in ("", "/*", "/*/*")]
    paths = [path for one in (("*", "*/*") if flat else patterns) for path in place.glob(one)]
    with progress(f"reading {place.name}, files", len(paths)) as advance:
        for path in paths:
            parts = ("train",) * flat + path.relative_to(place).parts
            plain = path.is_file() and path.stat().st_size <= LARGEST_FILE  # no pipe, no device
            if path.exists() and not (plain or path.is_dir()):
                raise UserError(f"{place}: {'/'.join(parts)!r} is no plain file of up to 256 MB")
            yield parts, None if path.is_dir() else path.read_bytes
            advance(1)


def _from_tar(place: Path) -> Generator[Item, None, None]:
    """The members below at most one leading folder, refusing all but plain files and folders."""
    leading = set()
    size = place.stat().st_size
    with (
        progress(f"reading {place.name}, bytes", size) as advance,
        place.open("rb") as raw,
        tarfile.open(fileobj=raw, mode="r:*") as archive,
    ):
        seen = 0
        for member in archive:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{place}: refused, its member {member.name!r} points outside it")
            start = 0 if path.parts[:1] and path.parts[0] in SPLITS else 1
            parts = path.parts[start:]
            if not parts or parts[0] not in SPLITS:
                loose = len(path.parts) == 3 and member.name.lower().endswith(SUFFIXES)
                for name in (*parts[:1], *path.parts[: int(loose)]):
                    _check_part(place, name)
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
            advance(raw.tell() - seen)
            seen = raw.tell()
        # tarfile takes any damaged header for the end, which is all zeros in a sound archive.
        end = cast(BinaryIO, archive.fileobj)
        end.seek(archive.offset)
        blocks = [block.count(0) == len(block) for block in iter(lambda: end.read(1 << 20), b"")]
        if not blocks or not all(blocks):
            raise tarfile.ReadError("a member's header is damaged or the end is missing")


def decode(place: Path, name: str, contents: bytes, fit: Fit | None = None) -> NDArray[np.uint8]:
    """Return uint8 [1 or 3, H, W], resized or cut by `fit` if that is given."""
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
