"""The bit-flip attack: which stored bits of the weights to flip to do most harm.

Rakin, He and Fan, Bit-Flip Attack: Crushing Neural Network with Progressive Bit Search (ICCV 2019),
section 4. One gradient says for each stored bit how its flip changes the loss to first order. The
most promising flips of each layer are tried by a forward pass, and those of the best layer are
kept.

The search works on a private copy, so the given model, its modes, its gradients and the global
random state do not change. stored_bits.py defines the bits. docs/bit-flips.md says how this differs
from the published code.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import nn

from advprune.attacks.flip_objective import RANDOM, FlipOptions, Objective
from advprune.attacks.flip_trace import FlipTrace, Run
from advprune.attacks.stored_bits import Flip, StoredLayer, StoredModel, place_values, store
from advprune.models.border import refuse
from advprune.models.fold import channels_last
from advprune.models.stochastic import is_randomized


def bitflip(
    model: nn.Module | StoredModel,
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    **changes: Any,
) -> FlipTrace:
    """Progressive bit search on one fixed batch of images `[N, C, H, W]` in [0, 1].

    A step takes the gradient of the loss L by every weight, `dL/dq = s dL/dW`. Flipping a bit that
    is b and has place value v changes q by `v (1 - 2 b)` and L, to first order, by
    `dL/dq v (1 - 2 b)`; only flips for which that is positive are allowed. The `n_b` allowed flips
    of each layer for which it is largest are tried together by a forward pass, and those of the
    layer that raises L most are committed. With `each` above 1, the `n_b` from the second best of
    each layer on are tried as well, and so on: of a weight that can only turn its sign, the first
    order says little about the flip. Where no layer's raise it, n_b grows by 1, up to
    `most_candidates`; the next step begins with `candidates` again. L rises in every step, so no
    state comes twice, and a bit that was flipped may be flipped back, as published.

    Cost of a step: one forward and one backward pass of the batch, then one forward pass for each
    layer and each n_b tried, `2 + layers` passes as a rule; gradients are not taken again for
    candidates. Passes for candidates begin at the layer that they change where that is possible
    (rerun.py), which halves them.

    model: a float network, or a StoredModel, attacked as it is. labels: `[N]`; without them the
    stored model's own predictions before the first flip. changes: fields of FlipOptions.

    Raises ValueError on shapes, ranges or options that make no sense, on a model that draws at
    random, and where the loss is not finite to begin with.
    """
    how = FlipOptions(**changes)
    stored = _private(model, how)
    objective = Objective.of(stored, images, labels, how)
    run = Run(stored, objective, how)
    while (reason := run.over() or _step(run, objective)) is None:
        pass
    return run.trace(reason)


def random_flips(
    model: nn.Module | StoredModel,
    images: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    **changes: Any,
) -> FlipTrace:
    """Flip stored bits at random: each bit of all is as likely as any other, none twice.

    images: a batch on which the loss is measured after every flip; without it losses are NaN. The
    flips of a smaller budget are the first of a larger one. All else is as in `bitflip`.
    """
    how = replace(FlipOptions(**changes), reuse=False, target=None)
    stored, objective = _private(model, how), None
    if images is not None:
        objective = Objective.of(stored, images, labels, how)
    run = Run(stored, objective, how)
    draws = random_bits(stored, how.generator or torch.Generator().manual_seed(0))
    while (reason := run.over()) is None:
        if (flip := next(draws, None)) is None:
            return run.trace("exhausted")
        made = run.turn([flip])
        run.commit(made, 1, objective.height() if objective else float("nan"))
    return run.trace(reason)


def random_bits(stored: StoredModel, generator: torch.Generator) -> Iterator[Flip]:
    """All stored bits, each once, in an order that is uniform over all orders.

    Fisher and Yates' shuffle as far as it is asked for, so that memory is for the bits drawn alone.
    """
    moved: dict[int, int] = {}
    places = {name: layer.places() for name, layer in stored.layers.items()}
    for drawn in range(total := stored.size):
        place = int(torch.randint(drawn, total, (), generator=generator))
        found = moved.get(place, place)
        moved[place] = moved.pop(drawn, drawn)
        for name, layer in stored.layers.items():  # counted layer by layer and weight by weight
            if found < layer.bits * len(places[name]):
                index, bit = divmod(found, layer.bits)
                yield Flip(name, int(places[name][index]), bit)
                break
            found -= layer.bits * len(places[name])


def _step(run: Run, objective: Objective) -> str | None:
    """One step of the search; the reason where it cannot be made."""
    fewest, most = run.how.candidates, run.how.most_candidates
    gradients = objective.gradient()
    ranked = {n: rank(n, run.stored.layers[n], g, most) for n, g in gradients.items()}
    ranked = {name: flips for name, flips in ranked.items() if flips}
    if not ranked:
        return "flat"
    for n_b in range(fewest, most + 1):
        if len(run.rows) + n_b > run.how.budget:
            return "budget"
        tried = [
            flips[first : first + n_b]
            for flips in ranked.values()
            for first in range(run.how.each)
            if len(flips) >= first + n_b or (first == 0 and n_b == fewest)
        ]
        best, kept, chosen = run.height, objective.values, list[Flip]()
        for flips in tried:
            for flip in flips:
                objective.stored.flip(flip)
            height, values = objective.again(flips[0].layer)
            for flip in flips:  # undone
                objective.stored.flip(flip)
            if isfinite(height) and height > best:  # else such a network could not go on
                best, kept, chosen = height, values, flips
        if chosen:
            objective.values = kept
            run.commit(run.turn(chosen), n_b, best)
            return None
    return "stalled"


def rank(name: str, layer: StoredLayer, gradient: torch.Tensor, most: int) -> list[Flip]:
    """A layer's flips that raise the height most to first order, at most `most`, the best first.

    gradient: of the height by the weight, in its shape. Flips that do not raise it are left out.
    """
    pull = (gradient * layer.scale).flatten().nan_to_num(0.0, 0.0, 0.0)  # dJ/dq
    codes = layer.codes.flatten()
    gains = torch.stack(
        [
            pull * value * torch.where((codes >> bit) & 1 == 0, 1, -1)
            for bit, value in enumerate(place_values(layer.bits))
        ]
    )  # [bits, n]
    best, places = gains.flatten().topk(min(most, gains.numel()))
    rising = places[best > 0]
    indices, bits = (rising % len(pull)).tolist(), (rising // len(pull)).tolist()
    return [Flip(name, index, bit) for index, bit in zip(indices, bits, strict=True)]


def _private(model: nn.Module | StoredModel, how: FlipOptions) -> StoredModel:
    """The copy that is attacked, in the layout in which convolutions are fastest."""
    known = isinstance(model, StoredModel | nn.Module)
    refuse("bitflip", {f"{type(model).__name__} is no nn.Module": not known})
    stored = model.copy() if isinstance(model, StoredModel) else store(model, how.bits, how.scale)
    refuse("bitflip", {RANDOM: is_randomized(stored.model)})
    channels_last(stored.model)
    return stored
