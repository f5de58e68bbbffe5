"""Stage attack: the suite on one model; records, adversarial images, effect on each layer."""

from typing import Annotated

import typer

from common import Workspace, script


def attack(
    name: Annotated[str, typer.Argument(help="dense-<recipe>, or an entry of `models:`.")],
) -> None:
    """Write runs/<profile>/<name>/{records.parquet,layers.parquet,adversarial.safetensors}.

    For an attacker's own network only the images are made; both tables are empty.
    """
    import pandas as pd
    from safetensors.torch import save_file

    from advprune.core.device import setup
    from advprune.core.errors import UserError
    from advprune.core.files import atomic, read_json
    from advprune.data import to_float
    from advprune.evaluate.layers import noisy_images, where
    from advprune.evaluate.suite import Suite

    workspace = Workspace()
    params, settings = workspace.params, workspace.profile
    device = setup(threads=1)  # processes share the work (core/ahead.py)
    model, test = workspace.load(name).to(device), workspace.splits("test")["test"]
    images = to_float(test.images)
    attacks = workspace.place("data", "attacks.json")  # DVC makes this stage depend on it
    if not attacks.is_file() or read_json(attacks) != params.attacks_in_force():
        raise UserError(f"{attacks} is not up to date; run `dvc repro` or stages/settings.py")
    files = [workspace.run(name), workspace.data("test"), attacks]
    entry, parent = params.models.get(name), None
    if entry is not None and entry.do == "quantize":
        parent = workspace.load(entry.of).to(device)
        files.append(workspace.run(entry.of))
    parts = workspace.parts(files=files)
    suite = Suite(images, test.labels, settings, params.attack, params.seed, parts, parent)
    records, layers = pd.DataFrame(), pd.DataFrame()
    if name in params.attackers():
        adversarial = suite.images_of(name, model)
    else:
        records, adversarial = suite.attack(name, model)
        if workspace.writes:
            shown = adversarial[params.attack.main] / 255
            layers = where(model, images, shown, noisy_images(images, shown, params.seed))
    workspace.write_table(workspace.run(name, "records.parquet"), records)
    workspace.write_table(workspace.run(name, "layers.parquet"), layers)
    if workspace.writes:
        with atomic(workspace.run(name, "adversarial.safetensors")) as temporary:
            save_file(adversarial, temporary)
    parts.discard()


if __name__ == "__main__":
    script(attack, shared=True)
