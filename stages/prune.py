"""Stage prune: one family at one setting, applied to the model's parent."""

from typing import Annotated

import typer

from common import Workspace, script


def prune(
    name: Annotated[str, typer.Argument(help="An entry of `models:` with do: prune.")],
) -> None:
    """Write runs/<profile>/<name>/model.{safetensors,json}."""
    from advprune.data import to_float
    from advprune.pruning import Data, chosen, setting_of
    from advprune.pruning import prune as prune_model

    workspace = Workspace()
    params, train = workspace.params, workspace.profile.train
    entry = workspace.entry(name, "prune")
    family, setting = chosen(entry.key, params.prune[entry.key])
    checked = setting_of(family, setting, place=entry.by)
    split = workspace.splits("train")["train"]
    if workspace.take_finished(name, setting, split.shape):
        return
    files = [workspace.run(entry.of), workspace.data("train")]
    with workspace.unfinished(name, family, setting, train.model_dump(), files=files) as state:
        data = Data(to_float(split.images), split.labels, train, state)
        parent = workspace.load(entry.of).to(workspace.device())
        pruned = prune_model(family, parent, checked, data, params.seed)
        ticket = pruned.notes.get("ticket")
        facts = {"setting": setting, "prune_ratio": round(pruned.ratio, 4), "ticket": ticket}
        if ticket and not ticket.get("converged", True):
            distance = ticket["kernel_distance"]
            print(f"{name}: the search did not converge: kernel distance {distance:.2f}")
        workspace.save(name, pruned.model, facts, image_shape=split.shape)


if __name__ == "__main__":
    script(prune)
