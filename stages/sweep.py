"""Stage sweep: one family at many settings, each under attack; keeps no models."""

from pathlib import Path
from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def sweep(
    family: Annotated[str, typer.Argument(help="A key of `sweep:` or `compression:`.")],
    base: BaseOption = "standard",
    compression: Annotated[
        bool,
        typer.Option(
            "--compression",
            help="The settings of `compression:`, under the main attack and images crafted on the "
            "dense network. Without it those of `sweep:`, under the table's attacks.",
        ),
    ] = False,
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<family>-<base>.{sweep,compression}.parquet, settings in the rows."""
    from advprune.core.distributed import is_main
    from advprune.core.errors import UserError
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.data import load_split
    from advprune.evaluate.suite import Suite
    from advprune.models.checkpoint import load_model, read_tensors

    workspace = Workspace.open(profile, base)
    params, settings, seed = workspace.params, workspace.profile, workspace.params.seed
    kind = "compression" if compression else "sweep"
    if family not in (values := getattr(params, kind)):
        raise UserError(f"params.yaml has no {kind}.{family}")
    dense = load_model(workspace.weights("dense"), workspace.factory)
    attacks, carried = settings.table(), None
    first = slice(settings.sweep_images)
    files = [
        workspace.weights("dense"),
        workspace.place("data", "train.safetensors"),
        workspace.place("data", "test.safetensors"),
        workspace.attacks_file(),
    ]
    if compression:
        attacks = {params.attack.main: attacks[params.attack.main]}
        adv, _ = read_tensors(workspace.records("dense", "adv.safetensors"))
        carried = {attack: adv[attack][first] for attack in settings.exchanged()}
        files.append(workspace.records("dense", "adv.safetensors"))
    known = settings.train.model_dump(), settings.sweep_images, seed, kind, family
    parts = Parts(Path("checkpoints"), *known, files=files)
    train = load_split(workspace.place("data"), "train")
    images, labels = load_split(workspace.place("data"), "test")
    suite = Suite(images[first], labels[first], settings, params.attack, seed, parts)
    table = suite.sweep(family, values[family], dense, train, attacks, carried)
    if is_main():
        with atomic(workspace.records(family, f"{kind}.parquet")) as temporary:
            table.to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(sweep, shared=True)
