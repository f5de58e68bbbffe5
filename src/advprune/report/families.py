"""One part a family: its settings, the claim that it was published with, and what was found here.

Claim and source stand once, in the family's page (docs/families); `read_claims` takes them from
there.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from advprune.core.params import DENSE
from advprune.evaluate.compare import Comparison, compare
from advprune.evaluate.measures import clean_accuracy, remnant_accuracy
from advprune.report import masks, randomized, sparse, tables
from advprune.report.board import board
from advprune.report.finding import spell
from advprune.report.study import Model, Study
from advprune.report.text import NOTHING, count, p_value, percent, setting_text, unbroken

ROW = ""  # the caption of a family's rows of the leaderboard
CLAIM = re.compile(r"^\*\*Claim\*\* \(([^)]*)\)\. (.+?)(?=\n\n|\Z)", re.DOTALL | re.MULTILINE)
SOURCE = re.compile(r"^\*\*Source\.\*\* (.+?)(?=\s+Code:|\n\n|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Claim:
    """What a family is said to do, by whom, and where it comes from; plain text."""

    text: str
    by: str
    source: str


@dataclass(frozen=True)
class Part:
    """A family on the page.

    brief: its accuracies in a few words. settings: (where, setting) as run. found: sentences, base
    by base.
    """

    family: str
    brief: str
    settings: list[tuple[str, str]]
    claim: Claim | None = None
    found: list[str] = field(default_factory=list)
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)


def read_claims(folder: Path) -> dict[str, Claim]:
    """The claims of a folder's pages by family; none for a page without one, or no folder."""
    found = {page.stem: claim_of(page.read_text(encoding="utf-8")) for page in _pages(folder)}
    return {family: claim for family, claim in found.items() if claim is not None}


def _pages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.md"))


def claim_of(page: str) -> Claim | None:
    """The paragraphs `**Claim** (whose). …` and `**Source.** …` of a page; None without both."""
    claim, source = CLAIM.search(page), SOURCE.search(page)
    if claim is None or source is None:
        return None
    return Claim(_plain(claim[2]), _plain(claim[1]), _plain(source[1]))


def _plain(text: str) -> str:
    """Markdown without links, emphasis and line ends."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"(?<!\w)\*+(\S(?:[^*]*\S)?)\*+(?!\w)", r"\1", text.replace("`", ""))
    return " ".join(text.split())


def parts(study: Study, claims: Mapping[str, Claim]) -> list[Part]:
    """A part for each family that has a row in one of the tables here, in their order."""
    whole = {
        ROW: board(study).frame(),
        "In the published table": _published(study),
        "Over compression": masks.mask_table(study),
        "Among the sparse networks": sparse.point_table(study),
        "In SAP's published protocol, under one step of FGSM": _members(study),
    }
    whole = {caption: table for caption, table in whole.items() if len(table)}
    families = dict.fromkeys(family for table in whole.values() for family in table.family)
    return [
        _part(study, family, claims.get(family), whole)
        for family in families
        if family not in (DENSE, NOTHING)
    ]


def _part(
    study: Study, family: str, claim: Claim | None, whole: Mapping[str, pd.DataFrame]
) -> Part:
    models = [model for model in study.models if model.family == family]
    own = [(caption, table[table.family == family]) for caption, table in whole.items()]
    return Part(
        family,
        unbroken("; ".join(_brief(study, one) for one in models) or "not on the leaderboard"),
        list(_settings(study, family, models)),
        claim,
        [_found(study, model) for model in models],
        [(caption, table) for caption, table in own if len(table)],
    )


def _brief(study: Study, model: Model) -> str:
    """What is left, clean and attacked, for the line that is read before a part is opened."""
    clean, robust = clean_accuracy(model.attack(study.main)), remnant_accuracy(study.robust(model))
    where = f"{model.base}: " if len(study.params.bases) > 1 else ""
    return f"{where}clean {percent(clean.value)} %, robust {percent(robust.value)} %"


def _settings(study: Study, family: str, models: list[Model]) -> Iterator[tuple[str, str]]:
    """Where a family was applied and at which setting."""
    params = study.params
    for setting in dict.fromkeys(setting_text(model.card["setting"]) for model in models):
        yield "Setting", setting
    if family in params.quantized:
        yield "Made", setting_text(params.quantized[family].model_dump(exclude_none=True))
    for place, where in (("sweep", "Sweep"), ("compression", "Curve over compression")):
        if settings := getattr(params, place).get(family, []):
            yield where, "; ".join(setting_text(setting) for setting in settings)
    for group in params.protocol.values():
        for name, member in group.items():
            if member.family == family:
                yield f"Protocol, {name}", setting_text(_plain_setting(member.setting))


def _plain_setting(setting: Any) -> Any:
    return setting.model_dump() if hasattr(setting, "model_dump") else setting


def _members(study: Study) -> pd.DataFrame:
    """Accuracy over the budget of each member of SAP's protocol, with its family and setting."""
    if not randomized.members(study):
        return pd.DataFrame()
    known = randomized.member_table(study)
    return known.merge(randomized.budget_table(study, randomized.FGSM), on="member")


def _published(study: Study) -> pd.DataFrame:
    """The rows of the sweeps in the published table, on every base."""
    found = pd.concat(
        [table.assign(base=base) for base, table in tables.published_table(study).items()],
        ignore_index=True,
    )
    found.insert(1, "base", found.pop("base"))
    swept = found[found.family.isin(list(study.params.sweep))]
    return swept if len(study.params.bases) > 1 else swept.drop(columns="base")


def _found(study: Study, model: Model) -> str:
    """Clean, robust, transfer, and the verdict with its reasons, against the dense network."""
    dense = study.dense(model.base)
    clean = compare(model.attack(study.main), dense.attack(study.main), "clean")
    robust = compare(study.robust(model), study.robust(dense))
    where = f"On {model.base}: clean" if len(study.params.bases) > 1 else "Clean"
    sentences = [
        f"{where} accuracy {spell(clean.first)}, {_beside(clean)}; robust accuracy "
        f"{spell(robust.first)}, {_beside(robust)} (n = {robust.first.n}, each tested alone).",
        *_sent(study, model),
        _verdict(study, model),
    ]
    return unbroken(" ".join(sentences))


def _beside(test: Comparison) -> str:
    if test.void:
        return "not compared, being at chance when clean"
    if not test.differs:
        return f"no difference from dense's {spell(test.second)} shown, {p_value(test.p)}"
    side = "above" if test.difference > 0 else "below"
    return f"{side} dense's {spell(test.second)}, {p_value(test.p)}"


def _sent(study: Study, model: Model) -> Iterator[str]:
    if (f"dense-{model.base}", study.main) in model.received:
        kept = remnant_accuracy(model.transferred(study.main))
        yield f"Of images crafted on the dense network it keeps {spell(kept)}."


def _verdict(study: Study, model: Model) -> str:
    found = study.verdict(model)
    if not found.against:
        return f"Verdict: {found.level}, {count(len(found.checks), 'check')} passed."
    reasons = [f"{check.name} ({check.figure}): {check.reason}" for check in found.against]
    return f"Verdict: {found.level}; {'; '.join(reasons)}."
