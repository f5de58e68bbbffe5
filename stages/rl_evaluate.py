"""Stage evaluate of rl/dvc.yaml: episodes of the dense and the SAP agent under attack."""

from pathlib import Path
from typing import Annotated

import typer

from common import script


def evaluate(
    game: Annotated[str, typer.Argument(help="A key of `games:` in rl/params.yaml.")],
) -> None:
    """Write records/rl/<game>.parquet, a row an episode."""
    import torch

    from advprune.core.device import setup
    from advprune.core.files import atomic
    from advprune.core.resume import Parts
    from advprune.rl.agent import load_agent
    from advprune.rl.environment import make
    from advprune.rl.evaluate import evaluate as play_all
    from advprune.rl.settings import load

    torch.set_num_threads(1)  # small networks are slower on several
    params = load(Path("rl/params.yaml"))
    settings, weights = params.game(game), Path("models/rl") / game / "agent.safetensors"
    agent = load_agent(weights).to(setup())
    chosen = [settings.model_dump(), params.sap.model_dump(), params.evaluate.model_dump()]
    parts = Parts(Path("checkpoints"), chosen, params.seed, files=[weights])
    records = play_all(
        agent,
        lambda: make(settings.env, settings.options),
        settings.budgets,
        params.sap,
        params.evaluate,
        params.seed,
        parts.frame,
    )
    with atomic(Path("records/rl") / f"{game}.parquet") as temporary:
        records.to_parquet(temporary, index=False)
    parts.discard()


if __name__ == "__main__":
    script(evaluate)
