"""A few images, clean and under the main attack on each dense network, with predictions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from advprune.report.chart import Chart
from advprune.report.formats import budget
from advprune.report.run import Model, Run, tensors_of
from advprune.report.section import Part, section

SHOWN = 8  # images, the first ones
GREY = 128  # no change, in the pictures of the change


@section("Images", order=120)
def images(run: Run) -> Iterator[Part]:
    """Pictures of the first test images; none where the profile does not show them, or the attacked
    ones were not kept (an evaluation of one network)."""
    for dense in run.roots if run.profile.show_images else ():
        if not place_of(run, dense).is_file():
            continue
        axes = ("image", "row")
        yield Part(
            f"Under {run.main} on {dense.name}",
            "Each column is an image with its predicted classes, clean → attacked. The change is "
            f"drawn around grey: white and black are ±{budget(run.main_attack.eps)}.",
            chart=Chart(
                f"images-{dense.recipe}", "images", cells(run, dense), *axes, value="pixels"
            ),
        )


def place_of(run: Run, dense: Model) -> Path:
    """The file of its adversarial images."""
    return run.folder / "runs" / run.params.profile / dense.name / "adversarial.safetensors"


def cells(run: Run, dense: Model) -> pd.DataFrame:
    """Clean, attacked and the change of each image, with the classes that are predicted."""
    path = place_of(run, dense)
    attacked, records, found = tensors_of(path)[0][run.main], dense.attack(run.main), []
    for index in range(min(SHOWN, len(records))):
        row, clean, adv = records.iloc[index], run.clean_images[index], attacked[index]
        classes = [run.classes[int(row[side])] for side in ("clean_pred", "adv_pred")]
        change = (adv.astype(float) - clean) / (255 * run.main_attack.eps)
        scaled = np.clip(GREY + 127 * change, 0, 255).astype(np.uint8)
        for name, pixels in (("clean", clean), ("attacked", adv), ("change", scaled)):
            image = f"{index + 1}: {classes[0]} → {classes[1]}"
            found.append({"image": image, "row": name, "pixels": pixels})
    return pd.DataFrame(found)
