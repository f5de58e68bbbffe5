"""Stage bitflip: the bit-flip attack on a model's stored weights, and random flips beside it."""

from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def bitflip(
    name: Annotated[str, typer.Argument(help="A key of `bitflip:`.")],
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<name>.bitflip.parquet: a row a flip, variant and seed."""
    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.errors import UserError
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.data import load_split, read_split
    from advprune.evaluate.flipping import Flipping
    from advprune.models.checkpoint import load_model

    workspace = Workspace.open(profile)
    params, settings, data = workspace.params, workspace.profile, workspace.place("data")
    if name not in params.bitflip:
        raise UserError(f"params.yaml has no bitflip.{name}")
    entry = params.bitflip[name]
    weights = workspace.of(entry.base).weights(entry.of)
    train, test = data / "train.safetensors", data / "test.safetensors"
    parts = Parts(
        Path("checkpoints"),
        name,
        entry.model_dump(),
        settings.bitflip.model_dump(),
        settings.batch,
        params.seed,
        files=[weights, train, test],
    )
    work = Flipping(
        name,
        entry,
        settings.bitflip,
        load_split(data, "train"),
        load_split(data, "test"),
        len(read_split(test).classes),
        settings.batch,
        params.seed,
    )
    table = work.run(load_model(weights, workspace.factory).to(setup()), parts)
    if is_main():
        with atomic(workspace.place("records", f"{name}.bitflip.parquet")) as temporary:
            table.to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(bitflip, shared=True)
