"""Stage train: a network trained from scratch, or loaded where the profile gives weights."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from common import Workspace, script


def train(
    name: Annotated[
        str, typer.Argument(help="dense-<recipe>, or an entry of `models:` with do: train.")
    ],
) -> None:
    """Write runs/<profile>/<name>/model.{safetensors,json}, and dvclive/<profile>/<name>/ where
    DVCLive is installed."""
    from advprune.training.inputs import Inputs
    from advprune.training.networks import train_network

    workspace = Workspace()
    params, files = workspace.params, [workspace.data("train"), workspace.data("val")]
    parent = None
    if name not in params.dense():
        parent = workspace.entry(name, "train").of
        files.append(workspace.run(parent))
    splits = workspace.splits("train", "val")
    setting = params.setting(name).model_dump(exclude_none=True)
    if parent and workspace.take_finished(name, setting, splits["train"].shape):
        return
    settings = workspace.profile.model_dump(include={"model", "train"})
    chosen = name, settings, params.setting(name).model_dump()
    with workspace.unfinished(*chosen, files=files) as state:
        made_from = workspace.load(parent) if parent else None
        live, device = curves(workspace, name), workspace.device()
        inputs = Inputs(splits["train"], splits["val"], params.seed, device, state, live)
        model, facts = train_network(params, name, inputs, made_from)
        workspace.save(name, model, facts, image_shape=splits["train"].shape)


def curves(workspace: Workspace, name: str) -> Callable[[list[dict[str, float]]], None]:
    """What writes the new rows of a training's history as DVCLive does, where that is installed.

    DVC tracks none of it: it is for watching a training, and the history is in the card.
    """
    if not workspace.writes or find_spec("dvclive") is None:
        return lambda history: None
    folder = str(Path("dvclive", workspace.params.profile, name))

    @cache
    def live() -> Any:  # which empties the folder, so not before there is something to write
        from dvclive import Live

        return Live(folder, dvcyaml=None, report=None, save_dvc_exp=False, monitor_system=False)

    def say(history: list[dict[str, float]]) -> None:
        for row in history[live().step :]:
            for column, value in row.items():
                live().log_metric(column, value)
            live().next_step()

    return say


if __name__ == "__main__":
    script(train, shared=True)
