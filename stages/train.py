"""Stage train: a network trained from scratch, or loaded where the profile gives weights."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def train(
    name: Annotated[
        str, typer.Argument(help="dense-<recipe>, or an entry of `models:` with do: train.")
    ],
    profile: ProfileOption = None,
) -> None:
    """Write runs/<profile>/<name>/model.{safetensors,json}, and dvclive/<profile>/<name>/."""
    from advprune.core.device import setup
    from advprune.training.inputs import Inputs
    from advprune.training.networks import train_network

    workspace = Workspace.open(profile)
    params, files = workspace.params, [workspace.data("train"), workspace.data("val")]
    parent = None
    if name not in params.dense():
        parent = workspace.entry(name, "train").of
        files.append(workspace.run(parent))
    splits = workspace.splits("train", "val")
    settings = workspace.profile.model_dump(include={"model", "train"})
    with workspace.unfinished(settings, params.setting(name).model_dump(), files=files) as state:
        made_from = workspace.load(parent) if parent else None
        known = params.seed, setup(), state, curves(workspace, name)
        inputs = Inputs(splits["train"], splits["val"], *known)
        model, facts = train_network(params, name, inputs, made_from)
        workspace.save(name, model, facts, image_shape=splits["train"].shape)


def curves(workspace: Workspace, name: str) -> Callable[[list[dict[str, float]]], None]:
    """What writes a training's history so far, one table per column, where and as DVCLive does.

    DVC tracks none of it: it is for watching a training, and the history is in the card.
    """
    folder = Path("dvclive", workspace.params.profile, name, "plots", "metrics")
    if workspace.writes:
        shutil.rmtree(folder, ignore_errors=True)

    def say(history: list[dict[str, float]]) -> None:
        if workspace.writes:
            folder.mkdir(parents=True, exist_ok=True)
            for column in history[-1]:
                lines = [f"{step}\t{row[column]}\n" for step, row in enumerate(history)]
                table = f"step\t{column}\n" + "".join(lines)
                (folder / f"{column}.tsv").write_text(table, encoding="utf-8")

    return say


if __name__ == "__main__":
    script(train, shared=True)
