"""Stage settings: checks all settings, and notes what lies outside of the pipeline."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from common import Workspace, script

if TYPE_CHECKING:
    from advprune.core.params import Params


def settings() -> None:
    """Write files to data/<profile>/ that stages depend on instead of what they hold.

    settings.json: all settings of the run; attacks.json and studies/<name>.json: what attacks and
    a study read of them, with budgets as numbers. dvc.lock would repeat them for every stage.
    pictures.json and weights.json: the sha256 of the pictures at `data.root` or ADVPRUNE_DATA and
    of the weights at `model.weights`. This stage always runs: what needs torch is done where
    settings have changed since the last time.
    """
    from advprune.core.claims import FILE as CLAIMS
    from advprune.core.claims import read_claims
    from advprune.core.errors import UserError
    from advprune.core.files import existing, read_json, sha256_of, write_json

    if Path(CLAIMS).exists():  # in a project of one's own there are none
        read_claims(Path(CLAIMS))
    workspace = Workspace()
    params, active = workspace.params, workspace.profile
    checked, whole = workspace.place("data", "settings.json"), params.model_dump(mode="json")
    whole["profiles"] = {params.profile: whole["profiles"][params.profile]}
    studies, unchanged = workspace.place("data", "studies"), False
    with suppress(UserError):  # a file that is missing or damaged
        unchanged = read_json(checked) == whole
    unchanged &= {file.stem for file in studies.glob("*.json")} == {*params.studies}
    if not unchanged:
        from advprune.studies import reads_of

        check(params)
        shutil.rmtree(studies, ignore_errors=True)
        studies.mkdir(parents=True)  # though there may be no study
        for name in params.studies:
            read = active.model_dump(mode="json", include=set(reads_of(params, name)))
            write_json(studies / f"{name}.json", read)
    root = active.data.place
    pictures = {} if root is None else {root: sha256_of(existing(root))}
    noted = {
        checked: whole,
        workspace.place("data", "attacks.json"): params.attacks_in_force(),
        workspace.place("data", "pictures.json"): pictures,
        workspace.place("data", "weights.json"): files_of(params),
    }
    for file, value in noted.items():
        write_json(file, value)
    pipeline = Path("dvc.yaml").read_text(encoding="utf-8")
    for file in workspace.code():
        own = file.resolve().is_relative_to(Path("networks").resolve())
        named = f"- {os.path.relpath(file)}\n" in pipeline  # by `advprune init`
        if not own and not named:
            print(f"note: DVC does not watch {file}; after a change there run `dvc repro -f`")


def check(params: "Params") -> None:
    """UserError where one of the settings that are typed beside their code is wrong."""
    from advprune.attacks.registry import attacks_of
    from advprune.attacks.zoo import check_attack
    from advprune.pruning import check_settings
    from advprune.studies import check_studies

    attacks_of(params.active())
    check_settings(params)
    check_studies(params)
    for extra in params.attack.extra:
        check_attack(extra.name, extra.arguments())


def files_of(params: "Params") -> dict[str, str]:
    """The sha256 of the files of `model.weights`, and of the cards beside those of finished models.
    UserError where a file is missing, or a dense network is not named by its recipe."""
    from advprune.core.errors import UserError
    from advprune.core.files import plain_file, referenced, sha256_of

    weights = params.active().model.weights
    if dense := sorted(set(weights) & set(params.dense())):
        raise UserError(f"model.weights: name {dense[0]} by its recipe, without dense-")
    for name in sorted(set(weights) - {*params.recipes, *params.models}):
        print(f"note: model.weights names {name}, which is neither a recipe nor a model here")
    files = {name: referenced(one.path) for name, one in weights.items()}
    for name in sorted(set(weights) & set(params.models)):
        files[f"{name}.json"] = plain_file(files[name].with_name(f"{name}.json"), "card")
    return {name: sha256_of(file) for name, file in files.items()}


if __name__ == "__main__":
    script(settings)
