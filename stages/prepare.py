"""Stage prepare: the data set as uint8 tensors, and the attack settings in force."""

from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def prepare(
    attacks: Annotated[
        bool, typer.Option("--attacks", help="Write the attack settings instead of the data.")
    ] = False,
    profile: ProfileOption = None,
) -> None:
    """Write data/<profile>/{train,val,test}.safetensors, or attacks.json."""
    from advprune.attacks.zoo import check_attack
    from advprune.core.files import write_json
    from advprune.data import prepare as prepare_data
    from advprune.data import save_split
    from advprune.pruning import check_settings
    from advprune.studies import check_studies

    workspace = Workspace.open(profile)
    params = workspace.params
    check_settings(params)
    check_studies(params)
    if attacks:
        for extra in params.attack.extra:
            check_attack(extra.name, extra.arguments())
        write_json(workspace.place("data", "attacks.json"), workspace.attacks)
        return
    splits = prepare_data(
        **workspace.profile.data.model_dump(), cache=Path("data/downloads"), seed=params.seed
    )
    for name, split in splits.items():
        save_split(split, workspace.data(name))
        print(f"{name}: {len(split.labels)} images of {split.source}")


if __name__ == "__main__":
    script(prepare)
