"""Stage train of rl/dvc.yaml: an agent by double DQN."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from common import script


def train(
    game: Annotated[str, typer.Argument(help="A key of `games:` in rl/params.yaml.")],
) -> None:
    """Write models/rl/<game>/: the agent, its settings and the training history."""
    import pandas as pd
    import torch

    from advprune.core.device import setup
    from advprune.core.files import atomic, fingerprint, write_json
    from advprune.rl.agent import save_agent
    from advprune.rl.dqn import Trainer
    from advprune.rl.environment import make
    from advprune.rl.settings import load

    torch.set_num_threads(1)  # small networks are slower on several
    params = load(Path("rl/params.yaml"))
    settings, folder = params.game(game), Path("models/rl") / game
    chosen = settings.model_dump(exclude={"budgets"})
    state = Path("checkpoints") / fingerprint(chosen, params.seed) / "dqn.pt"
    trainer = Trainer(
        lambda: make(settings.env, settings.options),
        settings.hidden,
        settings.train,
        params.seed,
        setup(),
        state,
    )
    agent, history = trainer.run()
    save_agent(agent, folder / "agent.safetensors")
    write_json(folder / "agent.json", {"seed": params.seed, **chosen})
    with atomic(folder / "history.csv") as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False)
    shutil.rmtree(state.parent, ignore_errors=True)


if __name__ == "__main__":
    script(train)
