"""Typed settings. The only module that knows params.yaml; it refuses what is wrong, by name.

Families' own settings (`prune.<family>`, `sweep.<family>`) are typed beside each family, in
`advprune.pruning`; here they are kept as read. Nothing in this module needs torch.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from advprune.core.errors import UserError
from advprune.core.networks import Architecture, Factory, Options, is_library

T = TypeVar("T", bound=BaseModel)
FILE = "params.yaml"
CURVES = ("curve_eps", "curve_steps")  # the names of the curves' rows among the records
# The names of the probes' rows, from which the verdict is drawn (evaluate/probes.py).
PROBES = ("probe_gradient", "probe_noise", "probe_single", "probe_stronger", "probe_frozen")
WORST = "worst_case"  # per image, the attack of the suite that does most harm
CARRIED = "from_dense_"  # before an attack's name: its images were crafted on the dense network
DENSE = "dense"  # the uncompressed network among the points of the study of sparse ones
RESERVED = (*CURVES, *PROBES, WORST)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"


def parse_fraction(value: Any) -> Any:
    """Read `8/255` (text) as the number it stands for; leave everything else as it is."""
    if isinstance(value, str):
        try:
            over, _, under = value.partition("/")
            return float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError("write a number or a fraction such as 8/255") from error
    return value


def _whole_pixels(value: float) -> float:
    if value > 1:
        raise ValueError("a budget is a fraction of the pixel range and lies between 0 and 1")
    return value


Budget = Annotated[
    float, BeforeValidator(parse_fraction), Field(ge=0), AfterValidator(_whole_pixels)
]
L2Budget = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and infinite or NaN numbers are refused; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSettings(Settings):
    """Where the images come from and how many are used."""

    source: Literal["digits", "cifar10", "imagefolder"]
    root: str | None = None
    val_fraction: float = Field(default=0.1, gt=0, lt=1)
    test_fraction: float = Field(default=0.2, gt=0, lt=1)
    size: int | None = Field(default=None, ge=4, le=512)
    train_limit: int | None = Field(default=None, ge=1)
    test_limit: int | None = Field(default=None, ge=1)


class WeightsSettings(Settings):
    """Trained weights to load instead of training: a path, or `package:<package>/<file>`."""

    path: str
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")


class ModelSettings(Settings):
    """The network: by the name of an architecture, or a function of the user's that makes it.

    factory: `package.module:function`, in the place of `architecture` (`models.outside` says how it
    is called). options: what it is called with besides, or a model of torchvision or timm. width:
    of resnet18 and resnet20, which take no options.
    """

    architecture: Architecture = "resnet18"
    factory: Factory | None = None
    options: Options = {}
    width: int = Field(default=64, ge=1, le=1024)
    normalize: bool = True
    weights: dict[Name, WeightsSettings] = {}

    @model_validator(mode="after")
    def _one_network(self) -> "ModelSettings":
        if self.factory and "architecture" in self.model_fields_set:
            raise ValueError("give either architecture or factory")
        if self.options and is_library(self.network):
            raise ValueError(f"options: {self.network} has none but width")
        return self

    @property
    def network(self) -> str:
        """The network's name: its factory or architecture."""
        return self.factory or self.architecture

    @property
    def described(self) -> str:
        """The network in a few words."""
        return f"{self.network} of width {self.width}" if is_library(self.network) else self.network


class TrainSettings(Settings):
    """The optimizer: SGD with Nesterov momentum under a one-cycle schedule.

    eps, step: the budget of recipes that train on attacked images, and their inner step.
    precision: of convolutions and products; auto is bfloat16 on a GPU, float32 elsewhere.
    """

    epochs: int = Field(default=30, ge=1, le=10000)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=0.1, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False
    crop: int = Field(default=0, ge=0, le=64)
    eps: Budget = 8 / 255
    step: Budget = 2 / 255
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


