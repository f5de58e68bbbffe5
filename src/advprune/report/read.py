"""Reading a run from its files. A damaged file is refused, with the command that mends it."""

import sys
from pathlib import Path

import pandas as pd

from advprune.core.claims import FILE, read_claims
from advprune.core.errors import UserError
from advprune.core.files import read_json
from advprune.core.params import DENSE, Params
from advprune.core.profile import PROBES
from advprune.data.split import read_split
from advprune.report.current import model_is_current, study_is_current
from advprune.report.run import Absent, Model, Run, Transfers, in_order

ANSWERS = ("index", "label", "clean_pred", "adv_pred")
RECORDS = (*ANSWERS, "eps", "steps", "attack")
COLUMNS = {  # of the records of the transfer stage and of each kind of study
    "transfer": (*ANSWERS, "linf", "l2", "source", "attack", "target"),
    "sweep": (*RECORDS, "family", "order", "value"),
    "compression": (*ANSWERS, "attack", "family", "order", "value"),
    "protocol": (*RECORDS, "member"),
    "seeds": (*RECORDS, "point", "seed", "family", "sparsity"),
    "corruptions": (*ANSWERS, "corruption", "severity"),
    "bitflip": ("flip", "accuracy", "seed", "stored_bits", "variant"),
}
TEXT = (
    *("attack", "source", "target", "family", "value", "member", "point", "variant"),
    *("layer", "kind", "corruption"),
)
LAYER = ("depth", "layer", "kind", "clean_mean", "adv_mean", "clean_sigma", "adv_sigma")
CARD = ("bits", "parameters", "setting", "sparsity", "twin_agreement")


def read_run(params: Params, folder: Path = Path()) -> Run:
    """Read all models and studies of the settings that have been run; `Run.absent` names the rest,
    and what other settings made.

    UserError where no dense network was attacked, the attacks are others now, or a file is damaged
    or missing beside others.
    """
    noted = folder / "data" / params.profile / "attacks.json"  # when stages were last run
    if noted.is_file() and read_json(noted) != params.attacks_in_force():
        raise UserError(f"{noted} holds other attacks than the settings; run `dvc repro`")
    records, runs = (folder / kind / params.profile for kind in ("records", "runs"))
    places = {name: runs / name / "records.parquet" for name in params.leaderboard()}
    found = {name: records_of(path) for name, path in places.items() if path.exists()}
    attacked = [n for n, table in found.items() if model_is_current(params, runs, n, table)]
    others = [name for name in found if name not in attacked]  # made by other settings
    names = [name for name in attacked if params.root(name) in attacked]
    if not names:
        why = f"; other settings made {', '.join(others)}" if others else ""
        raise UserError(f"no dense network has a records.parquet in {runs}{why}; run `dvc repro`")
    stages = {name: f"attack@{name}" for name in params.models}
    stages |= {f"{DENSE}-{recipe}": f"attack_dense@{recipe}" for recipe in params.recipes}
    lost = {  # a model is judged beside its dense network
        one: stages[params.root(one) if one in attacked else one]
        for one in params.leaderboard()
        if one not in names
    }
    absent = [Absent("model", name, stage) for name, stage in lost.items()]
    transfers, studies = read_transfers(records / "transfer.parquet"), dict[str, pd.DataFrame]()
    targets = [*names, *params.attackers()] if transfers else [""]  # one line for all
    if transfers or len(places) + len(params.attackers()) > 1:  # of a single network there is none
        lacking = [name for name in targets if name not in transfers]
        absent += [Absent("transfer", name, "transfer") for name in lacking]
    for name, study in params.studies.items():
        path = records / name / "records.parquet"
        if there := study.of not in lost and path.exists():
            table = _frame(path, *COLUMNS.get(study.study, ()))
            if study_is_current(params.active(), study, table):
                more = {f"{name}.{p.stem}": p for p in (records / name).glob("*.parquet")}
                studies |= {key: _frame(p) for key, p in more.items() if p != path}  # its history
                studies[name] = table
                continue
        others += [name] * there
        absent.append(Absent("study", name, lost.get(study.of, f"study@{name}")))
    if others:
        print(f"left out, as made by other settings: {', '.join(others)}", file=sys.stderr)
    models = [read_model(params, runs / n, found[n], transfers.get(n, {})) for n in names]
    test = read_split(folder / "data" / params.profile / "test.safetensors")
    return Run(
        params=params,
        models=models,
        attackers={k: t for name in params.attackers() for k, t in transfers.get(name, {}).items()},
        studies=studies,
        source=test.source,
        classes=list(test.classes),
        clean_images=test.images.numpy(),
        folder=folder,
        # A project around one network has none; in a clone DVC sees that they are there.
        claims=read_claims(folder / FILE) if (folder / FILE).exists() else (),
        absent=tuple(absent),
    )


def read_transfers(path: Path) -> dict[str, Transfers]:
    """The records of models on others' images, by target; none where there is no such file."""
    found = dict[str, Transfers]()
    if path.exists() and len(table := _frame(path)):  # empty in a run of one model
        _check(table, path, *COLUMNS["transfer"])
        for (target, *source), part in table.groupby(["target", "source", "attack"], sort=False):
            found.setdefault(str(target), {})[str(source[0]), str(source[1])] = in_order(part)
    return found


def read_model(params: Params, folder: Path, records: pd.DataFrame, transfers: Transfers) -> Model:
    """A model of the leaderboard from its folder of runs/ and its records."""
    entry, name = params.models.get(folder.name), folder.name
    card, layers = read_json(folder / "model.json"), _frame(folder / "layers.parquet")
    if not isinstance(card, dict) or not set(CARD) <= card.keys():
        need = ", ".join(CARD)
        raise UserError(f"{folder / 'model.json'} does not hold {need}; run `dvc repro`")
    if len(layers):
        _check(layers, folder / "layers.parquet", *LAYER)
    made = (entry.of, params.root(name), entry.do) if entry else (name, name, "train")
    return Model(name, params.family(name), *made, card, records, layers, transfers)


def records_of(path: Path) -> pd.DataFrame:
    """The records of a model; UserError where columns or rows are missing, numbers are none, or an
    attack does not have each of its images once (a probe: at most once)."""
    table = _frame(path, *RECORDS)
    if not len(table):
        raise UserError(f"{path} has no rows; run `dvc repro`")
    for (attack, *_), rows in table.groupby(["attack", "eps", "steps"], sort=False):
        partly = attack in PROBES  # some look only at what the suite did not break
        whole = rows["index"].is_unique if partly else sorted(rows["index"]) == [*range(len(rows))]
        if not whole:
            raise UserError(f"{path} lacks images of {attack}, or has some twice; run `dvc repro`")
    return table


def _frame(path: Path, *columns: str) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"there is no {path}; run `dvc repro`")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError, LookupError, TypeError) as error:  # of its columns and metadata
        raise UserError(f"{path} is damaged ({error}); run `dvc repro`") from error
    _check(table, path, *columns)
    return table


def _check(table: pd.DataFrame, path: Path, *columns: str) -> None:
    for name in columns:
        fault, cells = "", table.get(name)
        if cells is None:
            fault = f"has no column {name}"
        elif name in TEXT and cells.map(pd.api.types.is_list_like).any():
            fault = f"holds what is no text in column {name}"
        elif (name not in TEXT and not pd.api.types.is_numeric_dtype(cells)) or (
            name in RECORDS and cells.isna().any()
        ):
            fault = f"holds what is no number in column {name}"
        if fault:
            raise UserError(f"{path} {fault}; run `dvc repro`")
