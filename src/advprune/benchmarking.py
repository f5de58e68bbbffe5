"""How robust is this network, and can the number be believed? The whole interface in one call::

    found = benchmark(model, images, labels, eps=8/255, dense=parent)
    print(found)
    found.page("net.html")

`advprune evaluate` does the same; networks outside of a pipeline become a `Run` here, which is what
reports are computed from.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from advprune.core.device import device_of
from advprune.core.files import atomic, write_json, write_table
from advprune.core.params import Params, StudyEntry
from advprune.core.progress import progress
from advprune.core.resume import Parts
from advprune.data import Split, to_float
from advprune.data.split import sha256_of
from advprune.defaults import defaults
from advprune.evaluate.corruptions import KINDS
from advprune.evaluate.deployed import target_agreement
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.evaluate.records import Work
from advprune.evaluate.statistics import Rate, median_distance
from advprune.evaluate.suite import Suite
from advprune.evaluate.transfer import transfer_records
from advprune.evaluate.verdict import Verdict
from advprune.models.border import admitted, check_images, refuse
from advprune.models.card import card_of
from advprune.models.target import Answer, Target, target_of
from advprune.report.formats import budgets_in, rate_text
from advprune.report.results import results
from advprune.report.run import Model, Run
from advprune.studies.corruptions import corrupted

DENSE, MODEL = "dense", "model"  # the names in a run of one or two networks
AGAINST_DENSE = ("transfer_", "against_dense", "p_against", "robust_d", "distance_", "p_distance")
OWN = ("model", "family", "parent", "root", "recipe", "do", "group", "images", "robust_images")


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to evaluate. card: its facts (models/card.py). files, known: what it depends on; an
    evaluation that was killed resumes where none of that changed."""

    network: nn.Module
    card: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    known: Any = None


@dataclass(frozen=True, eq=False, repr=False)
class Benchmark:
    """What was found of a network, or of a compressed one beside its dense network. run: all of it,
    as a report reads it; the network is its last model."""

    run: Run

    @property
    def _model(self) -> Model:
        return self.run.models[-1]

    @property
    def clean(self) -> Rate:
        """Clean accuracy: `value` in [0, 1], `interval` (95 %), `hits` of `n`."""
        return clean_accuracy(self._model.attack(self.run.main))

    @property
    def robust(self) -> Rate:
        """Robust accuracy: of the images that no attack broke within the budget."""
        return remnant_accuracy(self.run.robust(self._model))

    @property
    def distances(self) -> np.ndarray:
        """Smallest change found that fools the network, by image `[N]`, in the chosen norm and
        units of the pixel range; infinite where none was found."""
        return self.run.distances(self._model)

    @property
    def verdict(self) -> Verdict:
        """`level` (reliable, suspect or broken), and the `checks` that it follows from."""
        return self.run.verdict(self._model)

    @property
    def records(self) -> pd.DataFrame:
        """One row per image and attack."""
        return self._model.records

    @property
    def metrics(self) -> dict[str, Any]:
        """Every number as plain values; comparisons only where there is a dense network."""
        row = results(self.run).astype(object).iloc[-1]
        row = row.where(row.notna(), None)
        left_out = OWN if len(self.run.models) > 1 else (*OWN, *AGAINST_DENSE)
        return {str(key): row[key] for key in row.index if not str(key).startswith(left_out)}

    def __repr__(self) -> str:
        main, (median, low, high) = self.run.main_attack, median_distance(self.distances)
        lines = [
            f"clean {rate_text(self.clean)}, robust {rate_text(self.robust)}",
            f"({main.norm}, eps {main.eps:.4g}, n = {self.run.n});",
            f"median distance {median:.4g} ({low:.4g}–{high:.4g}); {self.verdict.level}",
        ]
        return f"Benchmark({' '.join(lines)})"

    def page(self, path: Path | str, title: str = "") -> None:
        """Write the report as one HTML file that needs no other. title: by default its name."""
        from advprune.report.page import html, shown_sections

        with budgets_in(self.run.main_attack.norm), atomic(Path(path)) as temporary:
            text = html(self.run, shown_sections(self.run), title or Path(path).stem)
            temporary.write_text(text, encoding="utf-8")

    def write(self, folder: Path | str) -> None:
        """Write metrics.json, verdict.json, records.parquet and, of corruptions, their records."""
        folder, verdict = Path(folder), self.verdict
        write_json(folder / "metrics.json", self.metrics)
        checks = [asdict(check) for check in verdict.checks]
        write_json(folder / "verdict.json", {"verdict": verdict.level, "checks": checks})
        for name, table in ({"records": self.records} | dict(self.run.studies)).items():
            write_table(folder / f"{name}.parquet", table)


