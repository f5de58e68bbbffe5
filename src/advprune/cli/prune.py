"""`advprune prune` and `advprune quantize`: one checkpoint compressed in one way."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.options import CheckpointArgument, FamilyArgument, Network, option_groups
from advprune.cli.repository import Images, Repository
from advprune.core.settings import yaml_of

if TYPE_CHECKING:
    from torch import nn

    from advprune.data import Split


OutOption = Annotated[Path, typer.Option(help="The .safetensors file to write.")]


@option_groups
def prune(
    family: FamilyArgument,
    checkpoint: CheckpointArgument,
    setting: Annotated[
        str, typer.Option(help="As in params.yaml: 0.01, or '{compression: 4, finetune: {}}'.")
    ],
    out: OutOption,
    images: Images,
    known: Network,
) -> None:
    """Compress a checkpoint: apply a family at a setting, write the result and its card.

    The card is written beside the result, with the suffix .json: what was changed, the sparsity
    found in the saved file, multiply-accumulates. Each family's settings are in docs/families/.

    Families that train or use gradients take the training images and training settings of a
    profile. Anywhere else: those of `--data pictures/`, or of its sub-folder train/ if it has one,
    with the settings that come with the package; evaluate on other pictures then. A killed
    fine-tuning resumes where it stopped.

    Exit status: 0, or 2 if nothing was written.
    """
    from advprune.core.resume import unfinished
    from advprune.data import to_float
    from advprune.data.split import sha256_of
    from advprune.models.foreign import code_files
    from advprune.models.spec import spec_of
    from advprune.pruning import Data, setting_of
    from advprune.pruning import prune as prune_model

    value = yaml_of(setting, "--setting")
    setting_of(family, value, place="--setting")
    place, dense, split = opened(checkpoint, out, images, known)
    train, seed = place.profile.train, place.params.seed
    facts = place.profile.model_dump(include={"data", "train"})
    files = [checkpoint, *code_files(place.factory(known.given()))]
    said = asdict(known), spec_of(dense).model_dump_json()
    with unfinished(family, value, said, facts, seed, sha256_of(split), files=files) as state:
        data = Data(to_float(split.images), split.labels, train, state)
        pruned = prune_model(family, dense, value, data, seed)
        card = {"setting": value, "prune_ratio": round(pruned.ratio, 4)}
        written(out, pruned.model, card, place, known)
    at = f" at {pruned.notes['sites']} sites" if "sites" in pruned.notes else ""
    print(f"{out} and {out.stem}.json: {pruned.ratio:.2%} of the weights and biases changed{at}")


@option_groups
def quantize(
    checkpoint: CheckpointArgument,
    out: OutOption,
    images: Images,
    known: Network,
    bits: Annotated[int, typer.Option(min=2, max=8, help="Of each weight and activation.")] = 8,
) -> None:
    """Round a checkpoint to integers after training: write the result and its card.

    The ranges of activations are those on training images, which are found as by `prune`.
    `advprune evaluate` follows the gradients of the differentiable twin of the result, and scores
    images on its integers.

    Exit status: 0, or 2 if nothing was written.
    """
    from advprune.core.train_settings import QuantizeSettings
    from advprune.data import stratified_subset, to_float
    from advprune.quantization.post_training import quantize as round_model
    from advprune.quantization.post_training import twin_agreement

    place, dense, split = opened(checkpoint, out, images, known)
    setting = QuantizeSettings(bits=bits)
    count = min(setting.calibration_images, len(split.labels))
    shown = to_float(split.images[stratified_subset(split.labels, count, place.params.seed)])
    model = round_model(dense, shown, bits)
    same = twin_agreement(model, shown)[0]
    written(out, model, {"setting": setting.model_dump(exclude_none=True)}, place, known)
    print(
        f"{out} and {out.stem}.json: {bits} bits; its twin agrees on {same:.2%} of {count} images"
    )


def opened(
    checkpoint: Path, out: Path, images: Images, known: Network
) -> "tuple[Repository, nn.Module, Split]":
    """Where the command works, the network to compress and the training images; UserError where
    `out` cannot be written."""
    from advprune.core.files import check_writable

    read = [one for one in (checkpoint, images.data, images.names) if one is not None]
    check_writable(out, read, ".safetensors")
    place = images.place(known, "train")
    return place, place.network(checkpoint, known), place.split("train")


def written(
    out: Path, model: "nn.Module", facts: Mapping[str, Any], place: Repository, known: Network
) -> None:
    """Write a network and its card, and say which images it takes."""
    from advprune.models.card import write_card
    from advprune.models.checkpoint import save_model
    from advprune.models.spec import spec_of

    save_model(model, out)
    factory, shape = place.factory(known.given()), place.split("train").shape
    write_card(out, facts, image_shape=shape, factory=factory)
    spec = spec_of(model)
    normalizes = (set(spec.mean), set(spec.std)) != ({0.0}, {1.0})
    print(f"images are {'normalized' if normalizes else 'taken as they are, in [0, 1]'}")
