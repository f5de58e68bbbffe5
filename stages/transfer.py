"""Stage transfer: images crafted on the dense network scored on one model, and back."""

from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def transfer(
    family: Annotated[str, typer.Argument(help="A key of `prune:`, or int8.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<family>-<base>.transfer.parquet (columns source and target)."""
    import pandas as pd

    from advprune.data import load_split
    from advprune.device import setup
    from advprune.evaluate.craft import rows
    from advprune.files import atomic
    from advprune.models.checkpoint import load_model, read_tensors

    workspace = Workspace.open(profile, base)
    images, labels = load_split(workspace.place("data"), "test")
    settings, device = workspace.profile, setup()
    tables = []
    for source, target in (("dense", family), (family, "dense")):
        model = load_model(workspace.weights(target)).to(device)
        adv, _ = read_tensors(workspace.records(source, "adv.safetensors"))
        for name, setting in settings.attacks.items():
            seed, batch = workspace.params.seed, settings.batch
            table = rows(model, images, adv[name], labels, name, setting, seed, batch)
            tables.append(table.assign(source=source, target=target))
    with atomic(workspace.records(family, "transfer.parquet")) as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)


if __name__ == "__main__":
    script(transfer)
