"""Whether what was recorded was made by the settings under which it is reported.

A model by the setting on its card and on those that it descends from; records by the budgets and
steps of their attacks, the values of a sweep and the names of points and members. DVC calls stale
whatever is refused here, so nothing that is up to date is.
"""

import json
from ast import literal_eval
from collections.abc import Mapping
from math import isclose, isnan
from numbers import Real
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ValidationError

from advprune.core.attack_settings import AttackSettings
from advprune.core.errors import UserError
from advprune.core.files import read_json
from advprune.core.params import DENSE, Params, StudyEntry
from advprune.core.profile import Profile
from advprune.pruning import chosen, setting_of


def model_is_current(params: Params, runs: Path, name: str, records: pd.DataFrame) -> bool:
    """Whether a model of runs/<profile>/ and its records were made by the settings."""
    ancestors = [name]
    while ancestors[-1] in params.models:
        ancestors.append(params.models[ancestors[-1]].of)
    cards = {one: runs / one / "model.json" for one in ancestors}
    made = {one: read_json(card) for one, card in cards.items() if card.exists()}
    return attacks_agree(params.active(), records) and all(
        not isinstance(card, Mapping)  # damaged, which is refused where it is read
        or "setting" not in card
        or _is_setting(params, one, card["setting"])
        for one, card in made.items()
    )


def _is_setting(params: Params, name: str, known: Any) -> bool:
    """Whether the setting on a model's card is that of `params`."""
    now = params.setting(name)
    try:
        if isinstance(now, BaseModel):
            return bool(type(now).model_validate(known) == now)
        family, own = chosen(params.models[name].key, now)
        plain = json.loads(json.dumps(own))
        return bool(known == plain or setting_of(family, known) == setting_of(family, plain))
    except (UserError, ValidationError):
        return False


def attacks_agree(profile: Profile, records: pd.DataFrame) -> bool:
    """Whether the profile's attacks were run at its budgets and, those of PGD, in its steps."""
    if not {"attack", "eps", "steps"} <= {*records.columns}:
        return True
    for name, eps, steps in records[["attack", "eps", "steps"]].drop_duplicates().to_numpy():
        setting = profile.attacks.get(name)
        if setting is None or not isinstance(eps, Real) or isnan(eps):
            continue
        if not isclose(eps, setting.eps, rel_tol=1e-6):
            return False
        if isinstance(setting, AttackSettings) and steps != setting.steps:
            return False
    return True


def study_is_current(profile: Profile, study: StudyEntry, records: pd.DataFrame) -> bool:
    """Whether the records of a study were made by its settings, as far as they show it."""
    points = study.settings.get("points", {})
    if study.study in ("sweep", "compression"):
        rows = records[["family", "order", "value"]].drop_duplicates().itertuples(index=False)
        there = {(family, order): _value(text) for family, order, text in rows}
        asked = {(key, k): _value(str(v)) for key, own in points.items() for k, v in enumerate(own)}
        return there == asked and attacks_agree(profile, records)
    if study.study == "seeds":
        return {*records.point} == {DENSE, *points} and attacks_agree(profile, records)
    if study.study == "protocol":
        at = {float(f"{eps:.6g}") for eps in records[records.attack == "fgsm"].eps}
        # Its other attacks, although some have names of the suite's, are at budgets of their own.
        budgets = {float(f"{eps:.6g}") for eps in profile.protocol.eps}
        return at == budgets and {*records.member} == {*study.settings["members"]}
    return attacks_agree(profile, records)


def _value(text: str) -> Any:
    """What the records of a sweep hold as text: the value of a point."""
    try:
        return literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return text
