"""One revision's results, image by image, as the gate compares them: of the working tree, of a
commit, or from the records of a run."""

import io
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from advprune.core.errors import UserError
from advprune.core.params import FILE, Params
from advprune.core.settings import yaml_of
from advprune.evaluate.statistics import Rate, rate
from advprune.evaluate.verdict import RELIABLE
from advprune.report.formats import kind_of
from advprune.report.results import (
    ATTACK,
    RESULTS,
    TEXTS,
    distances,
    metrics_of,
    read_results,
    results,
)
from advprune.report.run import NOT_RUN

FOLDERS = ("reports", "metrics")
TRANSFER = "transfer_accuracy"  # empty of a run without the stage transfer
ROUNDING = 1e-4  # of most columns, to four digits


@dataclass(frozen=True, eq=False)
class ModelResult:
    """A model in one revision, image by image. robust: bool `[n]`; distances: `[n]`, 0 where the
    clean image is misclassified. images: fingerprint of the test images. attacks: columns of those
    that were run on it, and `TRANSFER`. budget: the main attack, its norm and eps."""

    robust: np.ndarray
    distances: np.ndarray
    clean: float
    verdict: str | None
    images: str
    attacks: frozenset[str] = frozenset()
    budget: tuple[Any, ...] = ()

    @property
    def rate(self) -> Rate:
        """Robust accuracy."""
        return rate(self.robust)

    @property
    def is_in_doubt(self) -> bool:
        """Whether robust accuracy and distances are upper bounds only."""
        return self.verdict != RELIABLE

    @property
    def distance(self) -> str:
        """The median distance."""
        return kind_of("median_distance").text(np.median(self.distances.astype(float)))


@dataclass(frozen=True)
class Revision:
    """One revision: results by model, settings of data and attacks (None: unknown), the norm of
    budget and distances, and all columns."""

    results: dict[str, ModelResult]
    settings: Any = None
    norm: str = "Linf"
    table: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)


def revision_of(table: pd.DataFrame, settings: Any = None) -> Revision:
    """A revision from its results (`results`, `read_results`), without models that were not run."""
    found = {}
    tried = [name for name in map(str, table) if name == TRANSFER or name.startswith(ATTACK)]
    for row in table[table.verdict != NOT_RUN].to_dict("records"):
        robust = np.array(list(row["robust_images"])) == "1"
        far = distances(row)
        if not (far >= 0).all():
            raise UserError(f"{row['model']}: a distance is negative or no number; run `dvc repro`")
        attacks = frozenset(name for name in tried if pd.notna(row[name]))
        facts = row["clean_accuracy"], row["verdict"], row["images"]
        budget = tuple(row.get(key) for key in ("attack", "norm", "eps"))
        found[row["model"]] = ModelResult(robust, far, *facts, attacks, budget)
    norm = next(iter(table.get("norm", pd.Series()).dropna()), "Linf")
    return Revision(found, settings, norm, table)


def differences(stored: Revision, made: Revision) -> dict[str, list[str]]:
    """The columns in which models that both have differ, by model; numbers by more than other
    processors round them."""
    models = [model for model in made.results if model in stored.results]
    columns = made.table.columns.union(stored.table.columns, sort=False)
    old, new = (
        one.table.set_index("model", drop=False).reindex(index=models, columns=columns)
        for one in (stored, made)
    )
    differ = {}
    for name in columns:
        if name in TEXTS:
            differ[name] = (old[name].fillna("") != new[name].fillna("")).to_numpy()
        else:
            one, other = (table[name].to_numpy(float) for table in (old, new))
            differ[name] = ~np.isclose(one, other, ROUNDING, 2 * ROUNDING, equal_nan=True)
    found = {m: [n for n, unlike in differ.items() if unlike[k]] for k, m in enumerate(models)}
    return {model: names for model, names in found.items() if names}


