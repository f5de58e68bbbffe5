"""Stage study: one experiment beside the leaderboard."""

from typing import Annotated

import typer

from common import Workspace, script


def study(
    name: Annotated[str, typer.Argument(help="An entry of `studies:`.")],
) -> None:
    """Write records/<profile>/<name>/records.parquet, and what else the study records."""
    from advprune.core.device import setup
    from advprune.core.files import read_json
    from advprune.data import SPLITS
    from advprune.models.checkpoint import read_tensors
    from advprune.studies import Given, reads_of, run_study, settings_of

    workspace = Workspace()
    params = workspace.params
    typed = settings_of(params, name).model_dump()
    read = workspace.profile.model_dump(include=set(reads_of(params, name)))
    known = typed, read, params.attack.model_dump()
    of = params.studies[name].of
    adversarial = workspace.run(of, "adversarial.safetensors")
    files = [*map(workspace.data, SPLITS), workspace.run(of), adversarial]
    parts = workspace.parts(name, *known, files=files)
    given = Given(
        name,
        of,
        params,
        workspace.load(of),
        read_json(workspace.run(of, "model.json")),
        read_tensors(adversarial)[0],
        workspace.splits(*SPLITS),
        parts,
        setup(threads=1),
    )
    for file, table in run_study(name, given).items():
        workspace.write_table(workspace.place("records", name) / f"{file}.parquet", table)
    parts.discard()


if __name__ == "__main__":
    script(study, shared=True)
