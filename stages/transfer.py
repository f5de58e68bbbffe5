"""Stage transfer: images crafted on each dense network scored on its pruned models, and back."""

from typing import Any

from common import ProfileOption, Workspace, script


def transfer(profile: ProfileOption = None) -> None:
    """Write transfers/<profile>/transfer.parquet (columns base, source and target)."""
    import pandas as pd

    from advprune.device import setup
    from advprune.files import atomic
    from advprune.progress import progress

    workspace, device = Workspace.open(profile), setup()
    params = workspace.params
    pairs = [(base, family) for base in params.bases for family in ("int8", *params.prune)]
    tables: list[Any] = []
    with progress("transfer, models", len(pairs)) as advance:
        for base, family in pairs:
            for source, target in (("dense", family), (family, "dense")):
                table = _scored(workspace.of(base), source, target, device)
                tables.append(table.assign(base=base, source=source, target=target))
            advance(1)
    with atomic(workspace.place("transfers", "transfer.parquet")) as temporary:
        pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)


def _scored(workspace: Workspace, source: str, target: str, device: Any) -> Any:
    """Records of the target on the images that the table's attacks crafted on the source."""
    import pandas as pd

    from advprune.data import load_split
    from advprune.evaluate.craft import Crafted, Work, rows
    from advprune.models.checkpoint import load_model, read_tensors

    params, settings = workspace.params, workspace.profile
    images, labels = load_split(workspace.place("data"), "test")
    work = Work(params.seed, settings.batch, params.attack.score_draws)
    model = load_model(workspace.weights(target)).to(device)
    adv, _ = read_tensors(workspace.records(source, "adv.safetensors"))
    return pd.concat(
        rows(model, images, Crafted(adv[name]), labels, name, setting, work)
        for name, setting in settings.table().items()
    )


if __name__ == "__main__":
    script(transfer)