def recomputed(params: Params) -> Revision:
    """The results of the active profile, computed from the records of its run; UserError where
    that is not whole: fewer attacks would raise robust accuracies."""
    from advprune.report.read import read_run  # needs torch

    run = read_run(params)
    if run.absent:
        raise UserError(f"--recompute needs a whole run: run `dvc repro {run.absent[0].stage}`")
    table = read_results(results(run).to_csv(index=False), "what the records give")
    return revision_of(table, measured(settings_of(params), params.profile))


def settings_of(params: Params) -> str:
    """The settings of a run as YAML, with its own profile alone; they reproduce the run."""
    found = params.model_dump(mode="json", exclude_unset=True)
    found["profile"] = params.profile
    found["profiles"] = {params.profile: found["profiles"][params.profile]}
    buffer = io.StringIO()
    YAML().dump(found, buffer)  # one value per line: what DVC reads with takes no colon in braces
    return buffer.getvalue()


def measured(text: str | None, profile: str) -> Any:
    """The settings of data and attacks, of `settings_of`'s text beside a report; None where it is
    missing or another."""
    try:
        settings = yaml_of(text or "", "settings")
        chosen = settings["profiles"][profile]
    except (UserError, KeyError, TypeError):
        return None
    if not isinstance(chosen, Mapping):
        return None
    shared = {key: settings.get(key) for key in ("seed", "attack", "attacks", "suite", "curves")}
    return shared | {f"own {key}": chosen.get(key) for key in ("data", "eps", *shared)}


@dataclass(frozen=True)
class Tree:
    """The results and metrics of the working tree, or of a commit; where: how messages name it."""

    where: str = ""
    commit: str | None = None

    @cached_property
    def paths(self) -> list[str]:
        """`<folder>/<profile>/<file>` of each."""
        if self.commit is None:
            return sorted(path.as_posix() for one in FOLDERS for path in Path(one).glob("*/*.*"))
        listed = git("ls-tree", "-rz", "--name-only", self.commit, *(f"{f}/" for f in FOLDERS))
        return [path for path in listed.split("\0") if path.count("/") == 2]

    @property
    def profiles(self) -> list[str]:
        """Those that have results or metrics."""
        known = [path.split("/")[1] for path in self.paths if path.endswith((".csv", ".json"))]
        return list(dict.fromkeys(known))

    def read(self, path: str) -> str | None:
        """A file; None where there is none."""
        if path not in self.paths:
            return None
        if self.commit is not None:
            return git("show", f"{self.commit}:./{path}")
        # A link, of the file or of a folder above it, could lead anywhere.
        if not Path(path).is_file() or Path(path).resolve() != Path.cwd().resolve() / path:
            raise UserError(f"{path} is no plain file; run `dvc repro`")
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def results(self, profile: str) -> str | None:
        """The text of a profile's results.csv."""
        return self.read(f"reports/{profile}/{RESULTS}")

    def revision(self, profile: str) -> Revision | None:
        """What a profile's results say; None where it has neither results nor metrics. UserError
        where they are damaged, or where metrics say something else."""
        place, folder = f"reports/{profile}/{RESULTS}", f"metrics/{profile}/"
        metrics = {Path(path).stem: path for path in self.paths if path.startswith(folder)}
        if (text := self.results(profile)) is None:
            if metrics:
                raise UserError(f"{self.where}{folder} has no {place}; run `dvc repro`")
            return None
        table = read_results(text, self.where + place)
        rows = metrics_of(table)
        for model, path in metrics.items():
            try:
                known = json.loads(self.read(path) or "")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.where}{path} is damaged: {error}") from error
            if known != rows.get(model):
                raise UserError(f"{self.where}{path} contradicts {place}; run `dvc repro`")
        return revision_of(table, measured(self.read(f"reports/{profile}/{FILE}"), profile))


def git(*command: str) -> str:
    """What git prints, in the current folder; UserError with its last line where it fails."""
    try:
        done = subprocess.run(["git", *command], capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"gate reads the other revision with git: {error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"git {command[0]}: {said[-1]}")
    return done.stdout.decode("utf-8", "replace")
