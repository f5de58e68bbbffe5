"""Looking at layers while a model works."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn


@contextmanager
def watched(layers: Mapping[str, nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Inside, `look(name, layer, inputs, output)` is called after every pass of a layer."""
    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_hook(partial(look, name)))
        yield
