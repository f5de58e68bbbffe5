"""Store and rebuild models: safetensors with a JSON `ModelSpec` in the header, as the only key:
safetensors writes several in random order. No pickle is ever run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from advprune.core.errors import UserError
from advprune.core.files import atomic
from advprune.core.settings import parse
from advprune.models import binary, quantized
from advprune.models.copies import hooked
from advprune.models.foreign import build_foreign, dtype_name
from advprune.models.insert import layer_of, places, put
from advprune.models.resnet import ResNet
from advprune.models.spec import ModelSpec, attach, spec_of
from advprune.models.stochastic import undisturbed
from advprune.models.tensor_file import read_tensors

MOST = 8  # faults that are told


def build(spec: ModelSpec, factory: str | None = None) -> nn.Module:
    """The module that a spec describes, in evaluation mode, weights not set. factory: the user's
    function that may be called, where the spec names one (models/foreign.py)."""
    with undisturbed():  # weights are drawn, to be replaced
        model: nn.Module = build_foreign(spec, factory) if spec.is_foreign else ResNet(spec)
        if spec.binary:
            model = binary.skeleton(model)
        for inserted in spec.layers:
            if not (names := places(model, inserted.where)):
                raise UserError(f"the spec's layers of kind {inserted.kind!r} have no place")
            for name in names:
                put(model, inserted.where, name, layer_of(inserted))
        if spec.quantization is not None:
            model = quantized.skeleton(model, spec.quantization)
    attach(model, spec)
    return model.eval()


def save_model(model: nn.Module, path: Path | str, dtype: torch.dtype | None = None) -> None:
    """Write a model's spec, parameters and buffers to `path`, whole or not at all. dtype: that
    floating tensors are rounded to in the file. UserError where one becomes infinite, and where the
    model has hooks, which would be lost."""
    if hooks := hooked(model):
        raise UserError(f"{path}: {hooks[0]} has hooks, which no file can hold; remove them")
    tensors = {}
    for name, tensor in stored(model).items():
        kept = tensor.detach().cpu()
        if dtype is not None and kept.is_floating_point():
            kept = kept.to(dtype)
            if not kept.isfinite().all():
                raise UserError(f"{name} is too large for {dtype_name(kept)}; keep it as it is")
        tensors[name] = kept.clone().contiguous()
    with atomic(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"spec": spec_of(model).model_dump_json()})


def stored(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a model that its checkpoint holds, by name, in the order of its layers."""
    return {name: t for name, t in model.state_dict().items() if is_stored(name)}


def is_stored(name: str) -> bool:
    """Whether a tensor of that name belongs in a checkpoint: batch-norm's counter does not."""
    return not name.endswith("num_batches_tracked")


def load_model(path: Path | str, factory: str | None = None) -> nn.Module:
    """Rebuild the model stored at `path`: evaluation mode, [0, 1] images in, logits out.

    factory: `package.module:function`, the one function of the user's own that may be called to
    make the network. UserError where the file is missing, damaged, holds no spec, names another
    function, or its tensors do not fit the spec.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    spec = header_spec(metadata, where=str(path))
    if spec is None:
        raise UserError(f"{path} has no model spec in its header; load it as foreign weights")
    if not spec.is_foreign:
        with torch.device("meta"):  # before memory for it is taken
            _check_fit(build(spec), tensors, where=str(path))
    model = build(spec, factory)
    fill(model, tensors, where=str(path))
    return model


def header_spec(metadata: dict[str, str], where: str) -> ModelSpec | None:
    """The spec in a header, if any; UserError where it is wrong."""
    if "spec" not in metadata:
        return None
    return parse(ModelSpec, metadata["spec"], f"{where}: the model spec", as_json=True)


def fill(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    """Put `tensors` into `model`, each into its place; nothing may be missing or left over."""
    _check_fit(model, tensors, where)
    # Every stored tensor has its place by now; what strict would miss are batch-norm's counters.
    model.load_state_dict(tensors, strict=False)
    binary.check_binary(model, where)


def _check_fit(model: nn.Module, tensors: dict[str, torch.Tensor], where: str) -> None:
    if faults := list(misfits(tensors, stored(model))):
        fitting = f"{spec_of(model).described} with {spec_of(model).classes} classes"
        more = f" and {len(faults) - MOST} more" if len(faults) > MOST else ""
        raise UserError(f"{where} does not fit {fitting}: {'; '.join(faults[:MOST])}{more}")


def misfits(
    tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """What is missing for the places `wanted` of a network, left over, or does not fit its own."""
    yield from (f"missing: {n} {list(t.shape)}" for n, t in wanted.items() if n not in tensors)
    yield from (f"left over: {n} {list(t.shape)}" for n, t in tensors.items() if n not in wanted)
    for name, tensor in tensors.items():
        if name in wanted and (fault := misfit(tensor, wanted[name])):
            yield f"misfit: {name} {fault}"


def misfit(tensor: torch.Tensor, place: torch.Tensor) -> str | None:
    """Why `tensor` cannot take a place of a model, in words; None where it can. Floating numbers of
    any width are converted, where they stay finite. The place may be on the meta device."""
    if tensor.shape != place.shape:
        return (
            f"has shape {list(tensor.shape)} where {list(place.shape)} is needed: another width, "
            "other classes, or images of another number of channels (grey or colour)"
        )
    both_float = tensor.is_floating_point() and place.is_floating_point()
    if not both_float and tensor.dtype != place.dtype:
        return f"holds {dtype_name(tensor)} where {dtype_name(place)} is needed"
    if both_float and not tensor.to(place.dtype).isfinite().all():
        return "holds NaN or infinite numbers; train or load anew"
    return None