class RecipeSettings(Settings):
    """A way of training the dense network (`advprune.training`).

    method: standard; pgd (Madry), fgsm (with a random start), trades, or mixed (a share of FGSM
    images among clean ones). epochs: null takes the profile's. steps: inner steps of pgd and
    trades. beta: weight of the TRADES term. share: part of the batch that mixed attacks.
    budget: the part of the profile's training eps that is used. ema: decay of the averaged weights
    that are kept, 0 for none. probe_steps: PGD steps of the validation attack by which the epoch
    that is kept is chosen, and overfitting to FGSM is noticed. clustering: weight of the penalty
    that pulls each layer's weights to two values (`training.clustering`), 0 for none.
    """

    method: Literal["standard", "pgd", "fgsm", "trades", "mixed"] = "standard"
    epochs: int | None = Field(default=None, ge=1, le=10000)
    steps: int = Field(default=7, ge=1, le=1000)
    beta: float = Field(default=6.0, ge=0, le=1000)
    share: float = Field(default=0.2, ge=0, le=1)
    budget: float = Field(default=1.0, gt=0, le=10)
    ema: float = Field(default=0.0, ge=0, lt=1)
    probe_steps: int = Field(default=10, ge=1, le=1000)
    clustering: float = Field(default=0.0, ge=0, le=10)


class FineTuneSettings(Settings):
    """Training that follows compression, with the profile's batches, augmentation and budget.

    method: natural training (standard), or on attacked images (pgd, fgsm, trades; steps: the inner
    ones). lr: the peak of the one-cycle schedule. beta: weight of the TRADES term.
    """

    method: Literal["standard", "pgd", "fgsm", "trades"] = "standard"
    epochs: int = Field(default=5, ge=1, le=10000)
    lr: float = Field(default=0.01, gt=0, le=10)
    steps: int = Field(default=7, ge=1, le=1000)
    beta: float = Field(default=6.0, ge=0, le=1000)


Backward = Literal["constant", "scale", "identity"]


class AttackSettings(Settings):
    """One attack of the PGD engine (`advprune.attacks.pgd`).

    momentum: share of the former direction that each step keeps; 0 is plain PGD.

    draws, backward: for randomized models alone. Gradients are averaged over so many draws, and
    taken with the random factors held constant, through their scale, or with the random layer
    replaced by the identity (BPDA); null leaves the model its own rule.
    """

    method: Literal["pgd"] = "pgd"
    norm: Literal["Linf", "L2"] = "Linf"
    eps: L2Budget
    step: L2Budget
    steps: int = Field(default=10, ge=0, le=100000)
    restarts: int = Field(default=1, ge=1, le=1000)
    random_start: bool = True
    loss: Literal["ce", "margin", "dlr"] = "ce"
    keep: Literal["last", "best"] = "last"
    drop: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    draws: int = Field(default=1, ge=1, le=10000)
    backward: Backward | None = None
    momentum: float = Field(default=0.0, ge=0, le=1)
    note: str = ""

    @model_validator(mode="after")
    def _linf_budget_fits_the_pixel_range(self) -> "AttackSettings":
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError("eps: an Linf budget lies between 0 and 1 (pixels are in [0, 1])")
        return self


class SquareSettings(Settings):
    """Square: random search without gradients (`advprune.attacks.square`), Linf.

    draws: for randomized models, the loss of a query is that of the mean logits of so many draws.
    """

    method: Literal["square"]
    eps: Budget
    queries: int = Field(default=1000, ge=1, le=1000000)
    draws: int = Field(default=1, ge=1, le=10000)
    note: str = ""
    norm: Literal["Linf"] = "Linf"


class AutoAttackSettings(Settings):
    """AutoAttack as published, by the package pyautoattack (`advprune.attacks.autoattack`).

    version: standard for deterministic models, rand for randomized ones; auto takes what fits.
    images: how many test images, the first ones; null takes all.
    """

    method: Literal["autoattack"]
    norm: Literal["Linf", "L2"] = "Linf"
    eps: L2Budget
    version: Literal["auto", "standard", "rand"] = "auto"
    images: int | None = Field(default=None, ge=1)
    note: str = ""


METHODS = ("pgd", "square", "autoattack")


def _method(value: Any) -> Any:
    """Which attack a mapping describes; the PGD engine where it does not say."""
    if isinstance(value, Mapping):
        return value.get("method", "pgd")
    return getattr(value, "method", "pgd")


AnyAttack = Annotated[
    Annotated[AttackSettings, Tag("pgd")]
    | Annotated[SquareSettings, Tag("square")]
    | Annotated[AutoAttackSettings, Tag("autoattack")],
    Discriminator(
        _method,
        custom_error_type="method",
        custom_error_message=f"there is no such attack; known: {', '.join(METHODS)}",
    ),
]
KINDS = ("deterministic", "randomized", "quantized", "binary")


