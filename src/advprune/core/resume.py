"""Long work that survives a kill: finished parts are kept until the whole is done."""

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from advprune.core.distributed import from_main, is_main
from advprune.core.files import atomic, fingerprint, locked

if TYPE_CHECKING:  # it takes a third of a second, which stages without tables can spare
    import pandas as pd

Kept = TypeVar("Kept")
Noted = tuple[torch.Tensor, dict[str, Any]]  # a tensor and facts about it, which JSON can hold


class Parts:
    """Finished parts of one piece of work, in a folder named by everything it depends on.

    Under torchrun the first process keeps them and reads them back, for all.
    """

    def __init__(self, root: Path, *settings: Any, files: list[Path]) -> None:
        self.folder = root / fingerprint(*settings, files=files)
        self.lock = ExitStack()
        if is_main():
            self.lock.enter_context(locked(self.folder))

    def frame(self, name: str, compute: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
        """The table `name`: read back if it was finished before, else computed, kept and read
        back, so that a column of text is of the same kind whoever computed it."""
        import pandas as pd

        path = self.folder / f"{name}.parquet"
        if (kept := from_main(lambda: _read(path, pd.read_parquet))) is not None:
            return kept
        table = compute()
        if is_main():
            with atomic(path) as temporary:
                table.to_parquet(temporary, index=False)
        return from_main(lambda: pd.read_parquet(path))

    def tensor(self, name: str, compute: Callable[[], Noted]) -> Noted:
        """The tensor `name` and the facts that are noted beside it, likewise."""

        def noted(path: Path) -> Noted:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("value"), json.loads(file.metadata()["facts"])

        path = self.folder / f"{name}.safetensors"
        if (kept := from_main(lambda: _read(path, noted))) is not None:
            return kept
        value, facts = compute()
        if is_main():
            with atomic(path) as temporary:
                about = {"facts": json.dumps(facts)}
                save_file({"value": value.contiguous()}, temporary, metadata=about)
        return value, facts

    def discard(self) -> None:
        """The whole is done: drop the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()


def _read(path: Path, read: Callable[[Path], Kept]) -> Kept | None:
    """What a file keeps; None where there is none. A damaged file is removed."""
    try:
        return read(path) if path.is_file() else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        path.unlink()
        return None
