"""DVC's quicker reader: what it reads is written as DVC itself would write it."""

from pathlib import Path

import pytest
import quick
from dvc.utils.serialize import _yaml, dumps_yaml

ROOT = Path(__file__).parent.parent
LOCK = {
    "schema": "2.0",
    "stages": {
        "attack@E-standard": {
            "cmd": "python stages/attack.py E --base standard --profile digits",
            "deps": [
                {
                    "path": "a long name with spaces, and more of them than a line holds: model.st",
                    "hash": "md5",
                    "md5": "0123456789012345678901234567890e",
                    "size": 719000,
                }
            ],
            "params": {
                "params.yaml": {
                    "prune.E": 1e-05,
                    "sweep.E": [1e-05, 0.0001, 1e-07, 1.5e300, 12, -0.5, 100.0],
                    "text": [
                        "8/255",
                        "010",
                        "on",
                        "yes",
                        "null",
                        "1e-05",
                        "2026-11-21",
                        "0x1f",
                        "",
                    ],
                    "others": [True, False, None, {}, []],
                }
            },
        }
    },
}


def test_what_is_read_and_written_again_is_the_same() -> None:
    text = dumps_yaml(LOCK)
    found = quick.plain(text, "some/dvc.lock")
    assert found == LOCK == quick.keeping(text, "some/dvc.lock")
    assert dumps_yaml(found) == text == dumps_yaml(quick.keeping(text, "dvc.lock"))


def test_the_lock_file_of_the_repository_is_read_alike() -> None:
    text = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    found = quick.plain(text, "dvc.lock")
    assert found == quick.keeping(text, "dvc.lock") and dumps_yaml(found) == text


def test_other_files_keep_their_comments() -> None:
    text = "# the manual\nprune:\n  E: 1.0e-2  # small weights\n"
    assert dumps_yaml(quick.plain(text, "params.yaml")) == text


def test_what_it_replaces_is_what_dvc_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_yaml, "parse_yaml_for_update", lambda text, path: asked.append(path) or {})
    (tmp_path / "dvc.lock").write_text(dumps_yaml(LOCK))
    with _yaml.modify_yaml(str(tmp_path / "dvc.lock")) as content:
        content["stages"] = {}
    assert asked == [str(tmp_path / "dvc.lock")]
