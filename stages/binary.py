"""Stage binary: a binary network, trained from scratch and stored as its bits."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from common import ProfileOption, Workspace, script


def binary(
    name: Annotated[str, typer.Argument(help="A key of `binary:`.")],
    profile: ProfileOption = None,
) -> None:
    """Write models/<profile>/<name>-<first base>/: the checkpoint, its card and the history."""
    import pandas as pd

    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.errors import UserError
    from advprune.core.files import atomic, fingerprint
    from advprune.data import read_split
    from advprune.models.card import write_card
    from advprune.models.checkpoint import save_model
    from advprune.training.base import spec_for
    from advprune.training.binary import binary_spec, train_binary

    workspace = Workspace.open(profile)
    workspace = workspace.of(workspace.params.bases[0])
    params, settings, data = workspace.params, workspace.profile, workspace.place("data")
    if name not in params.binary:
        raise UserError(f"params.yaml has no binary.{name}")
    chosen = params.binary[name]
    train, val = (read_split(data / f"{part}.safetensors") for part in ("train", "val"))
    spec = binary_spec(spec_for(settings.model, train), chosen.channels, _grown(workspace))
    key = fingerprint(
        spec.model_dump(),
        chosen.model_dump(),
        settings.train.model_dump(),
        params.seed,
        files=[data / "train.safetensors"],
    )
    state = Path("checkpoints") / key / "training.pt"
    pairs = (train.images, train.labels), (val.images, val.labels)
    model, history = train_binary(spec, chosen, settings.train, *pairs, params.seed, setup(), state)
    if not is_main():
        return
    save_model(model, workspace.weights(name))
    write_card(
        workspace.weights(name),
        setting=chosen.model_dump(),
        image_shape=tuple(train.images.shape[1:]),
    )
    with atomic(workspace.model(name) / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    shutil.rmtree(state.parent, ignore_errors=True)


def _grown(workspace: Workspace) -> Any:
    """What the growth stage found."""
    from advprune.core.errors import UserError
    from advprune.training.growth import Grown

    path = workspace.place("models", "growth.json")
    if not path.is_file():
        raise UserError(f"there is no {path}; run `dvc repro growth`")
    return Grown.model_validate_json(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    script(binary, shared=True)
