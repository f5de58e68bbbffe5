"""Speed and size beside robustness; only where `advprune time` measured this machine."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from advprune.report.chart import Chart
from advprune.report.formats import counted
from advprune.report.results import results
from advprune.report.run import Run
from advprune.report.section import Part, section

TIMINGS = Path("timings")  # holds `<profile>.csv` (`evaluate.timing.timings`); not in git


@section("Speed", order=107)
def speed(run: Run) -> Iterator[Part]:
    """Latency, file, multiply-accumulates and non-zeros; the trade-off for each batch size."""
    path = run.folder / TIMINGS / f"{run.params.profile}.csv"
    if not path.is_file():
        return
    found = pd.read_csv(path)
    about = found.iloc[0]
    threads = "" if pd.isna(about.threads) else f", {counted(int(about.threads), 'thread')}"
    yield Part(
        "Speed and size",
        f"Time of a forward pass on {about.processor}{threads}: median and quartiles of "
        f"{int(found.calls.min())} calls or more, networks taking turns. As PyTorch runs them "
        "here: zeros of a mask are multiplied, and integers are simulated in floating point.",
        found.drop(columns=["processor", "threads"]),
    )
    look = ("model", "robust_accuracy", "macs", "file_bytes")
    board = results(run).drop(columns=["macs", "nonzero", "file_bytes"])
    for batch, rows in found.groupby("batch"):
        data = rows.merge(board, on="model")
        axes = ("latency", "median_distance", "group")
        yield Part(
            f"Distance over latency, batch {batch}",
            chart=Chart(f"latency-{batch}", "points", data, *axes, marker="verdict", hover=look),
        )
