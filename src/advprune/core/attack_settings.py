"""Typed settings of PGD, what is read of other attacks (typed beside each, in `advprune.attacks`),
and how attacks are combined. Nothing here needs torch."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from advprune.core.settings import (
    PATH,
    L2Budget,
    Name,
    Settings,
    parse,
    parse_fraction,
    within_pixels,
)

# What is differentiated where a model hides its gradient (models/backward.py), and the rules that
# layers know which draw at random.
Backward = Literal["constant", "scale", "identity", "straight", "wide", "parent", "ensemble"]
RandomBackward = Literal["constant", "scale", "identity"]


class Attack(Settings):
    """What every attack has; eps in units of the pixel range.

    after: the attack whose unbroken images this one works on, where the suite has it; on a model
    that draws at random, and in a study, on all. within: only on images whose distance, which
    `after` has found, is at most this, from where it found them (attacks/registry.py). rounding: to
    8 bits (attacks/pixels.py).
    """

    method: Name
    norm: Literal["Linf", "L2"] = "Linf"
    eps: L2Budget
    after: Name | None = None
    within: L2Budget | None = None
    rounding: Literal["strict", "nearest"] = "strict"

    @model_validator(mode="after")
    def _linf_budget_fits_the_pixel_range(self) -> Self:
        if self.norm == "Linf":
            within_pixels(self.eps, "eps: ")
        return self


class GradientAttack(Attack):
    """What attacks by gradients have.

    draws: over how many draws the gradients of randomized models are averaged. backward: what is
    differentiated where a model hides its gradient (models/backward.py); null: its own rule.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    draws: int = Field(default=1, ge=1, le=10000)
    backward: Backward | None = None


class QueryAttack(Attack):
    """What attacks that only ask for answers have.

    queries: per image. draws: over how many draws of a randomized model logits are averaged.
    """

    queries: int = Field(default=1000, ge=1, le=1000000)
    draws: int = Field(default=1, ge=1, le=10000)

    @property
    def steps(self) -> int:
        """What records call its steps: the queries."""
        return self.queries


class AttackSettings(GradientAttack):
    """One attack of the PGD engine (`advprune.attacks.pgd`).

    restarts: starts, of which the result of highest loss is returned; images given to begin from
    take the place of the first. keep: the `last` iterate (as published), or the `best`, of highest
    loss. drop: return a sample's first misclassified iterate and work on it no more: much faster,
    right where only accuracy counts. momentum: steps follow `v = momentum * v + g / mean|g|` (Dong
    et al., Boosting Adversarial Attacks with Momentum, 2018); 0 is plain PGD. adam: steps are
    Adam's on the gradient's sign, which without a random start begin at the darkest corner of the
    Linf ball, as in the attack of Athalye et al. (2018) on SAP.
    """

    method: Literal["pgd"] = "pgd"
    step: L2Budget
    steps: int = Field(default=10, ge=0, le=100000)
    restarts: int = Field(default=1, ge=1, le=1000)
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr"] = "ce"
    keep: Literal["last", "best"] = "last"
    drop: bool = False
    momentum: float = Field(default=0.0, ge=0, le=1)
    adam: bool = False

    @model_validator(mode="after")
    def _adam_has_its_own_momentum(self) -> Self:
        if self.adam and self.momentum > 0:
            raise ValueError("adam has a momentum of its own")
        return self

    @property
    def crosses(self) -> bool:
        """Whether its path is long enough for a random start on the far side of the ball."""
        return not self.random_start or self.steps * self.step >= PATH * self.eps * (1 - 1e-9)


class OtherAttack(Attack):
    """An attack of another method, as read: its own keys are typed beside it."""

    model_config = ConfigDict(extra="allow")


def _by_method(value: Any) -> Any:
    """A mapping as an attack of the PGD engine, where it does not name another method."""
    if not isinstance(value, Mapping):
        return value
    kind = AttackSettings if value.get("method", "pgd") == "pgd" else OtherAttack
    return kind.model_validate(value)


AnyAttack = Annotated[AttackSettings | OtherAttack, BeforeValidator(_by_method)]
KINDS = ("deterministic", "randomized", "quantized", "binary", "clamped")


