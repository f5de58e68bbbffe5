"""Transfer: images crafted on a source model, scored on a target.

Success is counted only on images that source and target both classify correctly when clean.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from advprune.core.params import Params
from advprune.evaluate.measures import right
from advprune.evaluate.statistics import Rate

if TYPE_CHECKING:  # the report needs no torch
    import torch
    from torch import nn

    from advprune.evaluate.records import Work

SOURCE = ("source", "attack")  # what a set of crafted images is known by
ANSWERS = ("adv_pred", "adv_margin", "chosen_margin", "adv_single_pred", "adv_wrong")


def transfer_records(
    target: "nn.Module",
    images: "torch.Tensor",
    labels: "torch.Tensor",
    crafted: Mapping[tuple[str, str], "torch.Tensor"],
    work: "Work",
) -> pd.DataFrame:
    """A target's answers to images crafted elsewhere: one row per image and (source, attack).

    images: float `[N, C, H, W]` in [0, 1], the clean ones. crafted: uint8 images of the same shape
    by (source, attack). Columns: `SOURCE`, and of `records.score` index, label, clean_pred,
    `ANSWERS`, linf and l2. ValueError where logits are not finite.
    """
    from advprune.evaluate.records import answers, scored

    columns = [*SOURCE, "index", "label", "clean_pred", *ANSWERS, "linf", "l2"]
    if not crafted:  # a run of one model
        return pd.DataFrame(columns=columns)
    known, tables = replace(work, clean=answers("clean", target, images, labels, work)), []
    for key, pixels in crafted.items():
        whose = dict(zip(SOURCE, key, strict=True))
        tables.append(scored(target, images, pixels / 255, labels, whose, known)[columns])
    return pd.concat(tables, ignore_index=True)


def images_for(
    params: Params, target: str, crafted: Mapping[tuple[str, str], "torch.Tensor"]
) -> dict[tuple[str, str], "torch.Tensor"]:
    """Those of all crafted images, by (source, attack), that a target is tried on.

    The main attack's images of every other model; all that were kept of its own dense network; the
    transfer attacks' of attackers' own networks. Such a network is tried on its own images alone.
    """
    main, attackers = params.attack.main, params.attackers()
    transferred = params.active().transferred()

    def wanted(source: str, attack: str) -> bool:
        if target in attackers or source in attackers:
            return attack in transferred and (source == target or target not in attackers)
        return source != target and (attack == main or source == params.root(target))

    return {key: pixels for key, pixels in crafted.items() if wanted(*key)}


def transfer_success(target: pd.DataFrame, source: pd.DataFrame) -> Rate:
    """Share of attacked images that fool the target, among those both models had right.

    target: its records on the source's images; source: the source's own. ValueError unless both
    hold the same images of the same attack in the same order.
    """
    if not len(target):  # it was not tried
        return Rate(0, 0)
    same = np.array_equal(target["index"], source["index"])
    if not same or set(target.attack) != set(source.attack):
        raise ValueError("transfer: target and source records are not of the same images")
    both = right(target, "clean") & right(source.assign(label=target.label.to_numpy()), "clean")
    return Rate(int(np.sum(both & ~right(target))), int(np.sum(both)))
