"""Stage prune: one family at its operating point."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def prune(
    family: Annotated[str, typer.Argument(help="A key of `prune:`, `masks:` or `tickets:`.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write models/<profile>/<family>-<base>/: the compressed model and its card."""
    from advprune.core.errors import UserError
    from advprune.core.files import fingerprint
    from advprune.data import load_split
    from advprune.models.card import write_card
    from advprune.models.checkpoint import load_model, save_model
    from advprune.pruning import Data
    from advprune.pruning import prune as prune_model

    workspace = Workspace.open(profile, base)
    params, train = workspace.params, workspace.profile.train
    if family not in (known := params.settings(base)):
        raise UserError(f"params.yaml has no prune.{family}; add it with -S +prune.{family}=…")
    setting, place = known[family], workspace.place("data")
    dense = load_model(workspace.weights("dense"), workspace.factory)
    files = [workspace.weights("dense"), place / "train.safetensors"]
    key = fingerprint(family, setting, train.model_dump(), params.seed, files=files)
    state = Path("checkpoints") / key / "training.pt"
    data = Data(*load_split(place, "train"), train, state)
    pruned = prune_model(family, dense, setting, data, params.seed)
    save_model(pruned.model, workspace.weights(family))
    write_card(
        workspace.weights(family),
        parent=workspace.weights("dense"),
        setting=setting,
        prune_ratio=round(pruned.ratio, 4),
        image_shape=data.shape,
        factory=workspace.factory,
    )
    shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    script(prune)
