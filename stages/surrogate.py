"""Stage surrogate: a network of the attacker's own, to craft images on."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def surrogate(
    name: Annotated[str, typer.Argument(help="A key of `surrogates:`, or with --copy a model.")],
    copy: Annotated[
        bool, typer.Option("--copy", help="Learn this model's answers: a key of `substitutes:`.")
    ] = False,
    profile: ProfileOption = None,
) -> None:
    """Write surrogates/<profile>/<name>/model.safetensors, or <name>_substitute/."""
    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.errors import UserError
    from advprune.core.files import fingerprint
    from advprune.data import read_split
    from advprune.models.checkpoint import load_model, save_model
    from advprune.models.outside import code_files
    from advprune.training.surrogate import train_surrogate

    workspace, device = Workspace.open(profile), setup()
    workspace = workspace.of(workspace.params.bases[0])
    params, settings, data = workspace.params, workspace.profile, workspace.place("data")
    choices = params.substitutes if copy else params.surrogates
    if name not in choices:
        raise UserError(f"params.yaml has no {'substitutes' if copy else 'surrogates'}.{name}")
    target, files = None, [data / "train.safetensors", *code_files(workspace.factory)]
    if copy:
        target = load_model(workspace.weights(name), workspace.factory).to(device)
        files.append(workspace.weights(name))
    key = fingerprint(
        settings.model_dump(include={"model", "train"}),
        choices[name].model_dump(),
        params.seed,
        files=files,
    )
    state = Path("checkpoints") / key / "training.pt"
    splits = read_split(data / "train.safetensors"), read_split(data / "val.safetensors")
    found = train_surrogate(settings, choices[name], *splits, params.seed, device, state, target)
    if not is_main():
        return
    save_model(found[0], workspace.surrogate(f"{name}_substitute" if copy else name))
    shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    script(surrogate, shared=True)
