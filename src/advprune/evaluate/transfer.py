"""Transfer: images crafted on a source model, scored on a target.

Success is counted only on images that source and target both classify correctly when clean:
otherwise a damaged target would look resistant, or fooled, for reasons of its own.
"""

import numpy as np
import pandas as pd

from advprune.evaluate.statistics import Rate


def transfer_success(target: pd.DataFrame, source: pd.DataFrame) -> Rate:
    """Share of attacked images that fool the target, among those both models had right.

    target: records of the target on the source's images; source: the source's own records. Both
    hold the same images of the same attack, which is checked.
    """
    merged = target.merge(
        source[["index", "attack", "clean_pred"]],
        on=["index", "attack"],
        suffixes=("", "_source"),
        validate="one_to_one",
    )
    if len(merged) != len(target) or len(target) != len(source):
        raise ValueError("transfer: target and source records are not of the same images")
    both = (merged.clean_pred == merged.label) & (merged.clean_pred_source == merged.label)
    fooled = merged.adv_pred != merged.label
    return Rate(int(np.sum(both & fooled)), int(np.sum(both)))
