"""The register of claims, claims.yaml, as typed settings. Nothing here needs torch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from advprune.core.errors import UserError
from advprune.core.settings import (
    ModelName,
    Name,
    Settings,
    parse,
    parse_fraction,
    relative,
    text_of,
    yaml_of,
)

FILE = "claims.yaml"


class Reads(NamedTuple):
    """What a metric of `report.claim_metrics` reads. studies: whose models or points it compares,
    besides the leaderboard's. keys: of a claim that is not over seeds. alone: whether a model may
    be its own control."""

    studies: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    alone: bool = False


READS = {
    "clean": Reads(("seeds",)),
    "robust": Reads(("seeds",)),
    "distance": Reads(),
    "attacked": Reads(("protocol",), ("attack", "eps")),
    "transfer": Reads(("seeds",), ("attack", "matched")),
    "flips": Reads((), ("factor", "variant"), alone=True),
    "calibration": Reads(("protocol",), ("attack", "eps")),
    "transfer_back": Reads((), ("attack",)),
    "agents": Reads((), ("attack",)),
    **dict.fromkeys(("input_changes", "last_grows", "stage_spreads"), Reads(alone=True)),
}
OPTIONS = ("attack", "eps", "matched", "factor", "variant")  # keys that some metrics read
Expected = Literal["higher", "lower", "equal", "no higher"]
Amount = Annotated[float, BeforeValidator(parse_fraction), Field(gt=0)]


class Regime(Settings):
    """Where a claim was made, in words, and the least that a run must have to refute it. networks:
    architectures; empty: any. epochs: of the last training on the way to the model, all phases
    together. n: test images. seeds: trainings."""

    published: str
    data: tuple[str, ...]
    networks: tuple[str, ...] = ()
    width: int = Field(default=1, ge=1)
    epochs: int = Field(default=0, ge=0)
    n: int = Field(default=1, ge=1)
    seeds: int = Field(default=1, ge=1)

    @property
    def asked(self) -> str:
        """That least in short: `cifar10, resnet20 or resnet18, width 16, n 1,000`."""
        amounts = {key: getattr(self, key) for key in ("width", "epochs", "n", "seeds")}
        found = [" or ".join(self.data), " or ".join(self.networks)]
        found += [f"{key} {value:,}" for key, value in amounts.items() if value > 1]
        return ", ".join(filter(None, found))


class Criteria(Settings):
    """What must hold of the model before anything is concluded about its method. changed: least
    share of the weights that it changes. kernel_distance: most, at the end of a search for tickets.
    larger_than: a model of fewer parameters. clean_loss: most clean accuracy lost against its dense
    network, in place of the guard that calls no model of lower clean accuracy more robust."""

    changed: float | None = Field(default=None, gt=0, le=1)
    kernel_distance: float | None = Field(default=None, gt=0)
    larger_than: ModelName | None = None
    clean_loss: float | None = Field(default=None, gt=0, lt=1)


class Claim(Settings):
    """A published sentence and its test.

    where: the place in the source. claim: the sentence in our words, published: its figures.
    metric: a key of `READS`; attack, eps, matched, factor, variant: see there. model, control: of
    the leaderboard or of a study. expect: how they compare. effect: the least difference that
    counts, of higher and lower; margin: the most that is none, of equal and no higher (accuracy as
    a fraction, distance in pixels, flips in bits). params: a file of settings that declares what
    the claim needs; run: the command, where no such file does.
    """

    id: ModelName
    paper: str
    source: str
    where: str
    claim: str
    published: str = ""
    regime: Regime
    metric: str
    model: ModelName
    control: ModelName
    study: Literal["seeds", "protocol"] | None = None
    expect: Expected = "higher"
    effect: Amount | None = None
    margin: Amount | None = None
    attack: Name | None = None
    eps: str | None = None
    matched: bool = False
    factor: float = Field(default=1.0, ge=1)
    variant: Name = "untargeted"
    needs: Criteria = Criteria()
    params: str = ""
    run: str = ""

    @property
    def counts(self) -> float:
        """The effect or the margin."""
        return float(self.effect or self.margin or 0)

    @property
    def is_difference(self) -> bool:
        """Whether a difference is claimed, not that there is none."""
        return self.expect in ("higher", "lower")

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if not (self.params or self.run):
            raise ValueError("a claim names params or run: how what it needs is made")
        known, other = ("effect", "margin") if self.is_difference else ("margin", "effect")
        if getattr(self, known) is None or getattr(self, other) is not None:
            raise ValueError(f"expect: {self.expect} takes {known}, not {other}")
        return self

    @model_validator(mode="after")
    def _metric_reads_what_is_said(self) -> "Claim":
        name, reads = self.metric, READS.get(self.metric)
        if reads is None:
            raise ValueError(f"no metric {name!r}; known: {', '.join(READS)}")
        if self.study not in (None, *reads.studies):
            known = " or ".join([*reads.studies, "none"])
            raise ValueError(f"study: {self.study}: metric {name} takes {known}")
        given = {
            key for key in OPTIONS if getattr(self, key) != type(self).model_fields[key].default
        }
        if unread := sorted(given - {*(() if self.study == "seeds" else reads.keys)}):
            where = f" of study {self.study}" if self.study else ""
            raise ValueError(f"{unread[0]}: metric {name}{where} does not read it; leave it out")
        if self.eps is not None and not parse_fraction(relative(self.eps, 1.0)) > 0:
            raise ValueError("eps: write a budget such as eps/8 or 8/255")
        if self.model == self.control and not (reads.alone and (given or not reads.keys)):
            raise ValueError("model and control are the same")
        return self


def read_claims(path: Path) -> tuple[Claim, ...]:
    """The claims of a file: a list of papers, each with what its claims share and `claims` by id.

    A claim's `regime` adds to its paper's. UserError where the file is missing or wrong.
    """
    papers = yaml_of(text_of(path), str(path))
    found: dict[str, Claim] = {}
    for paper in papers if isinstance(papers, list) else [papers]:
        if not isinstance(paper, Mapping) or not isinstance(paper.get("claims"), Mapping):
            raise UserError(f"{path}: every paper is a mapping that holds `claims`")
        shared = {key: value for key, value in paper.items() if key != "claims"}
        for name, own in paper["claims"].items():
            if name in found:
                raise UserError(f"{path}: two claims are called {name!r}")
            where = f"{path}: {name}"
            try:
                regime = {**shared.get("regime", {}), **own.get("regime", {})}
                known = {**shared, **own, "regime": regime, "id": name}
            except (AttributeError, TypeError) as error:
                raise UserError(f"{where}: a claim and its regime are mappings") from error
            found[name] = parse(Claim, known, where)
    return tuple(found.values())
