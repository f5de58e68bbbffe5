"""Stage attack: PGD on one model; records, adversarial images, and where the attack acts."""

from pathlib import Path
from typing import Annotated

import typer

from common import BaseOption, ProfileOption, Workspace, script


def attack(
    family: Annotated[str, typer.Argument(help="A key of `prune:`, or dense, or int8.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write records/<profile>/<family>-<base>.{parquet,adv.safetensors,layers.parquet}."""
    from safetensors.torch import save_file

    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.data import load_split
    from advprune.evaluate.layers import where
    from advprune.evaluate.suite import Suite
    from advprune.models.checkpoint import load_model

    workspace = Workspace.open(profile, base)
    seed, device = workspace.params.seed, setup()
    model = load_model(workspace.weights(family), workspace.factory).to(device)
    images, labels = load_split(workspace.place("data"), "test")
    parts = Parts(
        Path("checkpoints"),
        seed,
        files=[
            workspace.weights(family),
            workspace.place("data", "test.safetensors"),
            workspace.attacks_file(),
        ],
    )
    suite = Suite(images, labels, workspace.profile, workspace.params.attack, seed, parts)
    records, adv = suite.attack(f"{family}-{base}", model)
    if is_main():
        main = adv[workspace.params.attack.main] / 255
        for ending, table in (("parquet", records), ("layers.parquet", where(model, images, main))):
            with atomic(workspace.records(family, ending)) as temporary:
                table.to_parquet(temporary, index=False)
        with atomic(workspace.records(family, "adv.safetensors")) as temporary:
            save_file(adv, temporary)
    parts.discard()


if __name__ == "__main__":
    script(attack, shared=True)
