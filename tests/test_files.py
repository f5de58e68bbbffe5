"""Files are known by content."""

import os
import shutil
from pathlib import Path

import pytest

from advprune.core import files
from advprune.core.errors import UserError
from advprune.core.files import fingerprint, sha256_of, write_json


def test_a_number_that_is_none_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"accuracy": float("nan")})
    assert not list(tmp_path.iterdir())


def test_hashes_follow_content_and_names(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    one = sha256_of(tmp_path / "a")
    (tmp_path / "a" / "__pycache__").mkdir()
    (tmp_path / "a" / "__pycache__" / "x.pyc").write_text("2")
    assert sha256_of(tmp_path / "a") == one
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert sha256_of(tmp_path / "a") != one
    assert fingerprint({"b": 1, "a": 2}) == fingerprint({"a": 2, "b": 1}) != fingerprint({"a": 2})


def test_hashes_follow_links_and_tell_names_from_contents(tmp_path):
    """A data set behind links is known by what lies there; a link back does no harm."""
    folder, one = tmp_path / "data", tmp_path / "one"
    folder.mkdir()
    one.mkdir()
    (one / "x").write_text("1")
    (folder / "train").symlink_to(one)
    (folder / "loop").symlink_to(folder)
    (folder / os.fsdecode(b"\xff")).write_text("")
    before = sha256_of(folder)
    (one / "x").write_text("2")
    assert sha256_of(folder) != before
    found = set()
    for name, contents in (("ab", "c"), ("a", "bc"), ("abc", "")):
        (place := tmp_path / f"of {name}").mkdir()
        (place / name).write_text(contents)
        found.add(sha256_of(place))
    assert len(found) == 3
    with pytest.raises(UserError, match=r"cannot read .*absent"):
        sha256_of(tmp_path / "absent")


def test_the_key_of_unfinished_work_follows_every_module_and_version(tmp_path, monkeypatch):
    library = tmp_path / "advprune"
    shutil.copytree(Path(files.__file__).parent.parent, library)
    monkeypatch.setattr(files, "__file__", str(library / "core" / "files.py"))
    keys = {fingerprint(1)}
    modules = sorted(library.rglob("*.py"))
    for module in modules:
        module.write_text(module.read_text() + "# changed\n")
        keys.add(fingerprint(1))
    monkeypatch.setattr(files, "version", lambda package: "0")
    keys.add(fingerprint(1))
    assert len(modules) > 100 and len(keys) == len(modules) + 2
