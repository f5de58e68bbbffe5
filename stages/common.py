"""What every stage script shares: the library on the path, places of files, one-line errors."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import typer
import warm

from advprune.core.errors import UserError

if TYPE_CHECKING:  # it takes a while, which a script that is handed over need not spend
    from advprune.core.params import Params, Profile

ProfileOption = Annotated[
    str | None, typer.Option("--profile", help="Profile to run; by default that of params.yaml.")
]
BaseOption = Annotated[str, typer.Option("--base", help="Which dense network: one of `bases:`.")]


@dataclass(frozen=True)
class Workspace:
    """The settings of a run and where its files lie, relative to the repository root."""

    params: "Params"
    base: str = "standard"

    @classmethod
    def open(cls, profile: str | None, base: str = "standard") -> "Workspace":
        """Read params.yaml; UserError for an unknown base (any recipe's network can be one)."""
        from advprune.core.params import load

        params = load(profile=profile)
        if base not in params.recipes:
            known = ", ".join(params.recipes)
            raise UserError(f"there is no recipe {base!r} in params.yaml; known: {known}")
        if not params.surrogates and not params.substitutes:
            raise UserError("surrogates: give at least one, or one under substitutes")
        return cls(params, base)

    @property
    def factory(self) -> str | None:
        """The user's function that may be called to make a network, for loading checkpoints."""
        return self.profile.model.factory

    def of(self, base: str) -> "Workspace":
        """The same run, seen from another dense network."""
        return Workspace(self.params, base)

    @property
    def profile(self) -> "Profile":
        """The active profile's settings."""
        return self.params.active()

    def place(self, kind: str, name: str = "") -> Path:
        """`<kind>/<profile>/<name>`."""
        return Path(kind) / self.params.profile / name

    def model(self, family: str) -> Path:
        """The folder of a model."""
        return self.place("models", f"{family}-{self.base}")

    def weights(self, family: str) -> Path:
        """The checkpoint of a model."""
        return self.model(family) / "model.safetensors"

    def records(self, family: str, ending: str) -> Path:
        """A file of records of a model."""
        return self.place("records", f"{family}-{self.base}.{ending}")

    def surrogates(self) -> list[str]:
        """The names of the attacker's own networks."""
        return [
            *self.params.surrogates,
            *(f"{name}_substitute" for name in self.params.substitutes),
        ]

    def surrogate(self, name: str) -> Path:
        """The checkpoint of one of them."""
        return self.place("surrogates", name) / "model.safetensors"

    @property
    def attacks(self) -> dict[str, Any]:
        """The attack settings in force, as plain values."""
        kept = {"attacks", "suite", "curves", "batch"}
        profile = self.profile.model_dump(mode="json", include=kept)
        return {"attack": self.params.attack.model_dump(mode="json"), **profile}

    def attacks_file(self) -> Path:
        """Where they are written down; UserError where that file holds others, or is missing.

        Stages depend on the file, so that dvc.lock does not repeat the settings at each of them.
        """
        place = self.place("data", "attacks.json")
        if not place.is_file() or json.loads(place.read_text(encoding="utf-8")) != self.attacks:
            raise UserError(f"{place} is not up to date; run `dvc repro` or stages/attacks.py")
        return place


def script(command: Any, shared: bool = False) -> None:
    """Run a stage's command; a UserError ends it with one line and exit status 1.

    Where there is a warm process, the command is run there. shared: several processes of torchrun
    may run it together.
    """
    warm.hand_over()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    try:
        app() if int(os.environ.get("WORLD_SIZE", "1")) < 2 else _together(app, shared)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _together(app: typer.Typer, shared: bool) -> None:
    """Run a command in each of several processes of torchrun, which ends all where one fails."""
    from advprune.core import distributed

    if not shared:
        raise UserError(f"{sys.argv[0]} works in one process; start it without torchrun")
    distributed.start()
    try:
        app()
    except SystemExit:  # the command is done, or its arguments are wrong: in all processes
        distributed.end()
        raise
