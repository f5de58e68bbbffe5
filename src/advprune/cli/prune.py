"""`advprune prune`: one family at one setting, applied to one checkpoint."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from advprune.cli.options import CheckpointArgument, FamilyArgument, Network, told
from advprune.cli.repository import Images
from advprune.core.errors import UserError
from advprune.core.settings import yaml_of


@told
def prune(
    family: FamilyArgument,
    checkpoint: CheckpointArgument,
    setting: Annotated[
        str, typer.Option(help="As in params.yaml: 0.01, or '{compression: 4, finetune: {}}'.")
    ],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
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
    from advprune.core.files import fingerprint, locked
    from advprune.data import to_float
    from advprune.data.split import sha256_of
    from advprune.models.card import write_card
    from advprune.models.checkpoint import save_model
    from advprune.models.outside import code_files
    from advprune.models.spec import spec_of
    from advprune.pruning import Data, setting_of
    from advprune.pruning import prune as prune_model

    if out.suffix != ".safetensors":
        raise UserError(f"--out ends in .safetensors (got {out})")
    value = yaml_of(setting, "--setting")
    setting_of(family, value, place="--setting")
    repository = images.place(known, "train")
    dense, split = repository.network(checkpoint, known), repository.split("train")
    train, seed = repository.profile.train, repository.params.seed
    facts = repository.profile.model_dump(include={"data", "train"})
    factory = repository.factory(known.given())
    files = [checkpoint, *code_files(factory)]
    said = asdict(known), spec_of(dense).model_dump_json()
    key = fingerprint(family, value, said, facts, seed, sha256_of(split), files=files)
    state = Path("checkpoints") / key / "training.pt"
    data = Data(to_float(split.images), split.labels, train, state)
    with locked(state.parent):
        pruned = prune_model(family, dense, value, data, seed)
    save_model(pruned.model, out)
    card = {"setting": value, "prune_ratio": round(pruned.ratio, 4)}
    write_card(out, card, image_shape=data.shape, factory=factory)
    shutil.rmtree(state.parent, ignore_errors=True)
    at = f" at {pruned.notes['sites']} sites" if "sites" in pruned.notes else ""
    print(f"{out} and {out.stem}.json: {pruned.ratio:.2%} of the weights and biases changed{at}")
    spec = spec_of(pruned.model)
    normalizes = (set(spec.mean), set(spec.std)) != ({0.0}, {1.0})
    print(f"images are {'normalized' if normalizes else 'taken as they are, in [0, 1]'}")
