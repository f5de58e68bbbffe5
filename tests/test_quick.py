"""DVC's quicker way with YAML: what it reads and writes is what DVC itself would."""

import io
from collections import OrderedDict
from pathlib import Path
from typing import Any

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


def written(data: Any) -> str:
    stream = io.StringIO()
    quick.write(data, stream)
    return stream.getvalue()


def test_what_is_read_and_written_again_is_the_same() -> None:
    text = dumps_yaml(LOCK)
    found = quick.read_to_write(text, "some/dvc.lock")
    assert found == LOCK == quick.keeping(text, "some/dvc.lock")
    assert written(found) == text == dumps_yaml(quick.keeping(text, "dvc.lock"))
    assert quick.read(text, "dvc.lock") == LOCK  # after it was written, from memory


def test_stages_that_change_come_and_go_are_written_as_by_dvc() -> None:
    lock = quick.read_to_write((ROOT / "dvc.lock").read_text(encoding="utf-8"), "dvc.lock")
    for change in range(4):
        first, second, *_ = lock["stages"]
        lock["stages"][second] = OrderedDict(lock["stages"][second], cmd=f"python {change}")
        lock["stages"][f"new@{change}"] = {"outs": [OrderedDict(path="a: b", size=change)]}
        del lock["stages"][first]
        text = written(lock)
        assert text == dumps_yaml(lock)
        lock = quick.read_to_write(text, "dvc.lock")
        assert lock == quick.parse(text, "dvc.lock")


def test_what_was_read_may_be_changed() -> None:
    text = dumps_yaml(LOCK)
    quick.read(text, "dvc.lock")["stages"].clear()
    assert quick.read(text, "dvc.lock") == LOCK
    assert len(quick.parsed) <= quick.LATEST


@pytest.mark.parametrize("data", [{}, {"schema": "2.0"}, {"schema": "2.0", "stages": {}}, [1, "a"]])
def test_data_of_another_form_are_left_to_dvc(data: Any) -> None:
    assert written(data) == dumps_yaml(data)


def test_the_lock_file_of_the_repository_is_read_alike() -> None:
    text = (ROOT / "dvc.lock").read_text(encoding="utf-8")
    found = quick.read_to_write(text, "dvc.lock")
    assert found == quick.keeping(text, "dvc.lock") and written(found) == text


def test_other_files_keep_their_comments() -> None:
    text = "# the manual\nprune:\n  E: 1.0e-2  # small weights\n"
    assert written(quick.read_to_write(text, "params.yaml")) == text
    assert written(quick.read(text, "params.yaml", "rt")) == text


def test_what_it_replaces_is_what_dvc_uses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    path = str(tmp_path / "dvc.lock")
    Path(path).write_text(dumps_yaml(LOCK))

    def parse(text: str, path: str, typ: str = "safe") -> Any:
        asked.append(path)
        return quick.read(text, path)

    monkeypatch.setattr(_yaml, "parse_yaml_for_update", parse)
    monkeypatch.setattr(_yaml, "parse_yaml", parse)
    monkeypatch.setattr(_yaml, "_dump", lambda data, stream: asked.append("written"))
    _yaml.load_yaml(path)
    with _yaml.modify_yaml(path) as content:
        content["stages"] = {}
    assert asked == [path, path, "written"]


def test_what_is_read_again_and_again_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []

    def parse(text: str, path: str) -> Any:
        parsed.append(text)
        return _yaml.parse_yaml(text, path)

    monkeypatch.setattr(quick, "parse", parse)
    text = dumps_yaml({"read": "often"})
    for other in range(2 * quick.LATEST):
        quick.read(text, "dvc.lock")
        quick.read(f"other: {other}", "other.yaml")
    assert parsed.count(text) == 1
    assert len(parsed) == 1 + 2 * quick.LATEST