class SuiteSettings(Settings):
    """Which of the profile's attacks each kind of model goes through.

    table: those of the published table; every model and every setting of a sweep gets them, and the
    dense network's images are tried on its compressed models. transfer: every model gets them;
    the main one's images are tried on all other models, the others' where they were crafted on a
    dense network or an attacker's own.
    """

    table: list[Name] = Field(min_length=1)
    transfer: list[Name] = Field(min_length=1)
    deterministic: list[Name] = []
    randomized: list[Name] = []
    quantized: list[Name] = []
    binary: list[Name] = []

    def of(self, kind: str) -> list[str]:
        """The names of all attacks of a kind of model, those whose images are kept first."""
        return list(dict.fromkeys([*self.kept, *getattr(self, kind)]))

    @property
    def kept(self) -> list[str]:
        """The names of the attacks that every model gets, and whose images are kept."""
        return list(dict.fromkeys([*self.table, *self.transfer]))


class ProtocolSettings(Settings):
    """The published protocol of SAP and the attacks that broke it, at this data set's budgets.

    images: how many test images, the first ones. eps: budgets of the single-step attack, whose
    gradients and predictions are averaged over `draws`. iterative: attack run at the same budgets,
    its step in proportion. adaptive: attacks on the members that ask for them.
    """

    images: int | None = Field(default=None, ge=1)
    draws: int = Field(default=100, ge=1, le=10000)
    eps: list[Budget] = Field(min_length=1)
    iterative: AttackSettings
    adaptive: dict[Name, AttackSettings] = {}


class Member(Settings):
    """A model of the protocol: a recipe's dense network, with a family applied to it or not.

    adaptive: whether it goes through the profile's `protocol.adaptive` attacks as well.
    """

    family: Name | None = None
    setting: Any = None
    adaptive: bool = False


class CurveSettings(Settings):
    """Accuracy over the budget and over the number of steps, around the main attack."""

    eps: list[Budget] = Field(min_length=1)
    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)


class ExtraAttack(BaseModel):
    """An attack of torchattacks by class name; the other keys are its own arguments.

    label: what it is called in records and tables, needed where a class is used twice.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    name: Name
    label: Name | None = None

    @property
    def key(self) -> str:
        """Its name in records."""
        return self.label or self.name

    def arguments(self) -> dict[str, Any]:
        """The attack's own arguments, fractions such as 8/255 read as numbers."""
        return {k: _fraction_or_text(v) for k, v in (self.model_extra or {}).items()}


def _fraction_or_text(value: Any) -> Any:
    is_fraction = isinstance(value, str) and "/" in value
    return parse_fraction(value) if is_fraction else value


class FlipSettings(Settings):
    """How the bit-flip attack is run (`advprune.attacks.bitflip`), for every entry of `bitflip`.

    images: of the training images, drawn anew for each of the `seeds`; the attack takes the stored
    network's own predictions as their labels. budget: most flips a seed. stop: it ends at an
    accuracy of `stop / classes` on the test images, which is asked for after every `every` flips;
    a stop of 1 or more also where it is no better than the most frequent class every time.
    random, random_every: how many random flips stand beside it, and how often their accuracy is
    asked for. target: the class that targeted attacks push all images into.
    """

    images: int = Field(default=128, ge=1)
    seeds: int = Field(default=5, ge=1, le=1000)
    budget: int = Field(default=100, ge=1, le=1000000)
    stop: float = Field(default=1.1, gt=0, le=100)
    every: int = Field(default=1, ge=1)
    random: int = Field(default=100, ge=0, le=1000000)
    random_every: int = Field(default=10, ge=1)
    target: int = Field(default=0, ge=0)


class Profile(Settings):
    """Everything that depends on the data set and on the time one has.

    sweep_images: how many test images, the first ones, the settings of sweeps and of curves over
    compression are attacked on; null takes all. note: said on the page beside the data: on what
    machine it was run, for how long, and why so.
    """

    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    attacks: dict[Name, AnyAttack] = Field(min_length=1)
    suite: SuiteSettings
    curves: CurveSettings
    protocol: ProtocolSettings
    bitflip: FlipSettings = FlipSettings()
    sweep_images: int | None = Field(default=None, ge=1)
    batch: int = Field(default=128, ge=1)
    show_images: bool = True
    note: str = Field(default="", max_length=1000)

    @model_validator(mode="after")
    def _suites_name_attacks(self) -> "Profile":
        for kind, names in self.suite:
            for name in names:
                if name not in self.attacks:
                    known = ", ".join(self.attacks)
                    raise ValueError(f"suite.{kind}: {name!r} is not among the attacks ({known})")
        for kind in ("table", "transfer"):
            for name in getattr(self.suite, kind):
                if self.attacks[name].method != "pgd":
                    raise ValueError(f"suite.{kind}: {name!r} is no attack of the PGD engine")
        return self

    def table(self) -> dict[str, AttackSettings]:
        """The attacks of the published table, by name."""
        return self._engine(self.suite.table)

    def exchanged(self) -> dict[str, AttackSettings]:
        """The attacks whose images all models exchange, by name."""
        return self._engine(self.suite.transfer)

    def _engine(self, names: list[str]) -> dict[str, AttackSettings]:
        found = {name: self.attacks[name] for name in names}
        return {name: a for name, a in found.items() if isinstance(a, AttackSettings)}


