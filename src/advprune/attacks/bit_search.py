"""The bit-flip attack: which stored bits of the weights to flip to do most harm.

Rakin, He and Fan, Bit-Flip Attack: Crushing Neural Network with Progressive Bit Search (ICCV 2019),
section 4. One gradient says for each stored bit how its flip changes the loss to first order. The
most promising flips of each layer are tried by a forward pass, and those of the best layer are
kept. The search works on a private copy of the model. docs/bit-flips.md says how this differs from
the published code.
"""

from collections.abc import Iterator
from math import inf, nan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from advprune.attacks.engine import Progress, no_progress
from advprune.attacks.flip_objective import LOST, RANDOM, Evaluate, FlipOptions, Objective
from advprune.attacks.registry import checked
from advprune.attacks.stored_bits import Flip, StoredFloats, StoredLayer, StoredModel, store
from advprune.models.border import refuse
from advprune.models.fold import channels_last
from advprune.models.stochastic import is_randomized

if TYPE_CHECKING:  # as in core/resume.py
    import pandas as pd

WHERE = {"layer": "object", **dict.fromkeys(("index", "bit", "before", "after"), "int64")}
COUNTS = dict.fromkeys(("hamming", "n_b", "forwards", "gradients"), "int64")
LOSS = {"loss_before": "float64", "loss_after": "float64"}
TYPES = {"flip": "int64", "step": "int64", **WHERE, **LOSS, **COUNTS, "accuracy": "float64"}


class FlipTrace:
    """What an attack on the bits does, and did.

    table: one row per flip. `flip` counts from 1, `step` what was made together, `n_b` at a time;
    layer, index and bit (0 the least significant) say where, before and after are the whole numbers
    stored there; losses are of the step, on the batch; hamming: in how many stored bits the network
    differs from the first one; forwards, gradients: passes of the batch so far; accuracy: what
    `evaluate` said, NaN where it was not asked. reason: `level` (accuracy at or below `stop`),
    `budget`, `flat` (no flip raises the loss to first order), `stalled` (none of those tried raises
    it in fact), or `exhausted` (every bit was drawn). start_accuracy: what `evaluate` said before
    the first flip. stored: the network after the last.
    """

    def __init__(
        self,
        stored: StoredModel,
        how: FlipOptions,
        objective: Objective | None = None,
        evaluate: Evaluate | None = None,
        progress: Progress = no_progress,
    ) -> None:
        alone = "stop is a level of what evaluate gives; give evaluate, too"
        refuse("bitflip", {alone: how.stop is not None and evaluate is None})
        self.stored, self.how, self.objective = stored, how, objective
        self.evaluate, self.progress, self.reason = evaluate, progress, ""
        self.rows, self.flipped = list[dict[str, Any]](), set[Flip]()
        self.start_accuracy = None if evaluate is None else float(evaluate(stored.model))
        self.height = nan if objective is None else objective.height()

    @property
    def table(self) -> "pd.DataFrame":
        """The flips so far."""
        import pandas as pd

        return pd.DataFrame(self.rows, columns=list(TYPES)).astype(TYPES)

    def bits_to(self, level: float) -> int | None:
        """In how many bits the network differed from the first one when accuracy was first at or
        below `level`, the published count; None where it never was. As fine as accuracy was asked
        for; ValueError where it never was."""
        if self.start_accuracy is None:
            raise ValueError("the trace holds no accuracy; run the attack with evaluate=...")
        if self.start_accuracy <= level:
            return 0
        return next((row["hamming"] for row in self.rows if row["accuracy"] <= level), None)

    def over(self) -> bool:
        """Whether the attack is over, by accuracy or by its budget."""
        accuracy = self.rows[-1]["accuracy"] if self.rows else self.start_accuracy
        if self.how.stop is not None and accuracy is not None and accuracy <= self.how.stop:
            self.reason = "level"
        elif len(self.rows) >= self.how.budget:
            self.reason = "budget"
        return bool(self.reason)

    def ended(self, reason: str) -> "FlipTrace":
        """The same, over for another reason."""
        self.reason = reason
        return self

    def commit(self, flips: list[Flip], height: float = nan) -> None:
        """Make flips, write them down with the objective's height after them, and measure accuracy
        and report where that is due: after each `every` flips, and from where the batch as a whole
        is lost."""
        it, sign = self.objective, self.objective.sign if self.objective else 1
        shared = {
            "step": self.rows[-1]["step"] + 1 if self.rows else 1,
            "loss_before": sign * self.height,
            "loss_after": sign * height,
            "n_b": len(flips),
            "forwards": it.forwards if it else 0,
            "gradients": it.gradients if it else 0,
            "accuracy": nan,
        }
        self.height, done = height, len(self.rows) // self.how.every
        for flip in flips:
            before = self.stored.integer(flip.layer, flip.index)
            self.stored.flip(flip)
            after = self.stored.integer(flip.layer, flip.index)
            self.flipped ^= {flip}
            counts = {"flip": len(self.rows) + 1, "hamming": len(self.flipped)}
            self.rows.append(vars(flip) | {"before": before, "after": after} | counts | shared)
        due = len(self.rows) // self.how.every > done or height >= LOST / 2
        if self.evaluate is not None and due:
            self.rows[-1]["accuracy"] = float(self.evaluate(self.stored.model))
        self.progress(len(flips))


