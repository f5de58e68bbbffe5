"""Stage settings: checks all settings, and notes what lies outside of the pipeline."""

import os
from pathlib import Path
from typing import Any

from common import ProfileOption, Workspace, script


def settings(profile: ProfileOption = None) -> None:
    """Write files to data/<profile>/ that stages depend on in the place of what they hold.

    attacks.json and profile.json: the settings, which dvc.lock would repeat for every stage.
    pictures.json and weights.json: the sha256 of the pictures at `data.root` or ADVPRUNE_DATA and
    of the weights at `model.weights`. checked.json is for this stage alone, which always runs: what
    a check needs torch for is checked where settings have changed since the last time.
    """
    from advprune.core.files import existing, referenced, sha256_of, write_json

    workspace = Workspace.open(profile)
    params, active = workspace.params, workspace.profile
    checked = {
        "attacks": workspace.attacks,
        "profile": active.model_dump(mode="json"),
        "checked": {"settings": params.model_dump_json(include={"prune", "studies"})},
    }
    files = {workspace.place("data", f"{name}.json"): known for name, known in checked.items()}
    if not all(_holds(file, known) for file, known in files.items()):
        _check(workspace)
    root, weights = active.data.place, active.model.weights
    pictures = {} if root is None else {root: sha256_of(existing(root))}
    files[workspace.place("data", "pictures.json")] = pictures
    given = {name: sha256_of(referenced(one.path)) for name, one in weights.items()}
    files[workspace.place("data", "weights.json")] = given
    for file, known in files.items():
        write_json(file, known)
    pipeline = Path("dvc.yaml").read_text(encoding="utf-8")
    for file in workspace.code():
        own = file.resolve().is_relative_to(Path("networks").resolve())
        named = f"- {os.path.relpath(file)}\n" in pipeline  # by `advprune init`
        if not own and not named:
            print(f"note: DVC does not watch {file}; after a change there run `dvc repro -f`")


def _holds(file: Path, known: dict[str, Any]) -> bool:
    from advprune.core.errors import UserError
    from advprune.core.files import read_json

    try:
        return bool(read_json(file) == known)
    except UserError:  # missing or damaged: written anew
        return False


def _check(workspace: Workspace) -> None:
    from advprune.attacks.registry import attacks_of
    from advprune.attacks.zoo import check_attack
    from advprune.pruning import check_settings
    from advprune.studies import check_studies

    attacks_of(workspace.profile)
    check_settings(workspace.params)
    check_studies(workspace.params)
    for extra in workspace.params.attack.extra:
        check_attack(extra.name, extra.arguments())


if __name__ == "__main__":
    script(settings)
