"""A study: all that one run of the pipeline found, read back from its files."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError, safe_open

from advprune.core.errors import UserError
from advprune.core.attack_settings import AttackSettings
from advprune.core.params import PROBES, Params
from advprune.evaluate import metrics
from advprune.evaluate.compare import compare
from advprune.evaluate.faults import Reached, flips_metric, guessing, to_chance
from advprune.evaluate.measures import remnant_accuracy, robust_rates
from advprune.evaluate.transfer import transfer_success
from advprune.evaluate.verdict import Evidence, Verdict, verdict, worst_case

FROZEN = PROBES[-1]  # the probe that only randomized models get
Place = Callable[[str, str], Path]  # kind of file, name -> where it lies


@dataclass(frozen=True, eq=False)
class Model:
    """One row of the leaderboard: a model and what was recorded about it.

    records: every attack, curve and probe. layers: where the main attack acts. received: what it
    says to images that were crafted elsewhere, by (source, attack). card: the facts of the
    checkpoint.
    """

    family: str
    base: str
    card: dict[str, Any]
    records: pd.DataFrame
    layers: pd.DataFrame
    received: dict[tuple[str, str], pd.DataFrame]

    @property
    def name(self) -> str:
        """`<family>-<base>`."""
        return f"{self.family}-{self.base}"

    @property
    def kind(self) -> str:
        """Which suite it went through: deterministic, randomized, quantized or binary."""
        if (self.records.attack == FROZEN).any():
            return "randomized"
        bits = int(self.card["bits"])
        return "binary" if bits == 1 else "quantized" if bits < 32 else "deterministic"

    @cache  # noqa: B019 (a model lives as long as its study)
    def attack(self, name: str) -> pd.DataFrame:
        """The records of one attack, in the order of the images."""
        return self.records[self.records.attack == name].sort_values("index", ignore_index=True)

    def first(self, n: int) -> "Model":
        """The same with what was recorded on the first `n` images alone."""
        received = {source: _first(table, n) for source, table in self.received.items()}
        return replace(self, records=_first(self.records, n), received=received)

    def transferred(self, attack: str, source: str = "") -> pd.DataFrame:
        """Records of images crafted on `source`, by default the dense network of the same base.

        A model's own images are its white-box records.
        """
        source = source or f"dense-{self.base}"
        return self.attack(attack) if source == self.name else self.received[source, attack]


@dataclass(frozen=True)
class Point:
    """One setting of a sweep: the family applied at it, and its records under every attack."""

    family: str
    base: str
    setting: Any
    prune_ratio: float
    sparsity: float
    records: pd.DataFrame

    def attack(self, name: str) -> pd.DataFrame:
        """The records of one attack, in the order of the images."""
        return self.records[self.records.attack == name].sort_values("index", ignore_index=True)


@dataclass(frozen=True, eq=False)
class Study:
    """A whole run: settings, models in params order (dense, int8, families, base by base).

    sweeps, compressions: records by (family, base). surrogates: records of the attacker's own
    networks on their own images, by (name, attack). protocol: records of the published protocol of
    SAP, by member and recipe (empty: none). sparsity, sparsity_history: the records of the study of
    sparse networks and their training, likewise. bitflips: records of the bit-flip attack by entry.
    growth: what Early-Growth found, as `training.growth.Grown` (empty: nothing is grown).
    """

    params: Params
    models: list[Model]
    sweeps: dict[tuple[str, str], pd.DataFrame]
    compressions: dict[tuple[str, str], pd.DataFrame]
    surrogates: dict[tuple[str, str], pd.DataFrame]
    source: str
    classes: list[str]
    clean_images: np.ndarray  # uint8 [N, C, H, W], the evaluation subset
    adv_images: dict[str, np.ndarray]  # model name -> uint8, the main attack's
    protocol: pd.DataFrame
    sparsity: pd.DataFrame = field(default_factory=pd.DataFrame)
    sparsity_history: pd.DataFrame = field(default_factory=pd.DataFrame)
    bitflips: dict[str, pd.DataFrame] = field(default_factory=dict)
    growth: dict[str, Any] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The attack that the curves, the layers and the transfer are about."""
        return self.params.attack.main

    @property
    def attacks(self) -> dict[str, AttackSettings]:
        """The attacks of the published table, by name; the main one is among them."""
        return self.params.active().table()

    @property
    def main_attack(self) -> AttackSettings:
        """The main attack's settings."""
        return self.attacks[self.main]

    @cached_property
    def swept(self) -> "Study":
        """The same on the images that the settings of sweeps and of curves were attacked on.

        Whatever sets a setting beside a model reads it here, so that both are of the same images.
        """
        n = self.params.active().sweep_images
        if n is None:
            return self
        return replace(
            self,
            models=[model.first(n) for model in self.models],
            surrogates={source: _first(table, n) for source, table in self.surrogates.items()},
        )

    def each_base(self, kind: str) -> list[tuple[str, str]]:
        """A figure that is drawn for each base: (base, file name without ending)."""
        return _named(kind, self.params.bases)

    def each_group(self, kind: str) -> list[tuple[str, str]]:
        """A figure that is drawn for each group of models: (group, file name without ending)."""
        return _named(kind, list(self.groups))

    @cached_property
    def groups(self) -> dict[str, list[Model]]:
        """Models that share a figure, the dense network first: a base's own families, and on the
        first base those with masks, the quantized and the binary ones; tickets on theirs."""
        params, first = self.params, self.params.bases[0]
        found = {base: self._named(base, ("int8", *params.prune)) for base in params.bases}
        more = {
            "masks": (first, list(params.masks)),
            "tickets": (params.ticket_base or first, list(params.tickets)),
            "quantized": (first, ["int8", *params.quantized]),
            "binary": (first, list(params.binary)),
        }
        return found | {
            name: self._named(base, families)
            for name, (base, families) in more.items()
            if set(families) - {"int8"}
        }

    def _named(self, base: str, families: Iterable[str]) -> list[Model]:
        wanted = {"dense", *families}
        return [model for model in self.of(base) if model.family in wanted]

    @cache  # noqa: B019 (a study lives as long as the stage)
    def robust(self, model: Model) -> pd.DataFrame:
        """Per image, the attack of the model's suite that does most harm within the budget."""
        return worst_case(model.records, self.main)

    @cache  # noqa: B019
    def verdict(self, model: Model) -> Verdict:
        """Whether the model's robust accuracy can be believed."""
        is_dense = model.family == "dense"
        return verdict(
            Evidence(
                model.records,
                self.main,
                len(self.classes),
                None if is_dense else model.transferred(self.main),
                None if is_dense else self.robust(self.dense(model.base)),
                model.card["twin_agreement"],
            )
        )

    def dense(self, base: str) -> Model:
        """The dense network of a base."""
        return next(m for m in self.models if (m.family, m.base) == ("dense", base))

    def of(self, base: str) -> list[Model]:
        """The models of a base, the dense network first."""
        return [model for model in self.models if model.base == base]

    def points(self, family: str, base: str) -> list[Point]:
        """The settings of a sweep in the order of params.yaml; none where there is no sweep."""
        return self._points(family, base, self.sweeps, self.params.sweep)

    def compressed(self, family: str, base: str) -> list[Point]:
        """The settings of a family of masks over compression, likewise."""
        return self._points(family, base, self.compressions, self.params.compression)

    @staticmethod
    def _points(
        family: str,
        base: str,
        tables: dict[tuple[str, str], pd.DataFrame],
        settings: dict[str, list[Any]],
    ) -> list[Point]:
        table = tables.get((family, base))
        if table is None:
            return []
        return [
            Point(family, base, settings[family][order], *_facts(table[table.order == order]))
            for order in sorted(int(order) for order in table.order.unique())
        ]

    @cached_property
    def chance(self) -> float:
        """The accuracy at which a network under the bit-flip attack counts as guessing."""
        labels = self.models[0].attack(self.main).label.tolist()
        return guessing(self.params.active().bitflip.stop, len(self.classes), labels)

    @cache  # noqa: B019
    def flips(self, model: Model) -> Reached | None:
        """Bits to chance of a model: of its entry of most bits, of equals the first; None where
        there is no entry."""
        own = [n for n, entry in self.params.bitflip.items() if entry.model == model.name]
        name = max(own, key=lambda name: self.params.bitflip[name].bits, default=None)
        return None if name is None else to_chance(self.bitflips[name], self.chance)

    def own(self, source: str, attack: str) -> pd.DataFrame:
        """The records of a source on the images that were crafted on it."""
        if (source, attack) in self.surrogates:
            return self.surrogates[source, attack]
        return self.model(source).attack(attack)

    def model(self, name: str) -> Model:
        """A model by its name, `<family>-<base>`."""
        return next(model for model in self.models if model.name == name)

    @cache  # noqa: B019
    def metrics(self, model: Model) -> dict[str, Any]:
        """The flat metrics of one model, the same keys for each, rates rounded to 4 places.

        The four rates and the calibration under attack are those of the main attack; robust rates
        and the comparison with the dense network are those of the worst case over the suite.
        """
        records, dense_records = (m.attack(self.main) for m in (model, self.dense(model.base)))
        against = compare(self.robust(model), self.robust(self.dense(model.base)))
        transferred = model.transferred(self.main)
        card = model.card
        found = metrics(records)
        found |= robust_rates(self.robust(model)) | {"verdict": self.verdict(model).level}
        found |= remnant_accuracy(transferred).columns("transfer_accuracy")
        found |= transfer_success(transferred, dense_records).columns("transfer_success_rate")
        found |= {"p_against_dense": round(against.p, 4), "against_dense": against.mark}
        found |= flips_metric(self.flips(model))
        keys = ("prune_ratio", "sparsity", "bits", "parameters", "twin_agreement")
        return found | {key: card[key] for key in keys}


