"""Files: written whole or not at all, and identified by hash."""

import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from advprune.core.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` on success, delete it on failure.

    Parent folders are made. Raises UserError where the folder cannot be written.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex[:8]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; "
            "check that the folder may be written to and that the disk has room"
        ) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with a stable key order (the order given) and no NaN."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes, or of a folder's relative names and bytes in sorted order."""
    digest = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for file in files:
        if "__pycache__" in file.parts:
            continue
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def fingerprint(*settings: Any, files: list[Path] | None = None) -> str:
    """Short hash of JSON-able settings, of the named files' contents and of this library's code.

    Names a folder in which unfinished work may be resumed: any change in what the work depends
    on gives another name, so work is never resumed under other settings.
    """
    library = Path(__file__).parent.parent
    parts = [json.dumps(settings, sort_keys=True, default=str), sha256_of(library)]
    parts += [sha256_of(file) for file in files or []]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
