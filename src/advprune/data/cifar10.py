"""CIFAR-10: the official files through torchvision, or the same pictures as an image folder.

The official files are pickles; torchvision opens them only after it has checked their md5.
"""

import socket
import sys
from pathlib import Path

import torch

from advprune.core.errors import UserError, first_line
from advprune.core.files import existing
from advprune.data.imagefolder import read_image_folder
from advprune.data.split import Split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
WAYS = (
    "to provide it, (1) run once with internet access, (2) put it on disk, as "
    f"{FOLDER}/, as {ARCHIVE} or as an image folder or tar of one, and set "
    "profiles.<profile>.data.root, or (3) set the environment variable ADVPRUNE_DATA to that "
    "place; `profile: digits` needs no such data"
)


def read_cifar10(place: str | None, cache: Path) -> dict[str, Split]:
    """Train and test (and val, where a folder has it) from `place`, where there is one, else
    downloaded to `cache`. UserError where the files are not those of CIFAR-10."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    if place is None:
        if not (cache / FOLDER).is_dir():
            print(f"downloading CIFAR-10 (170 MB) from {CIFAR10.url} to {cache}", file=sys.stderr)
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)  # torchvision sets none: a dead proxy would hold us forever
        try:
            CIFAR10(str(cache), download=True)
        except Exception as error:
            text = f"CIFAR-10 cannot be downloaded ({first_line(error)}); {WAYS}"
            raise UserError(text) from error
        finally:
            socket.setdefaulttimeout(patience)
        return _official(cache)
    path = existing(place)
    root = path.parent if path.name == FOLDER else path
    if (root / FOLDER).is_dir():
        return _official(root)
    archive = path / ARCHIVE if path.is_dir() else path
    if archive.name == ARCHIVE and archive.is_file():
        try:
            if not check_integrity(archive, CIFAR10.tgz_md5):
                raise UserError(f"{archive} is not the official archive (its md5 differs)")
            extract_archive(str(archive), str(cache))
        except OSError as error:
            raise UserError(f"cannot unpack {archive} into {cache}: {first_line(error)}") from error
        return _official(cache)
    found = read_image_folder(place, None)
    classes, shape = found["train"].classes, found["train"].shape
    if classes != CLASSES:
        odd = ", ".join(sorted(set(classes) ^ set(CLASSES)))
        raise UserError(f"{place}: not the ten classes of CIFAR-10; missing or unknown: {odd}")
    if shape != (3, 32, 32):
        raise UserError(f"{place}: CIFAR-10 is 32x32 RGB, but its images are {list(shape)}")
    if "test" not in found:
        raise UserError(f"{place}: no folder test/; CIFAR-10 comes with its own test images")
    return found


def _official(root: Path) -> dict[str, Split]:
    """Read `root`/cifar-10-batches-py."""
    from torchvision.datasets import CIFAR10

    found = {}
    try:
        for name in ("train", "test"):
            stored = CIFAR10(str(root), train=name == "train")
            images = torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous()
            labels = torch.tensor(stored.targets, dtype=torch.int64)
            found[name] = Split(images, labels, CLASSES, "CIFAR-10 (official, by torchvision)")
    except (RuntimeError, OSError) as error:
        wrong = "files are missing, unreadable or not the official ones (by their md5)"
        raise UserError(f"{root / FOLDER}: {wrong}; get CIFAR-10 again") from error
    return found