def bitflip(
    model: nn.Module | StoredModel,
    images: Tensor,
    labels: Tensor | None = None,
    evaluate: Evaluate | None = None,
    progress: Progress = no_progress,
    **options: Any,
) -> FlipTrace:
    """Progressive bit search on one fixed batch of images `[N, C, H, W]` in [0, 1].

    Flipping a bit b of place value v changes the loss L, to first order, by `s dL/dW v (1 - 2 b)`.
    The `n_b` flips of each layer that raise it most are tried together, and those of the best layer
    are made. `each` above 1 tries the next best of each layer, too: of a weight that can only turn
    its sign, the first order says little. Where none of them raises L, n_b grows by 1 up to
    `most_candidates`. L rises in every step, so no state comes twice; a bit may be flipped back.
    A step takes a forward and a backward pass of the batch, and a forward pass for each set tried.

    model: a float network, or a StoredModel, attacked as it is. labels: `[N]`; without them the
    stored model's own predictions before the first flip. evaluate: called with the attacked
    network, which it must leave as it is, before the first flip and after every `every` flips;
    often accuracy on other images. progress: called with flips done. options: of FlipOptions.
    ValueError on shapes, ranges or options that make no sense, and on a model that draws at random.
    """
    how, stored = _prepared(model, options)
    objective = Objective.of(stored, images, labels, how)
    trace = FlipTrace(stored, how, objective, evaluate, progress)
    while not trace.over():
        gradients = objective.gradient()
        ranked = {
            n: rank(n, stored.layers[n], g, how.most_candidates) for n, g in gradients.items()
        }
        if not any(ranked.values()):
            return trace.ended("flat")
        best, chosen = trace.height, list[Flip]()
        for n_b in range(1, how.most_candidates + 1):
            if len(trace.rows) + n_b > how.budget:
                return trace.ended("budget")
            tried = [
                flips[first : first + n_b]
                for flips in ranked.values()
                for first in range(how.each)
                if len(flips) >= first + n_b
            ]
            for flips in tried:
                for flip in flips:
                    stored.flip(flip)
                height = objective.height()
                for flip in flips:  # undone
                    stored.flip(flip)
                if height > best:
                    best, chosen = height, flips
            if chosen:
                break
        else:
            return trace.ended("stalled")
        trace.commit(chosen, best)
    return trace


def random_flips(
    model: nn.Module | StoredModel,
    evaluate: Evaluate | None = None,
    progress: Progress = no_progress,
    generator: torch.Generator | None = None,
    **options: Any,
) -> FlipTrace:
    """Flip stored bits at random: each bit of all is as likely as any other, none twice; losses are
    NaN. The flips of a smaller budget are the first of a larger one. Else as in `bitflip`."""
    how, stored = _prepared(model, options)
    trace = FlipTrace(stored, how, None, evaluate, progress)
    draws = random_bits(stored, generator or torch.Generator().manual_seed(0))
    while not trace.over():
        if (flip := next(draws, None)) is None:
            return trace.ended("exhausted")
        trace.commit([flip])
    return trace


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


def rank(name: str, layer: StoredLayer | StoredFloats, gradient: Tensor, most: int) -> list[Flip]:
    """A layer's flips that raise the height most to first order, at most `most`, the best first.

    gradient: of the height by its numbers, in their shape. Flips that do not raise it are left out.
    """
    # [bits, n]; NaN: what is infinite after its flip, or no number, harms in either direction.
    gains = (gradient.flatten().nan_to_num() * layer.changes()).nan_to_num(inf, inf, -inf)
    best, places = gains.flatten().topk(min(most, gains.numel()))
    rising = places[best > 0]
    indices, bits = (rising % gains.shape[1]).tolist(), (rising // gains.shape[1]).tolist()
    return [Flip(name, index, bit) for index, bit in zip(indices, bits, strict=True)]


def _prepared(
    model: nn.Module | StoredModel, options: dict[str, Any]
) -> tuple[FlipOptions, StoredModel]:
    """The options, checked, and the copy that is attacked, in the layout in which convolutions are
    fastest."""
    known = isinstance(model, StoredModel | nn.Module)
    refuse("bitflip", {f"{type(model).__name__} is no nn.Module": not known})
    how = checked(FlipOptions, "bitflip", options)
    stored = model.copy() if isinstance(model, StoredModel) else store(model, how.bits, how.scale)
    refuse("bitflip", {RANDOM: is_randomized(stored.model)})
    channels_last(stored.model)
    return how, stored
