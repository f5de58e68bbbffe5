"""DVC with a quicker way with YAML files.

    python stages/quick.py repro

After every stage DVC reads the whole of dvc.lock by a parser that keeps comments and layout, to
write it anew: over two seconds each for a hundred stages. dvc.lock has no comments, and its layout
is DVC's own; so here it is read as plain YAML, and of what is written only stages that have changed
are put into words. A file that is read again unchanged is not parsed again. What is written is the
same.
"""

import io
import pickle
import sys
from pathlib import Path
from typing import Any, TextIO

from dvc.cli import main
from dvc.utils.serialize import _yaml

keeping, parse, dump = _yaml.parse_yaml_for_update, _yaml.parse_yaml, _yaml._dump
LATEST = 8  # texts that are remembered
parsed: dict[str, bytes] = {}  # by text: its content, pickled, for whoever reads it may change it
worded: dict[str, str] = {}  # by a stage's name and entry in dvc.lock: their text


def read(text: str, path: str, typ: str = "safe") -> Any:
    """The content of a YAML file; with its comments where they are asked for."""
    if typ != "safe":
        return parse(text, path, typ)
    content = parsed.get(text)
    if content is None:
        content = pickle.dumps(parse(text, path))
    _remember(text, content)
    return pickle.loads(content)


def read_to_write(text: str, path: str) -> Any:
    """The content of a YAML file; with its comments where it may have any."""
    return read(text, path) if Path(path).name == "dvc.lock" else keeping(text, path)


def write(data: Any, stream: TextIO) -> None:
    """`data` as YAML, as DVC writes it."""
    if type(data) is not dict or list(data) != ["schema", "stages"] or not data["stages"]:
        dump(data, stream)
        return
    data = _plain(data)
    entries = [_worded(name, entry) for name, entry in data["stages"].items()]
    text = _text({"schema": data["schema"]}) + "stages:\n" + "".join(entries)
    _remember(text, pickle.dumps(data))
    stream.write(text)


def _worded(name: str, entry: Any) -> str:
    """A stage's lines in dvc.lock."""
    if (key := repr((name, entry))) not in worded:
        worded[key] = _text({"stages": {name: entry}}).removeprefix("stages:\n")
    return worded[key]


def _text(data: Any) -> str:
    stream = io.StringIO()
    dump(data, stream)
    return stream.getvalue()


def _remember(text: str, content: bytes) -> None:
    """Keep what was read or written last."""
    parsed.pop(text, None)
    parsed[text] = content
    for old in list(parsed)[:-LATEST]:
        del parsed[old]


def _plain(data: Any) -> Any:
    """Nested dicts and lists of no other kind, as they are read back."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(value) for value in data] if isinstance(data, list) else data


if __name__ == "__main__":
    _yaml.parse_yaml_for_update, _yaml.parse_yaml, _yaml._dump = read_to_write, read, write
    sys.exit(main(sys.argv[1:]))
