"""Stages prepare and settings: the data set as uint8 tensors; all settings checked."""

from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def prepare(
    settings: Annotated[
        bool, typer.Option("--settings", help="Check all settings; write those of the attacks.")
    ] = False,
    profile: ProfileOption = None,
) -> None:
    """Write data/<profile>/{train,val,test}.safetensors or, with --settings, attacks.json."""
    workspace = Workspace.open(profile)
    _settings(workspace) if settings else _data(workspace)


def _data(workspace: Workspace) -> None:
    from advprune.data import prepare as prepare_data
    from advprune.data import save_split

    splits = prepare_data(workspace.profile.data, workspace.params.seed)
    for name, split in splits.items():
        save_split(split, workspace.data(name))
        print(f"{name}: {len(split.labels)} images of {split.source}")


def _settings(workspace: Workspace) -> None:
    from advprune.attacks.zoo import check_attack
    from advprune.core.files import write_json
    from advprune.pruning import check_settings
    from advprune.studies import check_studies

    check_settings(workspace.params)
    check_studies(workspace.params)
    for extra in workspace.params.attack.extra:
        check_attack(extra.name, extra.arguments())
    write_json(workspace.place("data", "attacks.json"), workspace.attacks)


if __name__ == "__main__":
    script(prepare)
