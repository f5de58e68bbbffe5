"""Files: written whole or not at all, and identified by hash."""

import ctypes
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advprune.core.errors import UserError
from advprune.core.hub import downloaded, on_hub

if TYPE_CHECKING:
    import pandas as pd

WRITING = Path("checkpoints/writing")  # temporary files of a pipeline
# What torch and safetensors say of a failed write, each with an error of its own kind.
FAILED = re.compile(r"RuntimeError: .*(inline_container|writ)|SafetensorError: .*I/O")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary file, or the name of a folder to be; it takes the place of `path` on
    success, whole, and is deleted on failure. Folders replace folders, and files files.

    Where there is a pipeline it lies in checkpoints/, which no stage depends on: what a killed
    process leaves there changes no result. Parent folders are made. UserError where the folder
    cannot be written.
    """
    temporary = path.with_name(name := f".{uuid.uuid4().hex[:8]}.{path.name}")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"cannot write {path}: it is a device or a pipe; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if Path("dvc.yaml").is_file() and path.absolute().is_relative_to(Path.cwd()):
            WRITING.mkdir(parents=True, exist_ok=True)
            if WRITING.stat().st_dev == path.parent.stat().st_dev:
                temporary = WRITING / name
        yield temporary
        for one in (temporary, *temporary.rglob("*")):
            _flush(one)
        if path.is_dir() and temporary.is_dir():
            swap(temporary, path)
        else:
            temporary.replace(path)
        _flush(path.parent)
    except Exception as error:
        said = " ".join((getattr(error, "strerror", None) or str(error)).split())[:200]
        if not (isinstance(error, OSError) or FAILED.match(f"{type(error).__name__}: {said}")):
            raise
        raise _unwritable(path, said) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def _unwritable(path: Path, why: str) -> UserError:
    check = "check that the folder may be written to and that the disk has room"
    return UserError(f"cannot write {path}: {why}; {check}")


def check_writable(path: Path, read: Collection[Path] = (), suffix: str = "") -> None:
    """UserError where no file can be written to `path`, it is one of those that are `read`, or ends
    otherwise: asked before the work that it is to hold. Parent folders are made."""
    if not path.name.endswith(suffix):
        raise UserError(f"cannot write {path}: name a file that ends in {suffix}")
    if path.resolve() in [one.resolve() for one in read]:
        raise UserError(f"cannot write {path}: it is read here; name another file")
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is a device or a pipe; name a file")
    trial = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise _unwritable(path, error.strerror or str(error)) from error


def _flush(place: Path) -> None:
    """Have a file, or the names in a folder, written to the disk."""
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(one: Path, other: Path) -> None:
    """Exchange two folders, on Linux in a single step."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", lambda *_: 1)
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) != 0:
        other.rename(aside := one.with_name(f"{one.name}.old"))
        one.rename(other)
        aside.rename(one)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Inside, no other process works in `folder`; UserError where one does. Within a process, and
    in those that it forks, it may be locked again."""
    place = folder.with_name(f"{folder.name}.lock")
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), place.stat())
        except OSError:
            mine = False  # another process has it, or has just ended and removed the file
        if not mine:
            raise UserError(
                f"another process is at the same work ({folder}); try when it has ended"
            )
        try:
            yield
        finally:
            place.unlink(missing_ok=True)


def plain_file(path: Path, what: str = "file", remedy: str = "check the path") -> Path:
    """The path of a plain file; UserError where there is none. A pipe is none."""
    with suppress(OSError):  # a name that is too long
        if path.is_file():
            return path
    raise UserError(f"there is no {what} {path}; {remedy}")


def existing(root: str, named: str = "data.root or ADVPRUNE_DATA") -> Path:
    """The absolute path of a folder or file; UserError, which says what `named` it, if there is
    none."""
    fault = "does not exist"
    with suppress(OSError, RuntimeError):  # a name that is too long, a user that is unknown
        path = Path(root).expanduser().absolute()
        if path.is_dir() or path.is_file():
            return path
        fault = "is neither a folder nor a file" if path.exists() else fault
    raise UserError(f"{root} {fault}; check {named}")


def referenced(reference: str) -> Path:
    """The file that a path, `package:<package>/<file>` or `hf:<owner>/<name>` (core/hub.py) names;
    UserError where there is none. No package is imported to find its file."""
    if on_hub(reference):
        return downloaded(reference)
    if not reference.startswith("package:"):
        path = Path(reference)
        with suppress(RuntimeError):  # a user that is unknown
            path = path.expanduser()
        return plain_file(path, "weights file", "check `model.weights.path`")
    package, _, inside = reference.removeprefix("package:").partition("/")
    if not package.isidentifier():  # to find a package in a package, Python would import the outer
        raise UserError(f"{reference}: write package:<package>/<file>, one package by its name")
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"{reference}: package {package!r} is not installed; pip install {package}")
    root = Path(found.submodule_search_locations[0]).resolve()
    path = (root / inside).resolve()
    if not (path.is_relative_to(root) and path.is_file()):
        raise UserError(f"{reference}: the installed package {package!r} has no file {inside!r}")
    return path


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a stable key order (the order given) and no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_table(path: Path, table: "pd.DataFrame") -> None:
    """Write a table, without its index, as parquet, or as CSV where the path ends so."""
    with atomic(path) as temporary:
        write = table.to_csv if path.suffix == ".csv" else table.to_parquet
        write(temporary, index=False)


def read_json(path: Path) -> Any:
    """What a JSON file holds; UserError where it is missing, no plain file or damaged."""
    try:
        return json.loads(plain_file(path, remedy="run `dvc repro`").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); run `dvc repro`") from error


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes, or of the relative names and bytes of all files in a folder,
    links followed. UserError where one cannot be read."""
    digest = hashlib.sha256()
    try:
        for file in sorted(_below(path)) if path.is_dir() else [path]:
            if path.is_dir():
                digest.update(os.fsencode(file.relative_to(path)) + b"\0")
                digest.update(f"{file.stat().st_size}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error
    return digest.hexdigest()


def _below(folder: Path) -> Iterator[Path]:
    """All files in a folder but Python's caches; one that a link leads back to is taken once."""

    def fail(error: OSError) -> None:
        raise error

    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(place).stat()
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (path for name in names if (path := Path(place, name)).is_file())


PACKAGES = (
    *("numpy", "scipy", "pillow", "torch", "torchvision", "timm", "torch-pruning", "torchattacks"),
    *("pyautoattack", "onnxruntime"),
)


def fingerprint(*settings: Any, files: list[Path] | None = None) -> str:
    """Short hash of JSON-able settings, of the named files' contents, of this library's code and of
    the versions of what computes: names unfinished work by all that it depends on."""
    library = Path(__file__).parent.parent
    parts = [json.dumps(settings, sort_keys=True, default=str), sha256_of(library), sys.version]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            parts.append(f"{package} {version(package)}")
    parts += [sha256_of(file) for file in files or []]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
