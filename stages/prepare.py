"""Stage prepare: the data set as uint8 tensors, split into train, val and test."""

from common import Workspace, script


def prepare() -> None:
    """Write data/<profile>/{train,val,test}.safetensors."""
    from advprune.data import prepare as prepare_data
    from advprune.data import save_split

    workspace = Workspace()
    splits = prepare_data(workspace.profile.data, workspace.params.seed)
    for name, split in splits.items():
        save_split(split, workspace.data(name))
        print(f"{name}: {len(split.labels)} images of {split.source}")


if __name__ == "__main__":
    script(prepare)
