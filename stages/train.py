"""Stage train: the dense network that every family is applied to, trained or loaded."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def train(
    recipe: Annotated[str, typer.Argument(help="A key of `recipes:`.")],
    profile: ProfileOption = None,
) -> None:
    """Write models/<profile>/dense-<recipe>/: the checkpoint, its card and the training history."""
    import pandas as pd

    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.files import atomic, fingerprint
    from advprune.data import read_split
    from advprune.models.card import write_card
    from advprune.models.checkpoint import save_model
    from advprune.models.outside import code_files
    from advprune.training.base import load_or_train

    workspace = Workspace.open(profile, recipe)
    data = workspace.place("data")
    settings, seed = workspace.profile, workspace.params.seed
    chosen = workspace.params.recipes[recipe]
    key = fingerprint(
        settings.model_dump(include={"model", "train"}),
        recipe,
        chosen.model_dump(),
        seed,
        files=[data / "train.safetensors", *code_files(workspace.factory)],
    )
    state = Path("checkpoints") / key / "training.pt"
    splits = read_split(data / "train.safetensors"), read_split(data / "val.safetensors")
    model, history = load_or_train(settings, recipe, chosen, *splits, seed, setup(), state)
    if not is_main():
        return
    save_model(model, workspace.weights("dense"))
    write_card(
        workspace.weights("dense"),
        image_shape=tuple(splits[0].images.shape[1:]),
        factory=workspace.factory,
    )
    with atomic(workspace.model("dense") / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    script(train, shared=True)
