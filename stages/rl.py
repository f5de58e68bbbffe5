"""Stages of rl/dvc.yaml: an agent by DQN, its episodes under attack, the report on all games."""

from pathlib import Path
from typing import Literal

from common import script  # isort: skip (it puts the library on the path)

from advprune.core.files import atomic, write_json, write_table
from advprune.rl.settings import RlParams, load

RUNS = Path("runs/rl")


def train(params: RlParams, game: str) -> None:
    """Write runs/rl/<game>/agent.safetensors, and agent.json: seed, settings and probes."""
    from advprune.rl import agent

    settings = params.game(game)
    trained, probes = agent.train(settings, params.seed)
    agent.save_agent(trained, RUNS / game / "agent.safetensors")
    facts = {"seed": params.seed, **settings.model_dump(exclude={"budgets"}), "probes": probes}
    write_json(RUNS / game / "agent.json", facts)


def evaluate(params: RlParams, game: str) -> None:
    """Write runs/rl/<game>/records.parquet, one row per episode."""
    from advprune.rl import agent, attack

    dense = agent.load_agent(RUNS / game / "agent.safetensors")
    records = attack.evaluate(dense, params.game(game), params)
    write_table(RUNS / game / "records.parquet", records)


def report(params: RlParams, _: str) -> None:
    """Of all games: rl/metrics.json, rl/gains.csv, rl/report/report.md and rl/report/reward.png."""
    import pandas as pd

    from advprune.rl.report import figure, gains, markdown, metrics, results

    records = {game: pd.read_parquet(RUNS / game / "records.parquet") for game in params.games}
    found = {game: results(table) for game, table in records.items()}
    write_json(Path("rl/metrics.json"), metrics(found))
    write_table(Path("rl/gains.csv"), gains(records))
    with atomic(Path("rl/report")) as folder:
        folder.mkdir()
        (folder / "report.md").write_text(markdown(found, params), encoding="utf-8")
        figure(found).savefig(folder / "reward.png", metadata={"Software": None})


def rl(step: Literal["train", "evaluate", "report"], game: str = "") -> None:
    """Run one step; train and evaluate are of one of `games:` in rl/params.yaml."""
    {"train": train, "evaluate": evaluate, "report": report}[step](load(), game)


if __name__ == "__main__":
    script(rl)
