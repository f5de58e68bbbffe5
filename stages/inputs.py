"""Stage inputs: what lies outside of the pipeline, by its sha256."""

import os
from pathlib import Path

from common import ProfileOption, Workspace, script


def inputs(profile: ProfileOption = None) -> None:
    """Write data/<profile>/pictures.json and weights.json, which stages depend on in the place of
    the pictures at `data.root` or ADVPRUNE_DATA and the weights at `model.weights`."""
    from advprune.core.files import existing, referenced, sha256_of, write_json

    workspace = Workspace.open(profile)
    root, weights = workspace.profile.data.place, workspace.profile.model.weights
    pictures = {} if root is None else {root: sha256_of(existing(root))}
    write_json(workspace.place("data", "pictures.json"), pictures)
    given = {name: sha256_of(referenced(one.path)) for name, one in weights.items()}
    write_json(workspace.place("data", "weights.json"), given)
    pipeline = Path("dvc.yaml").read_text(encoding="utf-8")
    for file in workspace.code():
        own = file.resolve().is_relative_to(Path("networks").resolve())
        named = f"- {os.path.relpath(file)}\n" in pipeline  # by `advprune init`
        if not own and not named:
            print(f"note: DVC does not watch {file}; after a change there run `dvc repro -f`")


if __name__ == "__main__":
    script(inputs)
