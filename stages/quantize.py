"""Stage quantize: a quantized model, rounded or trained."""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from common import BaseOption, ProfileOption, Workspace, script


def quantize(
    name: Annotated[str, typer.Argument(help="int8, or a key of `quantized:`.")],
    base: BaseOption = "standard",
    profile: ProfileOption = None,
) -> None:
    """Write models/<profile>/<name>-<base>/: the integer checkpoint and its card."""
    from advprune.core.errors import UserError
    from advprune.core.params import QuantizedSettings
    from advprune.data import load_split
    from advprune.models.card import write_card
    from advprune.models.checkpoint import save_model
    from advprune.quantization.post_training import agreement

    workspace = Workspace.open(profile, base)
    params = workspace.params
    known = params.quantized | {"int8": QuantizedSettings(bits=params.quantize.bits)}
    if name not in known:
        raise UserError(f"params.yaml has no quantized.{name}")
    chosen = known[name]
    model = _quantized(workspace, chosen)
    images, _ = load_split(workspace.place("data"), "test")
    same, gap = agreement(model, images)
    save_model(model, workspace.weights(name))
    write_card(
        workspace.weights(name),
        setting=None if name == "int8" else chosen.model_dump(exclude_none=True),
        twin_agreement=round(same, 4),
        twin_logit_gap=round(gap, 4),
        image_shape=tuple(images.shape[1:]),
        factory=workspace.factory,
    )


def _quantized(workspace: Workspace, chosen: Any) -> Any:
    """The model that an entry of `quantized:` describes, calibrated on training images."""
    from advprune.core.device import setup
    from advprune.core.files import fingerprint
    from advprune.data import load_split, stratified_subset
    from advprune.models.checkpoint import load_model
    from advprune.quantization.post_training import quantize as round_model
    from advprune.quantization.training import quantization_aware

    params, settings = workspace.params, workspace.params.quantize
    source, place = workspace.weights(chosen.of), workspace.place("data")
    images, labels = load_split(place, "train")
    count = min(settings.calibration_images, len(labels))
    calibration = images[stratified_subset(labels, count, params.seed)]
    model = load_model(source, workspace.factory)
    if chosen.training is None:
        return round_model(model, calibration, chosen.bits, settings.percentile)
    train = workspace.profile.train
    key = fingerprint(
        settings.model_dump(),
        chosen.model_dump(),
        train.model_dump(),
        params.seed,
        files=[source, place / "train.safetensors"],
    )
    state = Path("checkpoints") / key / "training.pt"
    found = quantization_aware(
        model.to(setup()),
        images,
        labels,
        chosen.bits,
        settings.percentile,
        train,
        chosen.training,
        params.seed,
        state,
        calibration,
    )
    shutil.rmtree(state.parent, ignore_errors=True)
    return found.cpu()


if __name__ == "__main__":
    script(quantize)
