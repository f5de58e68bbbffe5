"""A few images, clean and under the main attack on each dense network, with predictions."""

import numpy as np
import pandas as pd

from advprune.models.checkpoint import read_tensors
from advprune.report.formats import budget
from advprune.report.section import Chart, Part, Parts, Run, section

SHOWN = 8  # images, the first ones
GREY = 128  # no change, in the pictures of the change


@section("Images", order=120)
def images(run: Run) -> Parts:
    """Clean, attacked and the change of each of the first test images, where the profile shows them
    and the attacked ones were kept."""
    for dense in run.roots if run.profile.show_images else ():
        path = run.folder / "runs" / run.params.profile / dense.name / "adversarial.safetensors"
        if not path.is_file():
            continue
        attacked = read_tensors(path)[0][run.main].numpy()  # uint8 [n, C, H, W]
        predicted = dense.attack(run.main)[["clean_pred", "adv_pred"]].to_numpy(int)[:SHOWN]
        cells = []
        rows = zip(predicted, run.clean_images, attacked, strict=False)
        for place, (classes, clean, adv) in enumerate(rows, 1):
            before, after = (run.classes[one] for one in classes)
            change = (adv.astype(float) - clean) / (255 * run.main_attack.eps)
            scaled = np.clip(GREY + 127 * change, 0, 255).astype(np.uint8)
            image = {"image": f"{place}: {before} → {after}"}
            cells += [
                image | {"row": name, "pixels": pixels}
                for name, pixels in (("clean", clean), ("attacked", adv), ("change", scaled))
            ]
        name, data, axes = f"images-{dense.recipe}", pd.DataFrame(cells), ("image", "row")
        yield Part(
            f"Under the main attack ({run.main}) on {dense.name}",
            "Each column is an image with its predicted classes, clean → attacked. The change "
            f"is drawn around grey: white and black are ±{budget(run.main_attack.eps)}.",
            chart=Chart(name, "images", data, *axes, value="pixels"),
        )