class AttackChoice(Settings):
    """Which attack of the suites' table is the main one, and extra attacks by name.

    score_draws: randomized models are scored by the mean logits of so many draws.
    """

    main: Name
    score_draws: int = Field(default=20, ge=10, le=10000)
    extra: list[ExtraAttack] = []


class QuantizeSettings(Settings):
    """Post-training quantization of weights and activations."""

    bits: int = Field(default=8, ge=2, le=8)
    calibration_images: int = Field(default=512, ge=1)
    percentile: float = Field(default=100.0, gt=50, le=100)


class QuantizedSettings(Settings):
    """A quantized model of the first base: of the dense network or of one of its families.

    training: quantization-aware training, by which the integers are found; null rounds the weights
    as they are.
    """

    of: Name = "dense"
    bits: int = Field(default=8, ge=2, le=8)
    training: FineTuneSettings | None = None


class BitFlipSettings(Settings):
    """An entry of `bitflip`: a model's weights, stored with so many bits, under attack.

    of, base: the model, one that is stored in floating point. scale: one for each layer or each
    output channel. variants: what is tried besides untargeted and random flips. budget: most flips
    a seed; null takes the profile's.
    """

    of: Name
    base: Name
    bits: int = Field(default=8, ge=1, le=8)
    scale: Literal["layer", "channel"] = "layer"
    variants: list[Literal["margin", "targeted"]] = []
    budget: int | None = Field(default=None, ge=1, le=1000000)

    @property
    def model(self) -> str:
        """The name of the attacked model, `<family>-<base>`."""
        return f"{self.of}-{self.base}"


class GrowthSettings(Settings):
    """Early-Growth: how many channels the layers of a binary network need
    (`advprune.training.growth`).

    factor: how many times as wide the super-network is. epochs: at most. lr: the peak of the
    one-cycle schedule, gate_lr that of the gates. t: see BinarySettings. rate: by what the
    steepness of a gate that is on grows in an epoch. tolerance, patience: growth has settled when
    in each of so many epochs the share of channels that are on changed by less than this.
    """

    factor: int = Field(default=3, ge=2, le=16)
    epochs: int = Field(default=30, ge=1, le=10000)
    lr: float = Field(default=0.05, gt=0, le=10)
    gate_lr: float = Field(default=0.05, gt=0, le=1000)
    t: float = Field(default=10.0, ge=0.01, le=1000)
    rate: float = Field(default=1.06, ge=1, le=100)
    tolerance: float = Field(default=0.005, ge=0, le=1)
    patience: int = Field(default=5, ge=1, le=10000)


class BinarySettings(FineTuneSettings):
    """A binary network, trained from scratch (`advprune.training.binary`).

    channels: those of the profile's network (base), those that Early-Growth found (grown), or
    uniformly so many more that it has as many parameters as the grown one (uniform). rotation:
    whether filters are turned towards their signs. t: the straight-through slope is a tent of half
    width sqrt(2) / t; for weights, t grows from 0.01 to this over the epochs, for inputs from 1.
    """

    channels: Literal["base", "grown", "uniform"] = "base"
    epochs: int = Field(default=30, ge=1, le=10000)
    lr: float = Field(default=0.1, gt=0, le=10)
    rotation: bool = False
    t: float = Field(default=10.0, ge=0.01, le=1000)


class SurrogateSettings(Settings):
    """A network that an attacker trains for themselves, to craft images on.

    architecture, width, epochs: null takes the profile's. options: of the architecture, where one
    is given. seed: added to the run's seed, so that initialization and order are others than the
    dense network's.
    """

    architecture: Architecture | None = None
    options: Options = {}
    width: int | None = Field(default=None, ge=1, le=1024)
    epochs: int | None = Field(default=None, ge=1, le=10000)
    seed: int = Field(default=1, ge=0, lt=2**30)

    def network(self, profile: ModelSettings) -> ModelSettings:
        """The settings of the attacker's network, of which `profile` says what is not given."""
        known = profile.model_dump(exclude_unset=True)
        if self.architecture is not None:
            known.pop("factory", None)
            known |= {"architecture": self.architecture, "options": self.options}
        if self.width is not None:
            known["width"] = self.width
        return ModelSettings.model_validate(known)