class SuiteSettings(Settings):
    """Which of the profile's attacks are run on each kind of model.

    table: those of the published table; of every model and every setting of a sweep, and the dense
    network's images are tried on its compressed models. transfer: of every model; the main one's
    images are tried on all other models, the others' where a dense network or an attacker's own
    made them. clamped: models with clamped or rounded feature maps.
    """

    table: list[Name] = Field(min_length=1)
    transfer: list[Name] = Field(min_length=1)
    deterministic: list[Name] = []
    randomized: list[Name] = []
    quantized: list[Name] = []
    binary: list[Name] = []
    clamped: list[Name] = []

    def of(self, kind: str) -> list[str]:
        """The names of all attacks of a kind of model, those whose images are kept first."""
        return list(dict.fromkeys([*self.kept, *getattr(self, kind)]))

    @property
    def kept(self) -> list[str]:
        """The names of the attacks that every model gets, and whose images are kept."""
        return list(dict.fromkeys([*self.table, *self.transfer]))


class ProtocolSettings(Settings):
    """The published protocol of SAP and the attacks that broke it.

    images: how many test images, the first ones; null: all. eps: budgets of the single-step attack,
    whose gradients and predictions are averaged over `draws`, and of `iterative`, its step in
    proportion. adaptive: attacks on the members that ask for them.
    """

    images: int | None = Field(default=None, ge=1)
    draws: int = Field(default=100, ge=1, le=10000)
    eps: list[L2Budget] = Field(min_length=1)
    iterative: AttackSettings
    adaptive: dict[Name, AttackSettings] = {}

    @model_validator(mode="after")
    def _attacks_take_every_image(self) -> Self:
        for name, attack in {"iterative": self.iterative, **self.adaptive}.items():
            if attack.after or attack.within is not None:
                raise ValueError(f"{name}: after and within are of suites; leave them out")
        return self


def _different(points: list[Any]) -> list[Any]:
    if len(set(points)) < len(points):
        raise ValueError("a point is given twice")
    return points


class CurveSettings(Settings):
    """Accuracy over the budget and over the number of steps, around the main attack."""

    eps: Annotated[list[L2Budget], Field(min_length=1), AfterValidator(_different)]
    steps: Annotated[
        list[Annotated[int, Field(ge=1)]], Field(min_length=1), AfterValidator(_different)
    ]


Argument = Annotated[Any, AfterValidator(lambda v: parse_fraction(v) if "/" in str(v) else v)]
OF_L2 = ("CW", "DeepFool", "SparseFool")  # attacks of torchattacks that measure changes so


class ExtraAttack(BaseModel):
    """An attack of torchattacks by class name; the other keys are its own arguments. label: its
    name in records, needed where a class is used twice."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Argument]
    name: Name
    label: Name | None = None

    @property
    def key(self) -> str:
        """Its name in records."""
        return self.label or self.name

    def arguments(self) -> dict[str, Any]:
        """The attack's own arguments, fractions such as 8/255 read as numbers."""
        return dict(self.model_extra or {})

    @property
    def setting(self) -> OtherAttack:
        """As an attack: its norm by its argument, else its name; without `eps`, the class's own."""
        own = self.arguments()
        norm = own.get("norm", "L2" if self.name.endswith("L2") or self.name in OF_L2 else "Linf")
        known = {"norm": norm, "eps": own.get("eps", 1.0), "name": self.name, "arguments": own}
        known["method"] = "torchattacks"
        return parse(OtherAttack, known, f"attack.extra: {self.key}")


class FlipSettings(Settings):
    """How the bit-flip attack is run (`advprune.attacks.bitflip`), in every bit-flip study.

    images: training images, drawn anew for each of the `seeds`, labelled by the network's own
    predictions. budget: most flips per seed. stop: at a test accuracy of `stop / classes`, asked
    for after every `every` flips; 1 or more: also where it is no better than the most frequent
    class. random, random_every: random flips beside it, and how often they are scored. target: the
    class of targeted attacks.
    """

    images: int = Field(default=128, ge=1)
    seeds: int = Field(default=5, ge=1, le=1000)
    budget: int = Field(default=100, ge=1, le=1000000)
    stop: float = Field(default=1.1, gt=0, le=100)
    every: int = Field(default=1, ge=1)
    random: int = Field(default=100, ge=0, le=1000000)
    random_every: int = Field(default=10, ge=1)
    target: int = Field(default=0, ge=0)


class AttackChoice(Settings):
    """The main attack, one of the suites' table, and extra ones. score_draws: over how
    many draws the logits of randomized models are averaged for scoring."""

    main: Name
    score_draws: int = Field(default=20, ge=10, le=10000)
    extra: list[ExtraAttack] = []
