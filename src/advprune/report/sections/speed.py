"""Speed and size beside robustness; only where `advprune time` measured this machine."""

from pathlib import Path

import pandas as pd

from advprune.core.errors import UserError
from advprune.report.formats import bounds, counted
from advprune.report.results import results
from advprune.report.section import Chart, Part, Parts, Run, section

NEEDED = ("model", "batch", "latency", *bounds("latency"), "calls", "macs", "nonzero", "file_bytes")
TIMINGS = Path("timings")  # holds `<profile>.csv` (`evaluate.timing.timings`); not in git


@section("Speed", order=107)
def speed(run: Run) -> Parts:
    """Latency, file, multiply-accumulates and non-zeros; the trade-off for each batch size."""
    path = run.folder / TIMINGS / f"{run.params.profile}.csv"
    if not path.is_file():
        return
    try:
        found = pd.read_csv(path)
        found, about = found[list(NEEDED)], found.iloc[0]
    except (ValueError, KeyError, IndexError) as error:  # pandas' own are ValueErrors
        raise UserError(f"{path} is damaged; run `advprune time`") from error
    threads = "" if pd.isna(about.threads) else f", {counted(int(about.threads), 'thread')}"
    yield Part(
        "Speed and size",
        f"Time of a forward pass on {about.processor}{threads}: median and quartiles of "
        f"{int(found.calls.min())} calls or more, networks taking turns. PyTorch multiplies the "
        "zeros of a mask and simulates integers; deployed files run in onnxruntime.",
        found,
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
