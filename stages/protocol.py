"""Stage protocol: SAP and its neighbours under the published protocol and under what broke it."""

from pathlib import Path
from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def protocol(
    recipe: Annotated[str, typer.Argument(help="A key of `protocol:`.")],
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<recipe>.protocol.parquet, with the member's name in each row."""
    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.errors import UserError
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.data import load_split
    from advprune.evaluate.craft import Work
    from advprune.evaluate.protocol import Protocol
    from advprune.models.checkpoint import load_model

    workspace = Workspace.open(profile, recipe)
    params, settings, data = workspace.params, workspace.profile, workspace.place("data")
    if recipe not in params.protocol:
        raise UserError(f"params.yaml has no protocol.{recipe}")
    parts = Parts(
        Path("checkpoints"),
        {name: member.model_dump() for name, member in params.protocol[recipe].items()},
        settings.model_dump(include={"protocol", "batch"}),
        params.attack.score_draws,
        params.seed,
        files=[
            workspace.weights("dense"),
            data / "train.safetensors",
            data / "test.safetensors",
        ],
    )
    test = (t[: settings.protocol.images] for t in load_split(data, "test"))
    work = Work(params.seed, settings.batch, params.attack.score_draws, parts)
    dense = load_model(workspace.weights("dense"), workspace.factory)
    course = Protocol(*test, settings.protocol, work)
    table = course.run(dense, params.protocol[recipe], load_split(data, "train"), setup())
    if is_main():
        with atomic(workspace.place("records", f"{recipe}.protocol.parquet")) as temporary:
            table.assign(recipe=recipe).to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(protocol, shared=True)
