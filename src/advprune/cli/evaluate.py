"""`advprune evaluate`: one checkpoint through the profile's attacks, with a verdict."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.options import CheckpointArgument, Network, ProfileOption, told
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from advprune.cli.repository import Repository
    from advprune.report.run import Model, Run

DENSE, MODEL = "dense", "model"  # the names in a run of one or two checkpoints
AGAINST_DENSE = ("transfer_", "against_dense", "p_against", "robust_d", "distance_", "p_distance")
BESIDE = {"clean_accuracy": "clean", "robust_accuracy": "robust"}
OWN = ("model", "family", "parent", "root", "recipe", "do", "group", "images", "robust_images")
MARKS = {"pass": "✓", "doubt": "?", "fail": "✗"}


@told(Network)
def evaluate(
    checkpoint: CheckpointArgument,
    known: Network,
    profile: ProfileOption = None,
    dense: Annotated[
        Path | None,
        typer.Option(help="The parent of this network: adds transfer and a paired comparison."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for metrics.json, verdict.json and records.parquet."),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option(help="A metrics file, as in `metrics/<profile>/`, to show next to these."),
    ] = None,
) -> None:
    """How robust is this network, and can the number be believed?

    Attacks the checkpoint as the pipeline does its own models (the suite that the profile has for
    its kind, the curves, the probes) and prints clean and robust accuracy with 95 % intervals, each
    attack, and the verdict with its checks. The checkpoint must pass `advprune audit`. Test images
    are those of `data/<profile>`, or made in memory.

    Writes nothing without --out; with it, a killed evaluation resumes where it stopped.

    Exit status: 0 for any verdict, 2 if there is none.
    """
    from advprune.cli.repository import Repository

    repository = Repository(profile)
    recorded = None if beside is None else read_metrics(beside)
    files = [checkpoint] if dense is None else [dense, checkpoint]
    networks = [(path, repository.network(path, known)) for path in files]
    # Finished attacks are kept below `out` until all are done.
    with TemporaryDirectory() if out is None else nullcontext(out / "unfinished") as place:
        run = run_of(repository, networks, Path(place), known)
        _print(run, checkpoint)
        if recorded is not None:
            _print_beside(metrics_of(run), recorded)
        if out is not None:
            _write(run, out)
    if out is not None:
        shutil.rmtree(out / "unfinished", ignore_errors=True)


def run_of(
    repository: "Repository",
    networks: "Sequence[tuple[Path, nn.Module]]",
    place: Path,
    known: Network,
) -> "Run":
    """The networks through the profile's suite, as a run: what the report is computed from.

    networks: with their files; a second one is compared with the first. place: where finished
    attacks are kept.
    """
    import pandas as pd

    from advprune.core.device import setup
    from advprune.core.resume import Parts
    from advprune.data import to_float
    from advprune.data.split import sha256_of as sha256_of_split
    from advprune.evaluate.exchange import received
    from advprune.evaluate.suite import Suite
    from advprune.models.card import card_of
    from advprune.models.outside import code_files
    from advprune.models.spec import spec_of
    from advprune.quantization.post_training import agreement
    from advprune.report.run import Model, Run

    params, profile, split = repository.params, repository.profile, repository.split("test")
    main, images, device = params.attack.main, to_float(split.images), setup()
    facts = profile.model_dump(include={"data", "attacks", "suite", "curves", "batch"})
    facts |= {"attack": params.attack.model_dump(), "seed": params.seed}
    facts |= {"known": asdict(known), "images": sha256_of_split(split)}
    models: list[Model] = []
    parent: nn.Module | None = None
    sent: dict[tuple[str, str], Any] = {}  # images made on the first, for the second
    for name, (path, network) in zip((DENSE, MODEL), networks, strict=False):
        facts_of = card_beside(path)
        if spec_of(network).quantization:
            facts_of["twin_agreement"] = round(agreement(network, images)[0], 4)
        # The card is made before the network moves to a GPU.
        card = card_of(path, network, facts_of, image_shape=split.shape)
        network.to(device)
        known_files = [file for file, _ in networks[: len(models) + 1]]
        files = [*known_files, *code_files(spec_of(network).factory)]
        parts = Parts(place, name, facts, files=files)
        suite = Suite(images, split.labels, profile, params.attack, params.seed, parts, parent)
        records, adv = suite.attack(path.name, network)
        tables = {
            key: received(network, images, split.labels, {key: pixels}, suite.work)
            for key, pixels in sent.items()
        }
        made = card, records, pd.DataFrame(), tables
        models.append(Model(name, name, DENSE, DENSE, "given", *made))
        parent, sent = network, {(DENSE, main): adv[main]}
    about = split.source, list(split.classes), split.images.numpy()
    return Run(params, models, {}, {}, *about, folder=place)


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


def metrics_of(run: "Run") -> dict[str, Any]:
    """The metrics of the last network; without a dense network, none of the comparisons."""
    from advprune.report.results import results

    row = results(run).astype(object).iloc[-1]
    row = row.where(row.notna(), None)
    left_out = OWN if len(run.models) > 1 else (*OWN, *AGAINST_DENSE)
    return {str(key): row[key] for key in row.index if not str(key).startswith(left_out)}


def read_metrics(path: Path) -> dict[str, float]:
    """The rates to compare from a metrics file; UserError if it lacks them."""
    from advprune.core.files import read_json

    found = read_json(path)
    try:
        return {key: float(found[key]) for key in ("n", *BESIDE)}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a metrics file like those in metrics/<profile>/") from error


def _print_beside(found: dict[str, Any], recorded: dict[str, float]) -> None:
    """Rates of this evaluation and of the file, and by how many images they differ."""
    from advprune.cli.tables import show
    from advprune.report.formats import percent

    n, rows = found["n"], []
    for key, words in BESIDE.items():
        images = f"{round(n * (found[key] - recorded[key])):+d}"
        rates = percent(found[key]), percent(recorded[key])
        rows.append([words, *rates, images if recorded["n"] == n else "other images"])
    print()
    show((f"beside the file, n = {n}", "here %", "there %", "images"), rows)


def _print(run: "Run", checkpoint: Path) -> None:
    """Rates, attacks and verdict of the last network, for a terminal."""
    from advprune.cli.tables import one_line, show
    from advprune.report.formats import budget, p_text

    model, found = run.models[-1], metrics_of(run)
    verdict, main = run.verdict(model), run.main_attack
    print(f"{one_line(str(checkpoint))}: {found['n']} images of {run.source}")
    print(f"robust: the worst case over the suite within {main.norm} eps {budget(main.eps)}\n")
    show(("", "accuracy % (95 %)", "n", "gradients", "forwards"), list(_rates(run, model)))
    if len(run.models) > 1:
        against, p = found["against_dense"], p_text(found["p_against_dense"])
        print(f"against the dense network: {against} ({p})")
    print(f"verdict: {verdict.level}\n")
    rows = [[f"{MARKS[c.outcome]} {c.name}", c.figure, c.reason] for c in verdict.checks]
    show(("check", "figure", ""), rows, left=3)


def _rates(run: "Run", model: "Model") -> Iterator[list[str]]:
    """Clean accuracy, accuracy under each attack of the suite, and robust accuracy."""
    from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
    from advprune.report.formats import interval

    def row(name: str, rate: Any, *passes: str) -> list[str]:
        return [name, interval(rate.value, *rate.interval), str(rate.n), *passes]

    def costs(records: Any) -> list[str]:
        return [f"{float(records[kind].mean()):,.0f}" for kind in ("gradients", "forwards")]

    yield row("clean", clean_accuracy(model.attack(run.main)), "", "")
    for name in run.attack_names(model):
        if len(records := model.attack(name)):
            yield row(name, remnant_accuracy(records), *costs(records))
    if len(run.models) > 1:
        transferred = remnant_accuracy(model.transferred(run.main))
        yield row(f"{run.main}, on the dense", transferred, "", "")
    robust = run.robust(model)
    yield row("robust", remnant_accuracy(robust), *costs(robust))


def _write(run: "Run", folder: Path) -> None:
    """Metrics, verdict and records of the last network."""
    from advprune.core.files import atomic, write_json

    model, verdict = run.models[-1], run.verdict(run.models[-1])
    write_json(folder / "metrics.json", metrics_of(run))
    checks = [asdict(check) for check in verdict.checks]
    write_json(folder / "verdict.json", {"verdict": verdict.level, "checks": checks})
    with atomic(folder / "records.parquet") as temporary:
        model.records.to_parquet(temporary, index=False)
