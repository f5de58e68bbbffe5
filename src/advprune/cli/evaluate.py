"""`advprune evaluate`: one network through the attacks, with a verdict."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.findings import print_beside, print_corruptions, print_found, read_metrics
from advprune.cli.options import CheckpointArgument, Network, ProfileOption, checkpoint_file, told
from advprune.core.errors import UserError
from advprune.core.settings import parse_fraction

if TYPE_CHECKING:
    from advprune.benchmarking import Benchmark, Subject
    from advprune.cli.repository import Repository
    from advprune.data import Split


@told(Network)
def evaluate(
    checkpoint: CheckpointArgument,
    known: Network,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Pictures of your own: a folder of one sub-folder a class, a split "
            "(.safetensors) or images and labels (.npz). No repository is needed then."
        ),
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Budget of attacks on --data, such as 8/255 [default: 8/255]")
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="Norm of the budget: Linf or L2 [default: Linf]")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(min=1, help="How many pictures of --data are drawn [default: 500]"),
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(
            help="File of class names, one a line, in the order of the network's outputs; by "
            "default the sub-folders' in alphabetical order."
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How often a search without gradients may ask about a picture of --data "
            "[default: 300 by Square, 1000 by HopSkipJump]",
        ),
    ] = None,
    profile: ProfileOption = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            help="The parent of this network: adds transfer and a paired comparison.",
            parser=checkpoint_file,
            metavar="CHECKPOINT",
        ),
    ] = None,
    twin: Annotated[
        Path | None,
        typer.Option(
            help="Of an .onnx file: the checkpoint with the same answers, whose gradients are "
            "followed in its place. By default --dense."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json, verdict.json and records.parquet."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="The report, as one HTML file to be written.")
    ] = None,
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions", help="Also on noise, blur, contrast, JPEG, …, at 5 severities."
        ),
    ] = False,
    time: Annotated[
        bool,
        typer.Option("--time", help="Also measure latency on this machine, at batch 1 and 64."),
    ] = False,
    beside: Annotated[
        Path | None,
        typer.Option(
            help="A metrics file, as in `metrics/<profile>/`, to show next to these; or published "
            "figures, such as apb/HYDRA/resnet18/90.",
            metavar="FILE|NAME",
        ),
    ] = None,
) -> None:
    """How robust is this network, and can the number be believed?

    Attacks the network by the suite for its kind, the curves and the probes, and prints clean and
    robust accuracy with 95 % intervals, each attack, and the verdict with its checks. A checkpoint
    must pass `advprune audit`.

    Anywhere: `advprune evaluate net.pt --data pictures/ --eps 8/255 --page net.html`. In a
    repository, without --data: the images and attacks of the profile, with numbers equal to the
    pipeline's. A deployed file: `advprune evaluate net.onnx --dense net.pt`, see docs/deployed.md.

    Writes nothing without --out or --page; with --out, a killed evaluation resumes where it
    stopped.

    Exit status: 0 for any verdict, 2 if there is none.
    """
    from advprune.benchmarking import measured, with_corruptions
    from advprune.cli.repository import Pictures, Repository

    options = {"eps": eps, "norm": norm, "images": images, "names": names, "queries": queries}
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    recorded = None if beside is None else read_metrics(beside)
    if data is None:
        given |= {name: 1 for name in ("resize", "crop") if getattr(known, name) is not None}
        if given:
            raise UserError(f"--{next(iter(given))} goes with --data; a profile has its own")
        place = Repository(profile)
    else:
        if profile is not None:
            raise UserError("give either --data or --profile")
        if eps is not None:
            given["eps"] = budget_of(eps)
        place = Pictures(known, data=data, **given)
    files = [checkpoint] if dense is None else [dense, checkpoint]
    for option, path in (("dense", dense), ("twin", twin)):
        if path is not None and path.suffix in LOADERS:
            raise UserError(f"--{option} {path} has no gradients; give the network's checkpoint")
    if twin is not None and checkpoint.suffix not in LOADERS:
        raise UserError(f"--twin goes with an .onnx file, which has no gradients; {checkpoint} has")
    subjects = [loader(path)(place, path, known) for path in files]
    beside_it = None if twin is None else read_checkpoint(place, twin, known)
    # Finished attacks are kept below `out` until all are done.
    with TemporaryDirectory() if out is None else nullcontext(out / "unfinished") as parts:
        found = measured(subjects, place.split("test"), place.params, Path(parts), beside_it)
        print_found(found, checkpoint)
        if corruptions:
            found = with_corruptions(found, subjects, place.split("test"))
            print_corruptions(found)
        if time:
            _time(found, subjects, place.split("test"))
        if recorded is not None:
            print_beside(found.metrics, recorded)
        if page is not None:
            found.page(page, " against ".join(one.name for one in reversed(files)))
            print(f"report: {page}")
        if out is not None:
            found.write(out)
            for name, table in found.run.studies.items():
                table.to_parquet(out / f"{name}.parquet", index=False)
    if out is not None:
        shutil.rmtree(out / "unfinished", ignore_errors=True)


def budget_of(text: str) -> float:
    """A budget from the command line."""
    try:
        return float(parse_fraction(text))
    except ValueError as error:
        raise UserError(f"--eps: {error} (got {text!r})") from error


Loader = Callable[["Repository", Path, Network], "Subject"]


def loader(path: Path) -> Loader:
    """What reads a network, by the suffix of its file; a checkpoint where it has none of these."""
    return LOADERS.get(path.suffix, read_checkpoint)


def read_checkpoint(place: "Repository", path: Path, known: Network) -> "Subject":
    """A checkpoint that passes the audit, on the device where it is attacked."""
    from advprune.benchmarking import Subject
    from advprune.core.device import setup
    from advprune.data import to_float
    from advprune.models.card import card_of
    from advprune.models.outside import code_files
    from advprune.models.spec import spec_of
    from advprune.quantization.post_training import agreement

    network, split, facts = place.network(path, known), place.split("test"), card_beside(path)
    spec = spec_of(network)
    if spec.quantization:
        facts["twin_agreement"] = round(agreement(network, to_float(split.images))[0], 4)
    # The card is made before the network moves to a GPU.
    card = card_of(path, network, facts, image_shape=split.shape)
    files = [path, *code_files(spec.factory)]
    return Subject(network.to(setup()), card, files, asdict(known))


def read_onnx(place: "Repository", path: Path, known: Network) -> "Subject":
    """A deployed file, which is only asked."""
    from advprune.benchmarking import Subject
    from advprune.data import to_float
    from advprune.models.card import card_of
    from advprune.models.onnx_file import OnnxFile, weight_facts
    from advprune.models.target import target_of

    split = place.split("test")
    target = target_of(OnnxFile(path, split.shape), to_float(split.images), len(split.classes))
    if target.classes != len(split.classes):
        has = place.has(len(split.classes))
        raise UserError(f"{path} is a network of {target.classes} classes, but {has}")
    card = card_of(path, target, card_beside(path)) | weight_facts(path)
    return Subject(target, card, [path], asdict(known))


LOADERS: dict[str, Loader] = {".onnx": read_onnx}


def card_beside(path: Path) -> dict[str, Any]:
    """What only the card beside a checkpoint says, if its sha256 is that of the file."""
    from advprune.core.files import read_json, sha256_of
    from advprune.models.card import NO_FACTS

    try:
        card = read_json(path.with_suffix(".json"))
        if card["sha256"] == sha256_of(path):
            return {key: card[key] for key in NO_FACTS}
    except (UserError, KeyError, TypeError):
        pass  # a checkpoint from elsewhere has none
    return NO_FACTS | {"prune_ratio": None}


def _time(found: "Benchmark", subjects: "Sequence[Subject]", split: "Split") -> None:
    """Time the networks, print the table, and leave it where the page looks for it."""
    from advprune.cli.tables import show_frame
    from advprune.cli.time import BATCH
    from advprune.data import to_float
    from advprune.evaluate.timing import timings
    from advprune.report.sections.speed import TIMINGS

    run = found.run
    pairs = zip(run.models, subjects, strict=True)
    models = {model.name: (one.network, one.card) for model, one in pairs}
    table = timings(models, to_float(split.images), BATCH)
    place = run.folder / TIMINGS
    place.mkdir(parents=True, exist_ok=True)
    table.to_csv(place / f"{run.params.profile}.csv", index=False)
    print()
    show_frame(table)