def _first(records: pd.DataFrame, n: int) -> pd.DataFrame:
    return records[records["index"] < n]


def _named(kind: str, groups: list[str]) -> list[tuple[str, str]]:
    return [(group, kind if len(groups) == 1 else f"{kind}-{group}") for group in groups]


def curve(model: Model, name: str, column: str) -> list[tuple[float, pd.DataFrame]]:
    """The points of a curve in rising order: (eps or steps, records by image)."""
    rows = model.records[model.records.attack == name]
    return [
        (float(value), part.sort_values("index", ignore_index=True))
        for value, part in rows.groupby(column, sort=True)
        if isinstance(value, int | float)
    ]


def read_study(params: Params, place: Place) -> Study:
    """Read everything that params.yaml declares; UserError where a file is missing or damaged."""
    received = _received(_frame(place("transfers", "transfer.parquet")))
    models = [
        _read_model(family, base, place, received.pop(f"{family}-{base}", None))
        for base in params.bases
        for family in params.models(base)
    ]
    first = params.bases[0]

    def swept(kind: str, families: Iterable[str]) -> dict[tuple[str, str], pd.DataFrame]:
        return {
            (family, first): _frame(place("records", f"{family}-{first}.{kind}.parquet"))
            for family in families
        }

    test, header = _tensors(place("data", "test.safetensors"))
    described = json.loads(header["split"])
    adv = {
        m.name: _tensors(place("records", f"{m.name}.adv.safetensors"))[0][params.attack.main]
        for m in models
    }
    protocols = [
        _frame(place("records", f"{recipe}.protocol.parquet")) for recipe in params.protocol
    ]
    return Study(
        params,
        models,
        swept("sweep", params.sweep),
        swept("compression", params.compression),
        {key: table for name, own in received.items() for key, table in own.items()},
        described["source"],
        described["classes"],
        test["images"],
        adv,
        pd.concat(protocols, ignore_index=True) if protocols else pd.DataFrame(),
        sparsity=_sparsity(params, place, "parquet"),
        sparsity_history=_sparsity(params, place, "history.parquet"),
        bitflips={
            name: _frame(place("records", f"{name}.bitflip.parquet")) for name in params.bitflip
        },
        growth=_growth(params, place("models", "growth.json")),
    )


