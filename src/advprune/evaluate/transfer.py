"""Transfer: images crafted on a source model, scored on a target.

Success is counted only on images that source and target both classify correctly when clean:
otherwise a damaged target would look resistant, or fooled, for other reasons.
"""

import numpy as np
import pandas as pd

from advprune.evaluate.statistics import Rate


def transfer_success(target: pd.DataFrame, source: pd.DataFrame) -> Rate:
    """Share of attacked images that fool the target, among those both models had right.

    target: records of the target on the source's images; source: the source's own records. Both
    hold the same images of the same attack in the same order, which is checked.
    """
    if not len(target):  # it was not tried
        return Rate(0, 0)
    same = np.array_equal(target["index"], source["index"])
    if not same or set(target.attack) != set(source.attack):
        raise ValueError("transfer: target and source records are not of the same images")
    label = target.label.to_numpy()
    both = (target.clean_pred.to_numpy() == label) & (source.clean_pred.to_numpy() == label)
    fooled = target.adv_pred.to_numpy() != label
    return Rate(int(np.sum(both & fooled)), int(np.sum(both)))
