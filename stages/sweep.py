"""Stage sweep: one family at many settings, each under every attack; keeps no models."""

from pathlib import Path
from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def sweep(
    family: Annotated[str, typer.Argument(help="A key of `sweep:`.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<family>-<base>.sweep.parquet, with the setting in each row."""
    from advprune.data import load_split
    from advprune.device import setup
    from advprune.errors import UserError
    from advprune.evaluate.suite import Suite
    from advprune.files import atomic
    from advprune.models.checkpoint import load_model
    from advprune.resume import Parts

    workspace = Workspace.open(profile, base)
    if family not in workspace.params.sweep:
        raise UserError(f"params.yaml has no sweep.{family}")
    seed, values = workspace.params.seed, workspace.params.sweep[family]
    dense = load_model(workspace.weights("dense"))
    parts = Parts(
        Path("checkpoints"),
        workspace.attacks(),
        seed,
        family,
        files=[
            workspace.weights("dense"),
            workspace.place("data", "train.safetensors"),
            workspace.place("data", "test.safetensors"),
        ],
    )
    train = load_split(workspace.place("data"), "train")
    test = load_split(workspace.place("data"), "test")
    suite = Suite(*test, workspace.profile, workspace.params.attack, seed, parts)
    table = suite.sweep(family, values, dense, train, setup())
    with atomic(workspace.records(family, "sweep.parquet")) as temporary:
        table.to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(sweep)
