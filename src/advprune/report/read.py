"""Reading a run: its files, each either whole or refused with what to do."""

import json
from pathlib import Path

import pandas as pd

from advprune.core.claims import FILE, read_claims
from advprune.core.errors import UserError
from advprune.core.params import Params
from advprune.core.profile import PROBES
from advprune.report.run import Model, Run, Transfers, in_order, tensors_of

NEEDED = ("index", "label", "clean_pred", "adv_pred", "eps", "steps", "attack")


def read_run(params: Params, folder: Path = Path()) -> Run:
    """Read everything that the settings declare; UserError where a file is missing or damaged."""
    records, runs = (folder / kind / params.profile for kind in ("records", "runs"))
    transfers: dict[str, Transfers] = {}  # by target, and then by (source, attack)
    table = _frame(records / "transfer.parquet")
    for (target, source, attack), part in table.groupby(["target", "source", "attack"], sort=False):
        transfers.setdefault(str(target), {})[str(source), str(attack)] = in_order(part)
    models = [_read_model(params, runs, name, transfers) for name in params.leaderboard()]
    own = [transfers[name] for name in params.attackers()]
    studies = {name: _frame(records / name / "records.parquet") for name in params.studies}
    for path in (path for name in params.studies for path in (records / name).glob("*.parquet")):
        if path.stem != "records":  # what else a study recorded: `<name>.history`
            studies[f"{path.parent.name}.{path.stem}"] = _frame(path)
    tensors, header = tensors_of(folder / "data" / params.profile / "test.safetensors")
    described = json.loads(header["split"])
    return Run(
        params=params,
        models=models,
        attackers={key: table for tables in own for key, table in tables.items()},
        studies=studies,
        source=described["source"],
        classes=described["classes"],
        clean_images=tensors["images"],
        folder=folder,
        claims=read_claims(folder / FILE),
    )


def _read_model(params: Params, runs: Path, name: str, transfers: dict[str, Transfers]) -> Model:
    if name not in transfers:
        raise UserError(f"the transfer stage has no {name}; run `dvc repro`")
    entry, folder = params.models.get(name), runs / name
    try:
        card = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        path = folder / "model.json"
        raise UserError(f"{path} is missing or damaged ({error}); run `dvc repro`") from error
    return Model(
        name=name,
        family=params.family(name),
        parent=entry.of if entry else name,
        root=params.root(name),
        do=entry.do if entry else "train",
        card=card,
        records=records_of(folder / "records.parquet"),
        layers=_frame(folder / "layers.parquet"),
        transfers=transfers[name],
    )


def records_of(path: Path) -> pd.DataFrame:
    """The records of a model; UserError where columns or rows are missing, numbers are none, or an
    attack does not have each of its images once (a probe: at most once)."""

    def damaged(what: str) -> UserError:
        return UserError(f"{path} {what}; run `dvc repro`")

    table = _frame(path)
    if missing := [column for column in NEEDED if column not in table]:
        raise damaged(f"has no column {missing[0]}")
    if not len(table):
        raise damaged("has no rows")
    for column in NEEDED[:-1]:
        if not pd.api.types.is_numeric_dtype(table[column]) or table[column].isna().any():
            raise damaged(f"holds what is no number in column {column}")
    for (attack, *_), rows in table.groupby(["attack", "eps", "steps"], sort=False):
        partly = attack in PROBES  # some look only at what the suite did not break
        whole = rows["index"].is_unique if partly else sorted(rows["index"]) == [*range(len(rows))]
        if not whole:
            raise damaged(f"lacks images of {attack}, or has some twice")
    return table


def _frame(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"there is no {path}; run `dvc repro`")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro`") from error
