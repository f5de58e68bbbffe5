"""Stage prune: one family at its operating point."""

from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def prune(
    family: Annotated[str, typer.Argument(help="A key of `prune:`.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write models/<profile>/<family>-<base>/: the compressed model and its card."""
    from advprune.data import load_split
    from advprune.errors import UserError
    from advprune.models.card import write_card
    from advprune.models.checkpoint import load_model, save_model
    from advprune.pruning import prune as prune_model

    workspace = Workspace.open(profile, base)
    if family not in workspace.params.prune:
        raise UserError(f"params.yaml has no prune.{family}; add it with -S +prune.{family}=…")
    setting = workspace.params.prune[family]
    dense = load_model(workspace.weights("dense"))
    data = load_split(workspace.place("data"), "train")
    pruned = prune_model(family, dense, setting, data, workspace.params.seed)
    save_model(pruned.model, workspace.weights(family))
    write_card(
        workspace.weights(family),
        parent=workspace.weights("dense"),
        setting=setting,
        prune_ratio=round(pruned.ratio, 4),
    )


if __name__ == "__main__":
    script(prune)
