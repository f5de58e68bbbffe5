"""Stage prepare: the data set as uint8 tensors, split once and for all."""

from pathlib import Path

from common import ProfileOption, Workspace, script


def prepare(profile: ProfileOption = None) -> None:
    """Write data/<profile>/{train,val,test}.safetensors."""
    from advprune.data import prepare as prepare_data
    from advprune.data import save_split
    from advprune.pruning import check_settings

    workspace = Workspace.open(profile)
    check_settings(workspace.params)
    splits = prepare_data(
        **workspace.profile.data.model_dump(),
        cache=Path("data/downloads"),
        seed=workspace.params.seed,
    )
    for name, split in splits.items():
        save_split(split, workspace.place("data", f"{name}.safetensors"))
        print(f"{name}: {len(split.labels)} images of {split.source}")


if __name__ == "__main__":
    script(prepare)
