"""Which images are taken: stratified by class, drawn by seed."""

import torch

from advprune.core.errors import UserError


def interleaved(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """An order (int64 [N]) of `labels` (int64 [N]) whose every beginning is stratified: among the
    first n, each class has its share of n to within one image where classes are about equally
    large. Within a class the order is drawn."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    drawn = labels[order]
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in drawn.unique():
        own = drawn == label
        place[own] = (torch.arange(int(own.sum()), dtype=torch.float64) + 0.5) / own.sum()
    return order[torch.argsort(place, stable=True)]


def stratified_subset(labels: torch.Tensor, n: int, seed: int) -> torch.Tensor:
    """n sorted indices (int64 [n]) into `labels` (int64 [N]), drawn class by class, in proportion
    by largest remainder, ties to the lower label. UserError unless 1 <= n <= N."""
    total = len(labels)
    if not 1 <= n <= total:
        raise UserError(f"cannot choose {n} images out of {total}")
    shares = torch.bincount(labels) * n
    take = shares // total
    by_remainder = torch.argsort(shares % total, descending=True, stable=True)
    take[by_remainder[: n - int(take.sum())]] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label, count in enumerate(take.tolist()):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def stratified_split(
    labels: torch.Tensor, fraction: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide the indices of `labels` (int64 [N]) into (kept, taken), both sorted int64; `taken` has
    round(fraction * N) of them. UserError where `fraction` is not inside (0, 1) or a part would be
    empty."""
    count = round(fraction * len(labels)) if 0 < fraction < 1 else 0
    if not 0 < count < len(labels):
        raise UserError(
            f"{fraction} of {len(labels)} images leaves a part empty; choose from (0, 1)"
        )
    taken = stratified_subset(labels, count, seed)
    kept = torch.ones(len(labels), dtype=torch.bool)
    kept[taken] = False
    return kept.nonzero().flatten(), taken
