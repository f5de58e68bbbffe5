"""The border for models: any nn.Module is made right here, or refused in one line. Attacks and
scoring ask `admitted` for the model that they query; `prune` and `quantize` ask `compressible` for
the copy that they change. Neither changes the caller's model or a global random state."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.nn.modules import module as of_all

from advprune.core.device import device_of
from advprune.core.errors import InputError, with_place
from advprune.models.copies import HOOKS, hooked, is_plain, plain_copy, unshared
from advprune.models.stochastic import Drawn, is_randomized, states, undisturbed

ROUNDING = 1e-3  # of the largest logit and one: as much as the size of a batch may change
MANY = 64  # images whose outputs must all be probabilities for the model to be refused
SUM = 2e-2  # how far the sum of probabilities may be from one; bfloat16 rounds each by 0.4 %
SIGMOID = re.compile(r"(Hards|S)igmoidBackward")  # torch's names of what an output comes out of
COPIED = re.compile(r"(ToCopy|Clone|\w*View|\w*[Ss]queeze)Backward")
FEW = 8  # images whose logits are compared with those of pairs of them
REPEATS = 3  # further passes of the same images, whose logits are compared

_TRIED: WeakSet[nn.Module] = WeakSet()  # models that passed the longer checks, which are made once


def refuse(who: str, faults: dict[str, bool]) -> None:
    """InputError with the first fault that holds; `who` begins the message."""
    for fault, holds in faults.items():
        if holds:
            raise InputError(f"{who}: {fault}")


def admitted(
    who: str, model: nn.Module, images: torch.Tensor, labels: torch.Tensor | None = None
) -> nn.Module:
    """The model that attacks and scoring may query on `images` `[N, C, H, W]`: the model itself; a
    copy where it is in training mode or its weights are re-parametrized; inside a `Drawn` where its
    code draws at random.

    `who` begins the message of InputError: no nn.Module, no logits `[N, classes]` of the images'
    type (of one image too), probabilities, NaN, logits that depend on the rest of the batch, state
    that a pass changes, inference mode, or a label, if given, that is none of the classes. What a
    pass changes outside the modules (a file) is seen where it shows in the first passes alone.
    """
    given, inner = model, _unwrapped(who, model)
    model = inner if is_plain(inner) else plain_copy(inner)
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    refuse(who, {"the model lies on the meta device, which holds no numbers": is_meta})
    if not len(images):
        return given if isinstance(given, Drawn) else model
    device = device_of(model)
    with torch.no_grad(), undisturbed(device):
        pair, before = images[:2].to(device), states(device)
        try:
            logits = logits_of(who, model, pair)
        except InputError as error:
            for other in other_types(model, images):  # of which another error may speak
                raise InputError(f"{error}; {other}, or convert both ways in forward") from error
            raise
        drew = states(device) != before
        if known := inner in _TRIED:
            again = [logits_of(who, model, pair)]
        else:
            kept = kept_by(model)
            again = [logits_of(who, model, pair) for _ in range(REPEATS)]
            now = kept_by(model)
            moved = [k for k in now if k not in kept or _differ(kept[k], now[k])]
            changes = f"a pass changes {', '.join(moved[:3])}, on which later answers may depend; "
            refuse(who, {changes + "keep no state in forward": bool(moved)})
        drew |= not all(torch.equal(logits, one) for one in again)
        alone = torch.cat([logits_of(who, model, one) for one in pair.split(1)])
        _refuse_probabilities(who, model, images[:MANY].to(device), logits)
        randomized = is_randomized(model)
        if not (drew or randomized):
            mixed = _differing(logits, alone) == len(pair)
            few = images[:FEW].to(device)
            if not (known or mixed) and len(few) == FEW:  # in one of its pairs nothing may change
                whole, *pairs = (logits_of(who, model, part) for part in (few, *few.split(2)))
                mixed = _differing(whole, torch.cat(pairs)) >= FEW - 2
            others = "the logits of an image depend on the other images of the batch, as where a "
            others += "batch-norm keeps no running statistics or activations are quantized by "
            refuse(who, {others + "their range in the batch (dynamically)": mixed})
    _TRIED.update((inner, model))  # the copy, too: it may come back
    classes = logits.shape[1]
    largest = int(labels.max()) if labels is not None and len(labels) else 0
    refuse(who, {f"label {largest} is none of {classes} classes": largest >= classes})
    if drew and not randomized:
        return given if isinstance(given, Drawn) else Drawn(model).eval()
    return model


def _differing(one: torch.Tensor, other: torch.Tensor) -> int:
    """How many rows of logits differ by more than rounding."""
    return int(((one - other).abs().amax(1) > ROUNDING * (1 + one.abs().max())).sum())


def _refuse_probabilities(
    who: str, model: nn.Module, images: torch.Tensor, first: torch.Tensor
) -> None:
    """InputError where outputs lie in [0, 1], not all at its ends, and either sum to one on every
    image or come out of a sigmoid: that logits lie there may be chance. first: the outputs of some
    images, which are mostly enough to tell."""

    def shares(outputs: torch.Tensor) -> bool:
        return bool(((outputs >= 0) & (outputs <= 1)).all() and (outputs % 1 > 0).any())

    if not (shares(first) and shares(every := logits_of(who, model, images))):
        return
    step = None
    with torch.enable_grad(), suppress(InputError):  # of what cannot be differentiated
        step = logits_of(who, model, images[:2].clone().requires_grad_()).grad_fn
    while step is not None and COPIED.match(step.name()):
        step = step.next_functions[0][0]
    squashed = step is not None and SIGMOID.match(step.name()) is not None
    fault = "the model returns probabilities; leave its softmax or sigmoid out, give logits"
    refuse(who, {fault: squashed or sum_to_one(every)})


def sum_to_one(outputs: torch.Tensor) -> bool:
    """Whether the outputs `[N, classes]` of every image sum to one, but for rounding."""
    return bool(((outputs.sum(1) - 1).abs() <= SUM).all())


def other_types(model: nn.Module, images: torch.Tensor) -> Iterator[str]:
    """What to do about a model whose parameters are not of the images' type."""
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {images.dtype}
    for kind in kinds:
        mine = images.dtype
        yield f"the model computes in {kind}, and images are {mine}: give model.to({mine})"


