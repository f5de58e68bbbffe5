"""`advprune evaluate`: one network through the attacks, with a verdict."""

import shutil
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from advprune.cli.options import CheckpointArgument, Network, checkpoint_file, option_groups
from advprune.cli.repository import Attacked
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from advprune.benchmarking import Subject
    from advprune.cli.repository import Repository

ONNX = ".onnx"  # the suffix of a deployed file


@dataclass(frozen=True)
class Beside:
    """What the network is compared with."""

    PANEL: ClassVar = "To compare with"
    dense: Annotated[
        Path | None,
        typer.Option(
            help="The parent of this network: adds transfer and a paired comparison.",
            parser=checkpoint_file,
            metavar="CHECKPOINT",
        ),
    ] = None
    twin: Annotated[
        Path | None,
        typer.Option(
            help="For an .onnx file: a checkpoint with the same answers, whose gradients attacks "
            "use. By default --dense."
        ),
    ] = None
    beside: Annotated[
        str | None,
        typer.Option(
            help="Published figures to show next to these, such as apb/HYDRA/resnet18/90.",
            metavar="NAME",
        ),
    ] = None

    def check(self, checkpoint: Path) -> None:
        """UserError where a network without gradients is given for one that has them."""
        for option, path in (("dense", self.dense), ("twin", self.twin)):
            if path is not None and path.suffix == ONNX:
                raise UserError(f"--{option} {path} has no gradients; give a checkpoint")
        if self.twin is not None and checkpoint.suffix != ONNX:
            raise UserError(f"--twin goes with an {ONNX} file; {checkpoint} has gradients")


@dataclass(frozen=True)
class Output:
    """What is measured besides, and where the results go."""

    PANEL: ClassVar = "Results"
    page: Annotated[
        Path | None, typer.Option(help="The report, as one HTML file to be written.")
    ] = None
    out: Annotated[
        Path | None, typer.Option(help="Folder for metrics.json, verdict.json and records.parquet.")
    ] = None
    corruptions: Annotated[
        bool,
        typer.Option(
            "--corruptions", help="Also on noise, blur, contrast, JPEG, …, at 5 severities."
        ),
    ] = False
    time: Annotated[
        bool,
        typer.Option("--time", help="Also measure latency on this machine, at batch 1 and 64."),
    ] = False


@option_groups
def evaluate(
    checkpoint: CheckpointArgument, images: Attacked, beside: Beside, output: Output, known: Network
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
    from advprune.cli import findings
    from advprune.cli.tables import show_frame
    from advprune.core.files import check_writable

    place = images.place(known)
    recorded = findings.published(beside.beside) if beside.beside else None
    beside.check(checkpoint)
    files = [path for path in (beside.dense, checkpoint) if path is not None]
    subjects = [read_network(place, path, known) for path in files]
    twin = read_network(place, beside.twin, known) if beside.twin else None
    split, out = place.split("test"), output.out
    read = [one for one in (*files, beside.twin, images.data, images.names) if one is not None]
    for path in (output.page, out and out / "metrics.json"):
        if path is not None:
            check_writable(path, read)
    # Finished attacks are kept below `out` until all are done.
    with TemporaryDirectory() if out is None else nullcontext(out / "unfinished") as parts:
        found = measured(subjects, split, place.params, Path(parts), twin)
        if output.corruptions:
            found = with_corruptions(found, subjects, split)
        times = findings.timed(found, subjects) if output.time else None
        # Files before the terminal, which may be gone.
        if out is not None:
            found.write(out)
        if output.page is not None:
            found.page(output.page, " against ".join(path.name for path in reversed(files)))
    if out is not None:
        shutil.rmtree(out / "unfinished", ignore_errors=True)
    findings.print_found(found, checkpoint)
    if output.corruptions:
        findings.print_corruptions(found)
    if times is not None:
        print()
        show_frame(times)
    if recorded is not None:
        findings.print_beside(found, recorded)
    if output.page is not None:
        print(f"report: {output.page}")


def read_network(place: "Repository", path: Path, known: Network) -> "Subject":
    """A network to evaluate: a deployed file, which is only asked, or a checkpoint."""
    return (read_onnx if path.suffix == ONNX else read_checkpoint)(place, path, known)


def read_checkpoint(place: "Repository", path: Path, known: Network) -> "Subject":
    """A checkpoint that passes the audit, on the device where it is attacked."""
    from advprune.benchmarking import Subject
    from advprune.core.device import setup
    from advprune.data import to_float
    from advprune.models.card import card_of
    from advprune.models.foreign import code_files
    from advprune.models.spec import spec_of
    from advprune.quantization.post_training import twin_agreement

    network, split, facts = place.network(path, known), place.split("test"), card_beside(path)
    spec = spec_of(network)
    if spec.quantization:
        facts["twin_agreement"] = round(twin_agreement(network, to_float(split.images))[0], 4)
    # The card is made before the network moves to a GPU.
    card = card_of(path, network, facts, image_shape=split.shape)
    files = [path, *code_files(spec.factory)]
    # The spec holds what a config.json or the profile says of the network, too.
    said = asdict(known) | {"spec": spec.model_dump_json()}
    return Subject(network.to(setup()), card, files, said)


def read_onnx(place: "Repository", path: Path, known: Network) -> "Subject":
    """A deployed file, which is only asked."""
    from advprune.benchmarking import Subject
    from advprune.data import to_float
    from advprune.models.border import admitted
    from advprune.models.card import card_of
    from advprune.models.onnx_file import OnnxFile, files_of, fit_of, weight_facts
    from advprune.models.spec import Normalize
    from advprune.models.target import target_of

    place.show(known.fit() or fit_of(path))
    split = place.split("test")
    said = known.preprocessing(None, split.shape[0])
    normalize = Normalize(said["mean"], said["std"]) if "mean" in said else None
    answer = OnnxFile(path, split.shape, normalize)
    target = target_of(answer, to_float(split.images), len(split.classes))
    if target.classes != len(split.classes):
        has = place.has(len(split.classes))
        raise UserError(f"{path} is a network of {target.classes} classes, but {has}")
    admitted(str(path), target, to_float(split.images))
    card = card_of(path, target, card_beside(path)) | weight_facts(path)
    return Subject(target, card, files_of(path), asdict(known))


def card_beside(path: Path) -> dict[str, Any]:
    """How a checkpoint was compressed, as the card beside it says, if its sha256 is that of
    the file."""
    from advprune.core.files import read_json, sha256_of
    from advprune.models.card import NO_FACTS

    facts = NO_FACTS | {"prune_ratio": None}
    with suppress(UserError, KeyError, TypeError, ValueError, OverflowError):  # no card of ours
        card = read_json(path.with_suffix(".json"))
        share = float(card["prune_ratio"])
        if card["sha256"] == sha256_of(path) and 0 <= share <= 1:
            facts |= {"setting": card["setting"], "prune_ratio": share}
    return facts
