"""Stage quantize: the model's parent with integer weights, rounded or trained."""

from typing import Annotated

import typer

from common import Workspace, script


def quantize(
    name: Annotated[str, typer.Argument(help="An entry of `models:` with do: quantize.")],
) -> None:
    """Write runs/<profile>/<name>/model.{safetensors,json}."""
    from advprune.data import stratified_subset, to_float
    from advprune.quantization.post_training import quantize as round_model
    from advprune.quantization.post_training import twin_agreement
    from advprune.quantization.training import quantization_aware
    from advprune.training.inputs import Data

    workspace = Workspace()
    params, entry = workspace.params, workspace.entry(name, "quantize")
    setting, train = params.quantize[entry.key], workspace.profile.train
    splits = workspace.splits("train", "test")
    if workspace.take_finished(name, setting.model_dump(exclude_none=True), splits["test"].shape):
        return
    images, labels = to_float(splits["train"].images), splits["train"].labels
    count = min(setting.calibration_images, len(labels))
    calibration = images[stratified_subset(labels, count, params.seed)]
    parent = workspace.load(entry.of).to(workspace.device())
    files = [workspace.run(entry.of), workspace.data("train")]
    with workspace.unfinished(name, setting.model_dump(), train.model_dump(), files=files) as state:
        if setting.training is None:
            model = round_model(parent, calibration, setting.bits)
        else:
            data = Data(images, labels, train, state)
            model = quantization_aware(parent, setting, data, params.seed, calibration)
        same, gap = twin_agreement(model, to_float(splits["test"].images))
        facts = {
            "setting": setting.model_dump(exclude_none=True),
            "twin_agreement": round(same, 4),
            "twin_logit_gap": round(gap, 4),
        }
        workspace.save(name, model, facts, image_shape=splits["test"].shape)


if __name__ == "__main__":
    script(quantize)
