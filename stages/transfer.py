"""Stage transfer: every model tried on the images that were crafted on every other."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from common import ProfileOption, Workspace, script

Crafted = dict[tuple[str, str], Any]  # uint8 images by (source, attack)


def transfer(profile: ProfileOption = None) -> None:
    """Write transfers/<profile>/transfer.parquet: a row an image, attack, source and target."""
    import pandas as pd

    from advprune.core.ahead import ahead
    from advprune.core.device import setup
    from advprune.core.distributed import is_main
    from advprune.core.files import atomic
    from advprune.core.progress import progress
    from advprune.core.resume import Parts
    from advprune.data import load_split
    from advprune.evaluate.craft import Work
    from advprune.evaluate.exchange import received
    from advprune.models.checkpoint import load_model

    workspace, device = Workspace.open(profile), setup()
    params, settings = workspace.params, workspace.profile
    images, labels = load_split(workspace.place("data"), "test")
    work = Work(params.seed, settings.batch, params.attack.score_draws)
    outside, kept = _of_surrogates(workspace, images, labels, device)
    exchanged = dict(_of_models(workspace)) | outside
    targets = list(_targets(workspace, exchanged))
    whole = Parts(
        Path("checkpoints"),
        workspace.attacks,
        params.seed,
        files=[
            workspace.place("data", "test.safetensors"),
            *(path for _, path, _ in targets),
            *(_crafted(workspace, family, base) for base, family in _models(workspace)),
        ],
    )

    def tried(name: str, path: Path, given: Crafted) -> pd.DataFrame:
        model = load_model(path, workspace.factory).to(device)
        return received(model, images, labels, given, work).assign(target=name)

    pieces = [partial(whole.frame, one[0], partial(tried, *one)) for one in targets]
    ahead("transfer, models ahead", pieces)
    tables = []
    with progress("transfer, models", len(pieces)) as advance:
        for piece in pieces:
            tables.append(piece())
            advance(1)
    if is_main():
        with atomic(workspace.place("transfers", "transfer.parquet")) as temporary:
            pd.concat(tables, ignore_index=True).to_parquet(temporary, index=False)
    for parts in (*kept, whole):
        parts.discard()


def _models(workspace: Workspace) -> Iterator[tuple[str, str]]:
    """Base and family of every model."""
    for base in workspace.params.bases:
        for family in workspace.params.models(base):
            yield base, family


def _crafted(workspace: Workspace, family: str, base: str) -> Path:
    """Where the images are that were crafted on a model."""
    return workspace.of(base).records(family, "adv.safetensors")


def _of_models(workspace: Workspace) -> Iterator[tuple[tuple[str, str], Any]]:
    """The main attack's images of every model, and all that were kept of dense networks."""
    from advprune.models.checkpoint import read_tensors

    for base, family in _models(workspace):
        adv, _ = read_tensors(_crafted(workspace, family, base))
        main = [workspace.params.attack.main]
        kept = workspace.profile.suite.kept if family == "dense" else main
        for attack in kept:
            yield (f"{family}-{base}", attack), adv[attack]


def _of_surrogates(
    workspace: Workspace, images: Any, labels: Any, device: Any
) -> tuple[Crafted, list[Any]]:
    """The same attacks on the attacker's own networks; finished ones are kept after a kill, in
    parts that are returned to be discarded in the end."""
    from advprune.core.resume import Parts
    from advprune.evaluate.suite import Suite
    from advprune.models.checkpoint import load_model

    params, found, kept = workspace.params, {}, []
    for name in workspace.surrogates():
        path = workspace.surrogate(name)
        parts = Parts(
            Path("checkpoints"),
            params.seed,
            files=[
                path,
                workspace.place("data", "test.safetensors"),
                workspace.attacks_file(),
            ],
        )
        suite = Suite(images, labels, workspace.profile, params.attack, params.seed, parts)
        model = load_model(path, workspace.factory).to(device)
        for attack, pixels in suite.images_of(name, model).items():
            found[name, attack] = pixels
        kept.append(parts)
    return found, kept


def _targets(workspace: Workspace, exchanged: Crafted) -> Iterator[tuple[str, Path, Crafted]]:
    """Each target's name, its checkpoint and the images that it is tried on.

    The main attack's images of every other model; all that were kept of the dense network of its
    base; all of the attacker's own networks. A surrogate is tried on its own images alone.
    """
    params, outside = workspace.params, workspace.surrogates()
    for base, family in _models(workspace):
        name = f"{family}-{base}"
        given = {
            (source, attack): pixels
            for (source, attack), pixels in exchanged.items()
            if source != name
            and (attack == params.attack.main or source in (f"dense-{base}", *outside))
        }
        yield name, workspace.of(base).weights(family), given
    for name in outside:
        own = {key: pixels for key, pixels in exchanged.items() if key[0] == name}
        yield name, workspace.surrogate(name), own


if __name__ == "__main__":
    script(transfer, shared=True)
