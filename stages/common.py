"""What every stage script shares: the library on the path, places of files, one-line errors."""

import json
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

try:
    import typer
except ImportError:
    sys.exit("error: this python lacks advprune's packages; activate the environment that has them")

from advprune.core.ending import WRONG, ended
from advprune.core.errors import UserError
from advprune.core.files import write_table
from advprune.core.params import Params, load
from advprune.core.profile import Profile

if TYPE_CHECKING:  # torch takes a while, and not every script needs it
    import pandas as pd
    from torch import device, nn

    from advprune.core.resume import Parts
    from advprune.data import Split


@dataclass(frozen=True)
class Workspace:
    """The settings of a run, by default params.yaml, and where its files lie, relative to the root
    of the repository."""

    params: Params = field(default_factory=load)

    @property
    def profile(self) -> Profile:
        """The active profile's settings."""
        return self.params.active()

    def device(self) -> "device":
        """Where to train; a CPU has the profile's threads, under torchrun one a process."""
        from advprune.core.device import setup
        from advprune.core.distributed import processes

        return setup(self.profile.train.threads if processes() == 1 else None)

    @property
    def writes(self) -> bool:
        """Whether this process writes files: under torchrun the first one alone."""
        from advprune.core.distributed import is_main

        return is_main()

    def place(self, kind: str, name: str = "") -> Path:
        """`<kind>/<profile>/<name>`."""
        return Path(kind) / self.params.profile / name

    def data(self, split: str) -> Path:
        """The file of a split."""
        return self.place("data", f"{split}.safetensors")

    def run(self, model: str, file: str = "model.safetensors") -> Path:
        """A file of a model: its checkpoint, or what was recorded about it."""
        return self.place("runs", model) / file

    def splits(self, *names: str) -> dict[str, "Split"]:
        """Splits by name."""
        from advprune.data import read_split

        return {name: read_split(self.data(name)) for name in names}

    def load(self, model: str) -> "nn.Module":
        """A model that was made before; UserError where params.yaml declares none of that name."""
        from advprune.models.checkpoint import load_model

        if model not in (known := [*self.params.dense(), *self.params.models]):
            raise UserError(f"there is no model {model!r}; known: {', '.join(known)}")
        return load_model(self.run(model), self.profile.model.factory)

    def save(self, name: str, model: "nn.Module", facts: dict[str, Any], **known: Any) -> None:
        """Write a model's checkpoint and its card (`models.card`)."""
        from advprune.models.card import write_card
        from advprune.models.checkpoint import save_model

        if self.writes:
            save_model(model, self.run(name))
            write_card(self.run(name), facts, factory=self.profile.model.factory, **known)

    def write_table(self, path: Path, table: "pd.DataFrame") -> None:
        """Write a table as parquet."""
        if self.writes:
            write_table(path, table)

    def take_finished(self, name: str, setting: Any, image_shape: tuple[int, int, int]) -> bool:
        """Save a model whose file the profile gives, with the facts of the card beside that; False
        where none is given. UserError where the card says another setting than this run."""
        from advprune.core.files import read_json
        from advprune.models.card import NO_FACTS
        from advprune.models.checkpoint import load_model
        from advprune.models.weights import expected

        if (weights := self.profile.model.weights.get(name)) is None:
            return False
        path = expected(weights.path, weights.sha256)
        card = read_json(place := path.with_name(f"{name}.json"))
        if missing := [key for key in NO_FACTS if key not in card]:
            raise UserError(f"{place} is no card of a model: no {missing[0]}")
        if card["setting"] != json.loads(json.dumps(setting)):
            raise UserError(
                f"{path} was made with {card['setting']}, not with {setting}; take {name} out of "
                f"profiles.{self.params.profile}.model.weights, and it is made anew"
            )
        model = load_model(path, self.profile.model.factory)
        self.save(name, model, {key: card[key] for key in NO_FACTS}, image_shape=image_shape)
        return True

    def entry(self, name: str, do: str) -> Any:
        """An entry of `models` that is made by a script; UserError for any other name."""
        known = {key: one for key, one in self.params.models.items() if one.do == do}
        if name not in known:
            names = [*(self.params.dense() if do == "train" else []), *known]
            raise UserError(f"{name} is none of the models with do: {do} ({', '.join(names)})")
        return known[name]

    def code(self) -> list[Path]:
        """The files of the user's own code, which unfinished work depends on."""
        if self.profile.model.factory is None:  # foreign networks take seconds to import
            return []
        from advprune.models.foreign import code_files

        return code_files(self.profile.model.factory)

    def unfinished(self, *settings: Any, files: list[Path]) -> AbstractContextManager[Path]:
        """Where unfinished training is kept, under all that it depends on; removed in the end."""
        from advprune.core.resume import unfinished

        return unfinished(*settings, self.params.seed, files=[*files, *self.code()])

    def parts(self, *settings: Any, files: list[Path]) -> "Parts":
        """Where finished parts of a stage are kept, likewise."""
        from advprune.core.resume import Parts

        files = [*files, *self.code()]
        return Parts(Path("checkpoints"), *settings, self.params.seed, files=files)


def script(command: Any, shared: bool = False) -> None:
    """Run a stage's command, and end with its exit status (core/ending.py).

    shared: several processes of torchrun may run it together.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    name = Path(sys.argv[0]).name
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        sys.exit(ended(app, name))
    if not shared:
        print(f"error: {name} works in one process; start it without torchrun", file=sys.stderr)
        sys.exit(WRONG)
    from advprune.core import distributed

    distributed.start()  # torchrun ends all processes where one fails
    status = ended(app, name)
    if status == 0:
        distributed.end()
    sys.exit(status)
