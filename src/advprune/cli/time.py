"""`advprune time`: how long the networks of a finished run take on this machine."""

from typing import Annotated

import typer

from advprune.cli.options import ProfileOption

BATCH = 64  # images per call, besides 1


def time(
    profile: ProfileOption = None,
    batch: Annotated[int, typer.Option(min=2, help="Images per call, besides 1.")] = BATCH,
) -> None:
    """Measure the latency of a finished run's networks, for the section “Speed” of its report.

    Writes `timings/<profile>.csv`: median and quartiles of a forward pass at batch 1 and --batch,
    the processor and its threads, multiply-accumulates, non-zeros, bytes; `advprune report` then
    shows it. Times differ from run to run: no stage of the pipeline measures them, no gate reads
    them.
    """
    from advprune.cli.repository import Repository
    from advprune.cli.tables import show_frame
    from advprune.core.device import setup
    from advprune.core.files import check_writable, read_json, write_table
    from advprune.data import to_float
    from advprune.evaluate.timing import timings
    from advprune.models.checkpoint import load_model
    from advprune.report.sections.speed import TIMINGS

    place, device, models = Repository(profile), setup(), {}
    check_writable(path := TIMINGS / f"{place.params.profile}.csv")
    for name in place.params.leaderboard():
        file = place.place("runs", name) / "model.safetensors"
        network = load_model(file, place.profile.model.factory).to(device)
        models[name] = network, read_json(file.with_suffix(".json"))
    found = timings(models, to_float(place.split("test").images), batch)
    write_table(path, found)
    show_frame(found)
    print(path)
