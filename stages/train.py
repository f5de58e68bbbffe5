"""Stage train: a network trained from scratch, or loaded where the profile gives weights."""

from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def train(
    name: Annotated[
        str, typer.Argument(help="dense-<recipe>, or an entry of `models:` with do: train.")
    ],
    profile: ProfileOption = None,
) -> None:
    """Write runs/<profile>/<name>/model.{safetensors,json}."""
    from advprune.core.device import setup
    from advprune.training.networks import Training

    workspace = Workspace.open(profile)
    params, files = workspace.params, [workspace.data("train"), workspace.data("val")]
    parent = None
    if name not in params.dense():
        parent = workspace.entry(name, "train").of
        files.append(workspace.run(parent))
    splits = workspace.splits("train", "val")
    known = workspace.profile.model_dump(include={"model", "train"})
    with workspace.unfinished(known, params.setting(name).model_dump(), files=files) as state:
        training = Training(
            params, splits, setup(), state, workspace.load(parent) if parent else None
        )
        model, facts = training.run(name)
        workspace.save(name, model, facts, image_shape=splits["train"].shape)


if __name__ == "__main__":
    script(train, shared=True)
