"""Long work that survives a kill: finished parts are kept until the whole is done.

Processes that work together compute a part together, and the first of them keeps it; what one has
kept of its own turn is read by that one, for all.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from advprune.core.distributed import barrier, first_found, is_main
from advprune.core.files import atomic, fingerprint


class Parts:
    """Finished parts of one piece of work, in a folder named by everything it depends on."""

    def __init__(self, root: Path, *settings: Any, files: list[Path]) -> None:
        self.folder = root / fingerprint(*settings, files=files)

    def frame(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table `name`: read back if it was finished before, else computed and kept.

        Read back in both cases, so that a column of text is of the same kind whoever computed it.
        """
        path = self.folder / f"{name}.parquet"
        kept = first_found(path.is_file(), lambda: pd.read_parquet(path))
        if kept is not None:
            return kept
        table = compute()
        if not is_main():
            return table
        with atomic(path) as temporary:
            table.to_parquet(temporary, index=False)
        return pd.read_parquet(path)

    def tensor(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor `name`, likewise."""
        return self.tensors(name, lambda: {"value": compute()})["value"]

    def tensors(
        self, name: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Several tensors under one `name`, likewise."""
        path = self.folder / f"{name}.safetensors"
        kept = first_found(path.is_file(), lambda: _read(path))
        if kept is not None:
            return kept
        values = compute()
        if is_main():
            with atomic(path) as temporary:
                save_file({key: value.contiguous() for key, value in values.items()}, temporary)
        return values

    def discard(self) -> None:
        """The whole is done, by all processes: drop the parts."""
        barrier()
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of a file; a damaged one is removed."""
    try:
        return load_file(path)
    except SafetensorError:
        path.unlink()
        return None