def benchmark(
    model: nn.Module | Answer,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float | str = 8 / 255,
    norm: str = "Linf",
    dense: nn.Module | None = None,
    twin: nn.Module | None = None,
    classes: int = 0,
    queries: int | None = None,
    seed: int = 0,
) -> Benchmark:
    """Attack a network by the suite for its kind, curves and probes, as `advprune evaluate` does.

    model: images `[N, C, H, W]` in [0, 1] to logits `[N, K]`, normalization inside; it stays on its
    device and as it is. Or any function of such images that gives scores or labels `[N]`, such as a
    deployed file (docs/deployed.md). images: uint8, or floats in [0, 1], which are rounded to 8
    bits. labels: int64 `[N]`. eps: in units of the pixel range, 0.03 or "8/255". norm: Linf or L2.
    dense: what `model` was compressed from; adds transfer and paired comparisons. twin, classes: of
    a function, a network with the same answers whose gradients are followed (by default `dense`),
    and how many classes there are, if more than labels and networks show. queries: of a search
    without gradients, per image. InputError where one of these makes no sense.
    """
    who = "benchmark"
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        images = to_float(images)
    check_images(who, images, labels)
    refuse(who, {"there are no images": not len(images)})
    pixels = (images * 255).round().to(torch.uint8).cpu()
    images, labels = to_float(pixels), labels.cpu()

    def classes_of(network: nn.Module) -> int:
        with torch.no_grad():
            return int(network(images[:1].to(device_of(network))).shape[1])

    beside = [admitted(who, one, images, labels) for one in (dense, twin) if one is not None]
    counts = {classes_of(one) for one in beside}
    if not isinstance(model, nn.Module) and callable(model):
        model = target_of(model, images, max({classes, int(labels.max()) + 1} | counts))
    unused = "twin and classes are of a function; a network has gradients and classes of its own"
    refuse(who, {unused: not isinstance(model, Target) and (twin is not None or classes > 0)})
    model = admitted(who, model, images, labels)
    counts.add(classes_of(model))
    refuse(who, {f"the networks have {sorted(counts)} classes": len(counts) > 1})
    names = tuple(map(str, range(counts.pop())))
    split = Split(pixels, labels, names, "images that were given")
    networks = [model] if dense is None else [beside[0], model]
    subjects = [Subject(one, card_of(None, one, image_shape=split.shape)) for one in networks]
    with TemporaryDirectory() as place:
        settings = defaults(eps, norm, split.shape, seed, queries)
        known = None if twin is None else Subject(beside[-1], {})
        return measured(subjects, split, settings, Path(place), known)


def measured(
    subjects: Sequence[Subject],
    split: Split,
    params: Params,
    place: Path,
    twin: Subject | None = None,
) -> Benchmark:
    """One network, or a dense network and then a compressed one, through the suite of the settings.
    place: where finished attacks are kept until all are. twin: of a target, as for `benchmark`."""
    profile, main, images = params.active(), params.attack.main, to_float(split.images)
    facts = profile.model_dump(include={"data", "attacks", "suite", "curves", "batch"})
    facts |= {"attack": params.attack.model_dump(), "seed": params.seed}
    facts |= {"images": sha256_of(split)}
    models: list[Model] = []
    parent: nn.Module | None = None
    sent: dict[tuple[str, str], Any] = {}  # images made on the last, for the other
    for name, subject in zip((DENSE, MODEL)[-len(subjects) :], subjects, strict=True):
        network, card, above = subject.network, subject.card, parent
        files = [file for one in subjects[: len(models) + 1] for file in one.files]
        if isinstance(network, Target) and (beside := twin.network if twin else parent) is not None:
            network, files = network.with_twin(beside), files + (twin.files if twin else [])
            card = card | {"twin_agreement": round(target_agreement(network, images), 4)}
            above = None if beside is parent else parent
        parts = Parts(place, name, facts | {"known": subject.known}, files=files)
        suite = Suite(images, split.labels, profile, params.attack, params.seed, parts, above)
        records, adv = suite.attack(name, network)
        tables = {
            key: transfer_records(network, images, split.labels, {key: crafted}, suite.work)
            for key, crafted in sent.items()
        }
        family, root = ("given", models[0].name) if models else ("dense", name)
        own = card, records, pd.DataFrame(), tables
        models.append(Model(name, family, root, root, "given", *own))
        parent, sent = network, {(name, main): adv[main]}
    if len(models) > 1:  # compared models face the same attacks: images go both ways
        back = transfer_records(subjects[0].network, images, split.labels, sent, suite.work)
        models[0] = replace(models[0], transfers={next(iter(sent)): back})
    about = split.source, list(split.classes), split.images.numpy()
    return Benchmark(Run(params, models, {}, {}, *about, folder=place))


def with_corruptions(found: Benchmark, subjects: Sequence[Subject], split: Split) -> Benchmark:
    """The same with records of common corruptions of the same images; its page shows them. The
    robust accuracy and the verdict know nothing of them."""
    run, records, entries = found.run, {}, {}
    work = Work(run.params.seed, run.profile.batch, run.params.attack.score_draws)
    with progress("corruptions", len(subjects) * len(KINDS)) as advance:
        for model, subject in zip(run.models, subjects, strict=True):
            tables = []
            for kind in KINDS:
                tables += [corrupted(subject.network, split.images, split.labels, work, kind)]
                advance(1)
            name = f"corruptions-{model.name}"
            records[name] = pd.concat(tables, ignore_index=True)
            entries[name] = StudyEntry(study="corruptions", of=model.name)
    params = run.params.model_copy(update={"studies": entries})
    return Benchmark(replace(run, params=params, studies=records))
