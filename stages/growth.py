"""Stage growth: how many channels a binary network's layers need, by Early-Growth."""

import shutil
from pathlib import Path

from common import ProfileOption, Workspace, script


def growth(profile: ProfileOption = None) -> None:
    """Write models/<profile>/growth.json: channels of stem, stages and blocks, and the history.

    Nothing is grown where the profile's network is none of this library's.
    """
    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.files import fingerprint, write_json
    from advprune.core.networks import is_library
    from advprune.data import read_split
    from advprune.training.base import spec_for
    from advprune.training.growth import Grown, grow

    workspace = Workspace.open(profile)
    params, settings, data = workspace.params, workspace.profile, workspace.place("data")
    path = workspace.place("models", "growth.json")
    if not is_library(settings.model.network):
        write_json(path, Grown(stages=(), inner=(), base=()).model_dump())
        return
    train, val = (read_split(data / f"{name}.safetensors") for name in ("train", "val"))
    key = fingerprint(
        settings.model_dump(include={"model", "train"}),
        params.growth.model_dump(),
        params.seed,
        files=[data / "train.safetensors"],
    )
    state = Path("checkpoints") / key / "training.pt"
    grown = grow(
        spec_for(settings.model, train),
        params.growth,
        settings.train,
        (train.images, train.labels),
        (val.images, val.labels),
        params.seed,
        setup(),
        state,
    )
    if not is_main():
        return
    write_json(path, grown.model_dump())
    shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    script(growth, shared=True)
