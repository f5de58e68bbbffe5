"""Long work that survives a kill: finished parts are kept until the whole is done."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from advprune.core.files import atomic, fingerprint


class Parts:
    """Finished parts of one piece of work, in a folder named by everything it depends on."""

    def __init__(self, root: Path, *settings: Any, files: list[Path]) -> None:
        self.folder = root / fingerprint(*settings, files=files)

    def frame(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table `name`: read back if it was finished before, else computed and kept."""
        path = self.folder / f"{name}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        table = compute()
        with atomic(path) as temporary:
            table.to_parquet(temporary, index=False)
        return table

    def tensor(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The tensor `name`, likewise."""
        return self.tensors(name, lambda: {"value": compute()})["value"]

    def tensors(
        self, name: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Several tensors under one `name`, likewise."""
        path = self.folder / f"{name}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError:
                path.unlink()
        values = compute()
        with atomic(path) as temporary:
            save_file({key: value.contiguous() for key, value in values.items()}, temporary)
        return values

    def discard(self) -> None:
        """The whole is done: drop the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)
