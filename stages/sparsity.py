"""Stage sparsity: the study of sparse networks over seeds, attacked and recorded."""

from pathlib import Path

from common import ProfileOption, Workspace, script


def sparsity(profile: ProfileOption = None) -> None:
    """Write records/<profile>/sparsity.parquet and sparsity.history.parquet, a row an epoch."""
    import pandas as pd

    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.data import read_split
    from advprune.evaluate.sparsity import SparsityStudy
    from advprune.models.checkpoint import load_model

    workspace = Workspace.open(profile)
    params, settings = workspace.params, workspace.profile
    study = params.sparsity_study
    splits = [workspace.place("data", f"{name}.safetensors") for name in ("train", "val", "test")]
    own = workspace.of(study.dense)
    parts = Parts(
        Path("checkpoints"),
        study.model_dump(),
        {name: params.recipes[name].model_dump() for name in study.recipes},
        settings.model_dump(include={"model", "train", "attacks", "batch"}),
        params.attack.model_dump(include={"main", "score_draws"}),
        params.seed,
        files=[*splits, own.weights("dense")],
    )
    history = pd.read_csv(own.model("dense") / "history.csv").to_dict("records")
    dense = load_model(own.weights("dense"), workspace.factory)
    given = {(study.dense, params.seed): (dense, history)}
    course = SparsityStudy(params, *map(read_split, splits), parts, setup(), given)
    for ending, table in zip(("parquet", "history.parquet"), course.run(), strict=True):
        if is_main():
            with atomic(workspace.place("records", f"sparsity.{ending}")) as temporary:
                table.to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(sparsity, shared=True)
