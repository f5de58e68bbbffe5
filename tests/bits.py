"""What the tests of stored bits share."""

import pandas as pd
from torch import Tensor

from advprune.attacks.stored_bits import Flip, StoredModel
from advprune.models.stochastic import Stochastic


class Noisy(Stochastic):
    """A layer that draws at random."""

    def noisy(self, h: Tensor) -> Tensor:
        return h + self.normal(h)


def replay(stored: StoredModel, table: pd.DataFrame) -> StoredModel:
    """An equal copy with the flips of a trace's rows applied, which must fit its integers."""
    copied = stored.copy()
    columns = table[["layer", "index", "bit", "before", "after"]]
    for layer, index, bit, before, after in columns.itertuples(index=False):
        assert copied.integer(layer, index) == before
        copied.flip(Flip(layer, index, bit))
        assert copied.integer(layer, index) == after
    return copied


def hamming(one: StoredModel, other: StoredModel) -> int:
    """In how many stored bits two networks of the same layers differ."""
    differing = (layer.codes ^ other.layers[name].codes for name, layer in one.layers.items())
    return sum(int(((codes >> bit) & 1).sum()) for codes in differing for bit in range(8))