def _sparsity(params: Params, place: Place, ending: str) -> pd.DataFrame:
    """A file of the study of sparse networks; an empty table where it has no points."""
    found = params.sparsity_study.points
    return _frame(place("records", f"sparsity.{ending}")) if found else pd.DataFrame()


def _growth(params: Params, path: Path) -> dict[str, Any]:
    """What Early-Growth found; nothing where no binary network has the channels that it chose."""
    if all(setting.channels != "grown" for setting in params.binary.values()):
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); run `dvc repro`") from error
    return found


def _facts(part: pd.DataFrame) -> tuple[float, float, pd.DataFrame]:
    return float(part.prune_ratio.iloc[0]), float(part.sparsity.iloc[0]), part


def _received(table: pd.DataFrame) -> dict[str, dict[tuple[str, str], pd.DataFrame]]:
    """The records of the transfer stage by target, and then by (source, attack)."""
    found: dict[str, dict[tuple[str, str], pd.DataFrame]] = {}
    for (target, source, attack), part in table.groupby(["target", "source", "attack"], sort=False):
        rows = part.sort_values("index", ignore_index=True)
        found.setdefault(str(target), {})[str(source), str(attack)] = rows
    return found


def _read_model(
    family: str, base: str, place: Place, received: dict[tuple[str, str], pd.DataFrame] | None
) -> Model:
    name = f"{family}-{base}"
    if received is None:
        raise UserError(f"the transfer stage knows no {name}; run `dvc repro`")
    card = place("models", name) / "model.json"
    if not card.is_file():
        raise UserError(f"there is no {card}; run `dvc repro`")
    return Model(
        family,
        base,
        json.loads(card.read_text(encoding="utf-8")),
        _frame(place("records", f"{name}.parquet")),
        _frame(place("records", f"{name}.layers.parquet")),
        received,
    )


def _frame(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise UserError(f"there is no {path}; run `dvc repro`")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro`") from error


def _tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); run `dvc repro`") from error
