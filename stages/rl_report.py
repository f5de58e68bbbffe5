"""Stage report of rl/dvc.yaml: metrics, table, sentence and figure, from the records alone."""

from pathlib import Path

from common import script


def report() -> None:
    """Write rl/metrics.json, rl/report/report.md and rl/report/reward.png."""
    import pandas as pd

    from advprune.core.files import atomic, write_json
    from advprune.rl.report import figure, markdown, png
    from advprune.rl.rewards import metrics
    from advprune.rl.settings import load

    params = load(Path("rl/params.yaml"))
    records = {game: pd.read_parquet(f"records/rl/{game}.parquet") for game in params.games}
    found = {
        f"{game}_{key}": value
        for game, table in records.items()
        for key, value in metrics(table).items()
    }
    write_json(Path("rl/metrics.json"), found)
    with atomic(Path("rl/report")) as folder:
        folder.mkdir()
        (folder / "report.md").write_text(markdown(records, params), encoding="utf-8")
        (folder / "reward.png").write_bytes(png(figure(records)))


if __name__ == "__main__":
    script(report)
