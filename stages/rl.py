"""Stages of rl/dvc.yaml: an agent by DQN, its episodes under attack, the report on all games."""

from pathlib import Path
from typing import Literal

from common import script  # isort: skip (it puts the library on the path)

from advprune.core.files import atomic, write_json
from advprune.rl.settings import load

RUNS = Path("runs/rl")


def rl(step: Literal["train", "evaluate", "report"], game: str = "") -> None:
    """Run one step; train and evaluate are of one of `games:` in rl/params.yaml.

    train: runs/rl/<game>/agent.safetensors, and agent.json: seed, settings and probes. evaluate:
    records.parquet beside it, one row per episode. report: of all games, rl/metrics.json,
    rl/gains.csv, rl/report/report.md and rl/report/reward.png.
    """
    params, folder = load(), RUNS / game
    if step == "train":
        from advprune.rl import agent

        trained, probes = agent.train(settings := params.game(game), params.seed)
        agent.save_agent(trained, folder / "agent.safetensors")
        facts = {"seed": params.seed, **settings.model_dump(exclude={"budgets"}), "probes": probes}
        write_json(folder / "agent.json", facts)
    elif step == "evaluate":
        from advprune.rl import agent, attack

        dense = agent.load_agent(folder / "agent.safetensors")
        records = attack.evaluate(dense, params.game(game), params)
        with atomic(folder / "records.parquet") as temporary:
            records.to_parquet(temporary, index=False)
    else:
        import pandas as pd

        from advprune.rl import report

        played = {name: pd.read_parquet(RUNS / name / "records.parquet") for name in params.games}
        found = {name: report.results(records) for name, records in played.items()}
        write_json(Path("rl/metrics.json"), report.metrics(found))
        with atomic(Path("rl/gains.csv")) as temporary:
            report.gains(played).to_csv(temporary, index=False)
        with atomic(Path("rl/report")) as temporary:
            temporary.mkdir()
            (temporary / "report.md").write_text(report.markdown(found, params), encoding="utf-8")
            report.figure(found).savefig(temporary / "reward.png", metadata={"Software": None})


if __name__ == "__main__":
    script(rl)
