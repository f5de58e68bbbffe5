"""Stage quantize: the int8 form of the dense network."""

from typing import Annotated

import typer

from common import ProfileOption, Workspace, script


def quantize(
    base: Annotated[str, typer.Argument(help="A key of `bases:`.")], profile: ProfileOption = None
) -> None:
    """Write models/<profile>/int8-<base>/: the integer checkpoint and its card."""
    from advprune.data import load_split, read_split, stratified_subset, to_float
    from advprune.models.card import write_card
    from advprune.models.checkpoint import load_model, save_model
    from advprune.quantize import agreement
    from advprune.quantize import quantize as quantize_model

    workspace = Workspace.open(profile, base)
    settings, train = (
        workspace.params.quantize,
        read_split(workspace.place("data", "train.safetensors")),
    )
    count = min(settings.calibration_images, len(train.labels))
    chosen = stratified_subset(train.labels, count, workspace.params.seed)
    dense = load_model(workspace.weights("dense"))
    model = quantize_model(
        dense, to_float(train.images[chosen]), settings.bits, settings.percentile
    )
    images, _ = load_split(workspace.place("data"), "test")
    same, gap = agreement(model, images)
    save_model(model, workspace.weights("int8"))
    write_card(
        workspace.weights("int8"), twin_agreement=round(same, 4), twin_logit_gap=round(gap, 4)
    )


if __name__ == "__main__":
    script(quantize)
