"""What `advprune evaluate` found, for a terminal."""

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from advprune.benchmarking import Benchmark, Subject
from advprune.cli.tables import show, show_frame
from advprune.cli.time import BATCH
from advprune.core.errors import UserError, one_line
from advprune.core.files import write_table
from advprune.core.settings import yaml_of
from advprune.data import to_float
from advprune.evaluate.measures import remnant_accuracy
from advprune.evaluate.timing import timings
from advprune.report.formats import budget, budgets_in, p_text, percent
from advprune.report.sections.corruptions import by_severity, records_of
from advprune.report.sections.speed import TIMINGS
from advprune.report.tables import rated

RATES = {"clean_accuracy": "clean", "robust_accuracy": "robust"}
MARKS = {"pass": "✓", "doubt": "?", "fail": "✗"}
N = 10_000  # images of published figures, those of CIFAR-10's test


@cache
def figures() -> dict[str, dict[str, Any]]:
    """Published figures of compressed networks by name (`apb/HYDRA/resnet18/90`):
    clean_accuracy, robust_accuracy (AutoAttack, Linf) in [0, 1], and source."""
    text = files("advprune.report").joinpath("benchmarks.yaml").read_text("utf-8")
    return {
        f"{benchmark}/{name}": {"source": held["source"]}
        | dict(zip(RATES, (rate / 100 for rate in rates), strict=True))
        for benchmark, held in yaml_of(text, "benchmarks.yaml").items()
        for name, rates in held["figures"].items()
    }


def published(name: str) -> dict[str, Any]:
    """The figures of that name; UserError where there are none."""
    if name not in figures():
        raise UserError(f"--beside {name}: there are figures of {', '.join(figures())}")
    return figures()[name]


def print_beside(found: Benchmark, there: dict[str, Any]) -> None:
    """Rates of this evaluation and published ones, which are of other images."""
    rows = [[RATES[key], percent(found.metrics[key]), percent(there[key])] for key in RATES]
    print()
    show((f"n = {found.metrics['n']}, and beside it {N}", "here %", "there %"), rows)
    print(f"beside: {one_line(there['source'])}")


def print_found(found: Benchmark, checkpoint: Path) -> None:
    """Rates, attacks and verdict of the last network, for a terminal."""
    run, metrics, verdict = found.run, found.metrics, found.verdict
    main, model, robust = run.main_attack, run.models[-1], run.robust(run.models[-1])
    with budgets_in(main.norm):
        eps = budget(main.eps)
    print(f"{one_line(str(checkpoint))}: {metrics['n']} images of {one_line(run.source)}")
    print(f"robust: the worst case over the suite within {main.norm} eps {eps}\n")
    tried = {name: model.attack(name) for name in run.attack_names(model)}
    tables = {
        name: records  # a random point of the ball is no attack
        for name, records in tried.items()
        if not ((records.method == "pgd") & (records.steps == 0)).all()
    }
    if len(run.models) > 1:
        tables[f"{run.main}, on the dense"] = model.transferred(run.main)
    rows = [{"": "clean"} | rated("accuracy", found.clean) | {"n": metrics["n"]}]
    for name, records in (tables | {"robust": robust}).items():
        row = {"": name} | rated("accuracy", remnant_accuracy(records)) | {"n": len(records)}
        costs = [kind for kind in ("gradients", "forwards") if kind in records]
        rows.append(row | {kind: round(records[kind].mean()) for kind in costs})
    show_frame(pd.DataFrame(rows))
    if len(run.models) > 1:
        against, p = metrics["against_dense"], p_text(metrics["p_against_dense"])
        print(f"against the dense network: {against} ({p})")
    print(f"verdict: {verdict.level}\n")
    checks = [[f"{MARKS[c.outcome]} {c.name}", c.figure, c.reason] for c in verdict.checks]
    show(("check", "figure", ""), checks, left=3)


def print_corruptions(found: Benchmark) -> None:
    """Accuracy by severity; of two networks, their means compared."""
    table = by_severity(found.run, records_of(found.run))
    wide = "^accuracy_low:|^accuracy_high:|^detectable"
    print()
    show_frame(table.loc[:, ~table.columns.str.contains(wide)])


def timed(found: Benchmark, subjects: Sequence[Subject]) -> pd.DataFrame:
    """How long the networks take; also left where the page looks for it."""
    run = found.run
    pairs = zip(run.models, subjects, strict=True)
    models = {model.name: (one.network, one.card) for model, one in pairs}
    table = timings(models, to_float(torch.from_numpy(run.clean_images)), BATCH)
    write_table(run.folder / TIMINGS / f"{run.params.profile}.csv", table)
    return table