class SparsePoint(Settings):
    """A sparse network of the study: a family at a setting, on the network of a recipe.

    base: the recipe; null takes the study's `dense`.
    """

    family: Name
    setting: Any = None
    base: Name | None = None


class SparsityStudySettings(Settings):
    """Sparse networks that are made and attacked once a seed, on dense ones of the same seed.

    seeds: how many, from the run's seed on; of the first the pipeline's own dense network is taken.
    dense: the recipe of the dense networks. attacks: of the profile, besides the main one.
    """

    seeds: int = Field(default=3, ge=1, le=100)
    dense: Name = "robust"
    attacks: list[Name] = []
    points: dict[Name, SparsePoint] = {}

    def base_of(self, point: SparsePoint) -> str:
        """The recipe of the network that a point is made of."""
        return point.base or self.dense

    @property
    def recipes(self) -> list[str]:
        """The recipes of the dense networks, the study's own first."""
        return list(dict.fromkeys([self.dense, *map(self.base_of, self.points.values())]))


class Params(Settings):
    """All of params.yaml."""

    profile: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    recipes: dict[Name, RecipeSettings] = Field(min_length=1)
    bases: list[Name] = Field(min_length=1)
    prune: dict[Name, Any] = Field(min_length=1)
    masks: dict[Name, Any] = {}
    ticket_base: Name | None = None
    tickets: dict[Name, Any] = {}
    sparsity_study: SparsityStudySettings = SparsityStudySettings()
    sweep: dict[Name, Annotated[list[Any], Field(min_length=1)]]
    compression: dict[Name, Annotated[list[Any], Field(min_length=1)]] = {}
    quantize: QuantizeSettings
    quantized: dict[Name, QuantizedSettings] = {}
    growth: GrowthSettings = GrowthSettings()
    binary: dict[Name, BinarySettings] = {}
    surrogates: dict[Name, SurrogateSettings] = {}
    substitutes: dict[Name, SurrogateSettings] = {}
    attack: AttackChoice
    protocol: dict[Name, dict[Name, Member]]
    bitflip: dict[Name, BitFlipSettings] = {}
    profiles: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Profile]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        if self.profile not in self.profiles:
            known = ", ".join(self.profiles)
            raise ValueError(f"profile: there is no profile {self.profile!r}; known: {known}")
        for name, profile in self.profiles.items():
            for kind in ("table", "transfer"):
                if self.attack.main not in (names := getattr(profile.suite, kind)):
                    raise ValueError(
                        f"attack.main: {self.attack.main!r} is not in profiles.{name}.suite.{kind}"
                        f" ({', '.join(names)})"
                    )
        used = [*self.bases, *self.protocol]
        if unknown := [name for name in used if name not in self.recipes]:
            known = ", ".join(self.recipes)
            raise ValueError(f"recipes: there is no recipe {unknown[0]!r}; known: {known}")
        if len(set(self.bases)) < len(self.bases):
            raise ValueError("bases: a base is named twice")
        if taken := {"masks", "tickets", "quantized", "binary"} & set(self.recipes):
            raise ValueError(f"recipes: the name {sorted(taken)[0]!r} is taken by the report")
        members = [name for group in self.protocol.values() for name in group]
        if twice := [name for name in members if members.count(name) > 1]:
            raise ValueError(f"protocol: the member {twice[0]!r} is named twice")
        extras = [extra.key for extra in self.attack.extra]
        for key in extras:
            if extras.count(key) > 1 or key in {*self.active().attacks, *RESERVED}:
                raise ValueError(f"attack.extra: the name {key!r} is taken; give a `label`")
        if used_up := set(RESERVED) & {name for p in self.profiles.values() for name in p.attacks}:
            raise ValueError(f"attacks: the name {used_up.pop()!r} is taken by the pipeline itself")
        self._check_models()
        self._check_sparsity_study()
        return self

    def _check_models(self) -> None:
        """Models have names of their own, and what refers to one names one."""
        seen, first = {"dense", "int8"}, self.bases[0]
        for key in ("prune", "masks", "tickets", "quantized", "binary"):
            if taken := seen & set(getattr(self, key)):
                raise ValueError(f"{key}: the name {sorted(taken)[0]!r} is taken already")
            seen |= set(getattr(self, key))
        if self.tickets and self.ticket_base not in self.bases:
            raise ValueError(
                f"ticket_base: {self.ticket_base!r} is not among bases ({', '.join(self.bases)}); "
                "name one of them, or take the families out of tickets"
            )
        sources = {"dense", *self.settings(first)}
        for name, quantized in self.quantized.items():
            if quantized.of not in sources:
                known = ", ".join(sorted(sources))
                raise ValueError(
                    f"quantized.{name}.of: there is no model {quantized.of!r}; known: {known}"
                )
        if unknown := [name for name in self.substitutes if name not in self.models(first)]:
            raise ValueError(f"substitutes: there is no model {unknown[0]!r} on the first base")
        if clash := set(self.surrogates) & {f"{name}_substitute" for name in self.substitutes}:
            raise ValueError(f"surrogates: the name {sorted(clash)[0]!r} is that of a substitute")
        network = self.active().model.network
        if self.binary and not is_library(network):
            raise ValueError(
                f"binary: binary networks are made of resnet18 or resnet20, and {network} is "
                "neither; leave them out with `binary: {}`"
            )
        for name, entry in self.bitflip.items():
            self._check_entry(name, entry)

    def _check_entry(self, name: str, entry: BitFlipSettings) -> None:
        """What an entry of `bitflip` attacks is there, and has weights in floating point."""
        if entry.base not in self.recipes:
            known = ", ".join(self.recipes)
            raise ValueError(
                f"bitflip.{name}.base: there is no recipe {entry.base!r}; known: {known}"
            )
        models = self.models(entry.base) if entry.base in self.bases else ["dense"]
        floats = [model for model in models if model not in ("int8", *self.quantized)]
        if entry.of not in floats:
            why = "holds integers" if entry.of in models else f"is not made on {entry.base}"
            raise ValueError(
                f"bitflip.{name}.of: {entry.of!r} {why}; models with weights in floating point "
                f"there: {', '.join(floats)}"
            )

    def _check_sparsity_study(self) -> None:
        """Recipes and attacks of the study exist, and its points' names are not taken."""
        study, attacks = self.sparsity_study, self.active().attacks
        if "sparsity_study" not in self.model_fields_set:
            return
        if unknown := [name for name in study.recipes if name not in self.recipes]:
            known = ", ".join(self.recipes)
            raise ValueError(f"sparsity_study: there is no recipe {unknown[0]!r}; known: {known}")
        if missing := [name for name in study.attacks if name not in attacks]:
            known = ", ".join(attacks)
            raise ValueError(
                f"sparsity_study.attacks: {missing[0]!r} is not among the attacks ({known})"
            )
        if DENSE in study.points:
            raise ValueError(f"sparsity_study.points: the name {DENSE!r} is taken")

    def settings(self, base: str) -> dict[str, Any]:
        """The families of a base and their settings; masks are on the first base alone, tickets on
        their own."""
        found = dict(self.prune)
        if base == self.bases[0]:
            found |= self.masks
        return found | (self.tickets if base == self.ticket_base else {})

    def models(self, base: str) -> list[str]:
        """The models of a base, the dense network first."""
        more = [*self.quantized, *self.binary] if base == self.bases[0] else []
        return ["dense", "int8", *self.settings(base), *more]

    def active(self) -> Profile:
        """The settings of the chosen profile."""
        return self.profiles[self.profile]


def load(path: Path = Path(FILE), profile: str | None = None) -> Params:
    """Read and check params.yaml; `profile` overrides the file's own choice.

    Raises UserError with one line that names the key, its value and what is allowed.
    """
    try:
        raw = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, Mapping):
        raise UserError(f"{path} holds no settings; restore it from the repository")
    chosen = {**raw, "profile": profile} if profile else raw
    return parse(Params, chosen, where=str(path))


def parse(kind: type[T], value: Any, where: str) -> T:
    """Check `value` against the settings type `kind`; UserError names key, value and range."""
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in _path(first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        unclear = first["type"] == "missing" or isinstance(first["input"], Mapping)
        given = "" if unclear else f" (got {first['input']!r})"
        raise UserError(f"{where}: {key + ': ' if key else ''}{message}{given}") from error


def _path(place: tuple[int | str, ...]) -> Iterator[int | str]:
    """Where a fault is, without the kind of attack that pydantic puts behind an attack's name."""
    for index, part in enumerate(place):
        if index < 2 or place[index - 2] != "attacks" or part not in METHODS:
            yield part