def logits_of(who: str, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Logits `[N, classes]` of some images; InputError where they are none."""
    inference = "leave torch.inference_mode out, in which nothing has a gradient"
    refuse(who, {inference: torch.is_inference_mode_enabled()})
    count, given = len(images), images.clone()
    written = given._version
    try:
        logits = model(given)
    except (Exception, SystemExit) as error:  # whatever the model's code does
        fails = f"the model fails on images {list(images.shape)}: {with_place(error)}"
        raise InputError(f"{who}: {fails}") from error
    # torch counts what is written into a tensor.
    changed = "the model changes its input in place; let it work on a copy"
    refuse(who, {changed: given._version > written})
    wanted = f"for {count} images, not logits [N, classes] of {images.dtype}"
    plain = torch.is_tensor(logits) and logits.layout == torch.strided and logits.ndim == 2
    plain = plain and len(logits) == count and logits.shape[1] and logits.dtype == images.dtype
    refuse(who, {f"the model returns {_kind(logits)} {wanted}": not plain})
    faults = {
        inference: logits.is_inference(),
        "the model has one class; give it one logit a class": logits.shape[1] == 1,
        "the model returns NaN or infinite logits": not logits.isfinite().all(),
    }
    refuse(who, faults)
    return logits


def _kind(value: Any) -> str:
    """What came in, for a message."""
    if not torch.is_tensor(value):
        return type(value).__name__
    where = (
        "meta " if value.is_meta else "" if value.layout == torch.strided else f"{value.layout} "
    )
    return f"{where}{value.dtype} {list(value.shape)}"


def check_images(who: str, images: torch.Tensor, *labels: torch.Tensor) -> None:
    """InputError where images are not floating `[N, C, H, W]` in [0, 1], or labels, where they
    are given, not int64 `[N]` from 0."""
    usable = torch.is_tensor(images) and images.layout == torch.strided and not images.is_meta
    usable = usable and images.is_floating_point() and images.ndim == 4
    usable = usable and (not len(images) or images.numel() > 0)
    refuse(who, {f"images are {_kind(images)}; give floats [N, C, H, W] in [0, 1]": not usable})
    refuse(who, {"images require a gradient; give images.detach()": images.requires_grad})
    dark = len(images) > 1 and 0 < float(images.max()) <= 1.001 / 255
    faults = {
        "images hold NaN or lie outside [0, 1]": not ((images >= 0) & (images <= 1)).all(),
        "no pixel is above 1/255; were they divided by 255 twice? give [0, 1]": dark,
    }
    refuse(who, faults)
    for one in labels:
        usable = torch.is_tensor(one) and one.dtype == torch.int64 and not one.is_meta
        usable = usable and one.shape == images.shape[:1] and bool((one >= 0).all())
        wanted = f"give torch.int64 [{len(images)}] of at least 0, one for each image"
        refuse(who, {f"labels are {_kind(one)}; {wanted}": not usable})


def compressible(who: str, model: nn.Module, images: torch.Tensor | None = None) -> nn.Module:
    """A copy for `prune` and `quantize`: evaluation mode, plain weights, and a module of its own
    behind every name (`unshared`). images: where given, the model must be `admitted`. InputError
    where weights are missing, shared, hidden or without shape, and where there are hooks."""
    model = _unwrapped(who, model)
    if images is not None:
        admitted(who, model, images)
        refuse(who, dict.fromkeys(other_types(model, images), True))
    refuse(who, dict.fromkeys(weight_faults(model), True))
    copied = plain_copy(model)
    lost = "has hooks, which a stored or folded network would lose; write them into forward"
    refuse(who, {f"{name} {lost}": True for name in hooked(copied)})
    return unshared(copied)


def weight_faults(model: nn.Module) -> Iterator[str]:
    """Why the weights of a model cannot be compressed and stored by their names."""
    seen: dict[int, str] = {}
    parts = {id(part) for part in model.modules()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if isinstance(parameter, nn.UninitializedParameter):
            yield f"{name} has no shape before the first image; give its layer all sizes"
            continue
        if parameter._backward_hooks:
            yield f"{name} has hooks, which a copy would lose; remove them"
        place = parameter.data_ptr()  # of a view, too, such as a transposed weight
        if place and place in seen:
            yield f"{seen[place]} and {name} are one tensor; give each layer its own"
        seen[place] = name
    if not any(isinstance(part, nn.Conv2d | nn.Linear) for part in model.modules()):
        yield "it has no nn.Conv2d or nn.Linear whose weights could be compressed"
    for name, part in model.named_modules():
        for key, value in vars(part).items():
            if key.startswith("_") or not isinstance(value, list | tuple | dict):
                continue
            inside = value.values() if isinstance(value, dict) else value
            if any(isinstance(one, nn.Module) and id(one) not in parts for one in inside):
                listed = f"{name}.{key}".lstrip(".")
                yield f"the layers in {listed} are no part of it; make that an nn.ModuleList"


def _unwrapped(who: str, model: Any) -> nn.Module:
    """What `Drawn`, torch.compile or data parallelism wraps; InputError for no nn.Module."""
    model = model.model if isinstance(model, Drawn) else model
    hooks = any(getattr(of_all, f"_global{kind}") for kind in HOOKS)
    scripted = isinstance(model, torch.jit.ScriptModule)
    faults = {
        f"{type(model).__name__} is no nn.Module": not isinstance(model, nn.Module),
        "hooks are registered for all modules of torch; remove them": hooks,
        "the model is a ScriptModule; give the network that it was made from": scripted,
    }
    refuse(who, faults)
    while isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
        model = inside
    wrappers = nn.DataParallel, nn.parallel.DistributedDataParallel
    return model.module if isinstance(model, wrappers) else model


def kept_by(model: nn.Module) -> dict[str, tuple[Any, int]]:
    """What the modules of a model keep, by name: numbers, texts, lengths of lists, and tensors with
    how often they were written to."""
    found: dict[str, tuple[Any, int]] = {}
    for name, part in model.named_modules():
        for key, value in (vars(part) | part._buffers | part._parameters).items():
            place = f"{name}.{key}".lstrip(".")
            if isinstance(value, torch.Tensor):
                found[place] = value, 0 if value.is_inference() else value._version
            elif isinstance(value, int | float | str):
                found[place] = value, 0
            elif isinstance(value, list | dict) and not key.startswith("_"):
                found[place] = None, len(value)
    return found


def _differ(one: tuple[Any, int], other: tuple[Any, int]) -> bool:
    """Whether two states of what a module keeps differ; the same numbers anew do not."""
    if torch.is_tensor(one[0]) and torch.is_tensor(other[0]) and one[0] is not other[0]:
        return not torch.equal(one[0], other[0])
    return one[1] != other[1] or not (one[0] is other[0] or one[0] == other[0])
