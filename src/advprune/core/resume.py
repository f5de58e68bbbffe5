"""Long work that survives a kill: finished parts are kept until the whole is done."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from advprune.core.ahead import ahead
from advprune.core.distributed import from_main, is_main
from advprune.core.files import atomic, fingerprint, locked
from advprune.core.progress import progress

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
        """The table `name`: computed and kept unless it was finished before; read back in any case,
        so that a column of text is of the same kind whoever computed it."""
        import pandas as pd

        def write(table: pd.DataFrame, path: Path) -> None:
            table.to_parquet(path, index=False)

        return self._kept(f"{name}.parquet", compute, pd.read_parquet, write)

    def frames(
        self, what: str, jobs: "Mapping[str, Callable[[], pd.DataFrame]]"
    ) -> "dict[str, pd.DataFrame]":
        """The tables of independent jobs, by name, computed on all cores. what: shown meanwhile."""
        kept = {name: partial(self.frame, name, job) for name, job in jobs.items()}
        ahead(what, [*kept.values()])
        tables = {}
        with progress(what, len(kept)) as advance:
            for name, table in kept.items():
                tables[name] = table()
                advance(1)
        return tables

    def tensor(self, name: str, compute: Callable[[], Noted]) -> Noted:
        """The tensor `name` and the facts that are noted beside it, likewise."""

        def read(path: Path) -> Noted:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor("value"), json.loads(file.metadata()["facts"])

        def write(noted: Noted, path: Path) -> None:
            value, facts = noted
            save_file({"value": value.contiguous()}, path, metadata={"facts": json.dumps(facts)})

        return self._kept(f"{name}.safetensors", compute, read, write)

    def discard(self) -> None:
        """The whole is done: drop the parts."""
        if is_main():  # the others may be done before
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def _kept(
        self,
        file: str,
        compute: Callable[[], Kept],
        read: Callable[[Path], Kept],
        write: Callable[[Kept, Path], None],
    ) -> Kept:
        """What a file keeps; where there is none, or a damaged one, computed and written first."""
        path = self.folder / file

        def found() -> Kept | None:
            try:
                return read(path) if path.is_file() else None
            except (OSError, SafetensorError, KeyError, TypeError, ValueError):
                path.unlink()
                return None

        if (kept := from_main(found)) is not None:
            return kept
        value = compute()
        if is_main():
            with atomic(path) as temporary:
                write(value, temporary)
        return from_main(lambda: read(path))


@contextmanager
def unfinished(*settings: Any, files: list[Path]) -> Iterator[Path]:
    """The file in which unfinished training is kept, likewise; removed in the end."""
    parts = Parts(Path("checkpoints"), *settings, files=files)
    with parts.lock:
        yield parts.folder / "training.pt"
        parts.discard()
