"""Stage transfer: every model on the images crafted on the others."""

from functools import partial

from common import Workspace, script


def transfer() -> None:
    """Write records/<profile>/transfer.parquet: one row per image, attack, source and target.

    Models that were not attacked yet (`dvc repro -s transfer`) are left out, which is said.
    """
    import pandas as pd

    from advprune.core.errors import UserError
    from advprune.data import to_float
    from advprune.evaluate.records import Work
    from advprune.evaluate.transfer import images_for, transfer_records
    from advprune.models.checkpoint import read_tensors

    workspace = Workspace()
    device = workspace.device()
    params, settings = workspace.params, workspace.profile
    test = workspace.splits("test")["test"]
    images, labels = to_float(test.images), test.labels
    work = Work(params.seed, settings.batch, params.attack.score_draws)
    every = [*params.leaderboard(), *params.attackers()]
    places = {name: workspace.run(name, "adversarial.safetensors") for name in every}
    names = [name for name, place in places.items() if place.is_file()]
    if not names:
        raise UserError(f"no model of {params.profile} was attacked; run `dvc repro`")
    if len(names) < len(every):
        print(f"left out, as not attacked: {', '.join(n for n in every if n not in names)}")
    crafted = {
        (name, attack): pixels
        for name in names
        for attack, pixels in read_tensors(places[name])[0].items()
    }
    files = [place for name in names for place in (workspace.run(name), places[name])]
    parts = workspace.parts(params.attacks_in_force(), files=[workspace.data("test"), *files])

    def tried(target: str) -> pd.DataFrame:
        model, given = workspace.load(target).to(device), images_for(params, target, crafted)
        return transfer_records(model, images, labels, given, work).assign(target=target)

    tables = parts.frames("transfer, targets", {name: partial(tried, name) for name in names})
    whole = pd.concat(tables.values(), ignore_index=True)
    workspace.write_table(workspace.place("records", "transfer.parquet"), whole)
    parts.discard()


if __name__ == "__main__":
    script(transfer, shared=True)
