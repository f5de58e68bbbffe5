"""Pictures: read from their source, split once by seed, stored as uint8 and loaded in [0, 1]."""

from advprune.data.sampling import interleaved, stratified_split, stratified_subset
from advprune.data.sources import prepare
from advprune.data.split import SPLITS, Split, load_split, read_split, save_split, to_float

__all__ = [
    "SPLITS",
    "Split",
    "interleaved",
    "load_split",
    "prepare",
    "read_split",
    "save_split",
    "stratified_split",
    "stratified_subset",
    "to_float",
]
