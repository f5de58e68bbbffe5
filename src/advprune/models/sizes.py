"""A foreign network with fewer outputs in some layers than its maker gives them, as removing whole
filters leaves it."""

from collections.abc import Mapping

from torch import nn

from advprune.core.errors import UserError

Sizes = Mapping[str, tuple[int, int]]  # by a layer's name: its outputs and inputs
Sized = nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d


def size_of(layer: Sized) -> tuple[int, int]:
    """Outputs and inputs of a layer; of batch-norm both are its channels."""
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels, layer.in_channels
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return layer.num_features, layer.num_features


def resized(network: nn.Module, sizes: Sizes) -> nn.Module:
    """The network, in place, with those layers cut to their sizes; their numbers are the first of
    the ones before. A depthwise convolution has as many groups as outputs. UserError where it has
    no such layer, or one that is smaller."""
    layers = dict(network.named_modules())
    for name, (outputs, inputs) in sizes.items():
        layer = layers.get(name)
        if not isinstance(layer, Sized):
            raise UserError(f"the network has no layer {name!r} of which filters could be removed")
        most = size_of(layer)
        if outputs > most[0] or inputs > most[1]:
            raise UserError(f"{name} has {most} outputs and inputs, not {(outputs, inputs)}")
        per = inputs  # inputs of a filter
        if isinstance(layer, nn.Conv2d):
            layer.groups = outputs if layer.groups > 1 else 1
            per = inputs // layer.groups
            layer.out_channels, layer.in_channels = outputs, inputs
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = outputs, inputs
        else:
            layer.num_features = outputs
        for key, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.ndim:
                cut = tensor.detach()[:outputs]
                cut = (cut[:, :per] if tensor.ndim > 1 else cut).clone()
                learned = isinstance(tensor, nn.Parameter)
                setattr(layer, key, nn.Parameter(cut) if learned else cut)
    return network
