"""What the study of SAP's protocol found: pure functions of its records."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from advprune.evaluate.robust import worst_rows

SAP, DROPOUT = "SAP", "dropout"


@dataclass(frozen=True, eq=False)
class ProtocolModel:
    """A model of the protocol. family: None for the dense network itself. rows: its records."""

    name: str
    parent: str
    family: str | None
    setting: Any
    rows: pd.DataFrame

    @property
    def options(self) -> Mapping[str, Any]:
        """Its setting as a mapping: a bare number is SAP's draws as a fraction of a map."""
        return self.setting if isinstance(self.setting, Mapping) else {"fraction": self.setting}

    @property
    def as_published(self) -> bool:
        """Whether it is the dense network, dropout or SAP, but not SAP on convolutions."""
        return self.family in (None, SAP, DROPOUT) and self.options.get("where") != "conv"

    def over_budgets(self, attack: str) -> dict[float, pd.DataFrame]:
        """Its records under an attack by budget, rising."""
        own = self.rows[self.rows.attack == attack].sort_values("index")
        budgets = sorted(own.eps.unique())
        return {float(eps): own[own.eps == eps].reset_index(drop=True) for eps in budgets}

    def under(self, attacks: Collection[str]) -> dict[str, pd.DataFrame]:
        """Its records under each of these attacks that it went through, at the lowest budget."""
        tables = {name: self.over_budgets(name) for name in attacks}
        return {name: next(iter(found.values())) for name, found in tables.items() if found}


def pairs(found: list[ProtocolModel]) -> Iterator[tuple[ProtocolModel, ProtocolModel]]:
    """SAP as published at the fraction nearest to 1 (SAP-100), with its dense network."""
    for parent in dict.fromkeys(one.parent for one in found):
        own = [one for one in found if one.parent == parent and one.as_published]
        dense = [one for one in own if one.family is None]
        sap = [one for one in own if one.family == SAP]
        if dense and sap:
            yield min(sap, key=lambda one: abs(float(one.options["fraction"]) - 1)), dense[0]


def worst_of(tables: Mapping[Any, pd.DataFrame]) -> pd.DataFrame:
    """The worst case over some attacks, image by image."""
    return worst_rows(pd.concat(tables.values(), ignore_index=True))


def by_budget(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, pd.DataFrame]]:
    """Attacks in groups of one budget each: a worst case over several budgets is meaningless."""
    groups: dict[float, dict[str, pd.DataFrame]] = {}
    for name, table in tables.items():
        groups.setdefault(round(float(table.eps.iloc[0]), 6), {})[name] = table
    return list(groups.values())
