"""Typed settings. The only module that knows params.yaml; it refuses what is wrong, by name.

Families' own settings (`prune.<family>`, `sweep.<family>`) are typed beside each family, in
`advprune.pruning`; here they are kept as read. Nothing in this module needs torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from advprune.errors import UserError

T = TypeVar("T", bound=BaseModel)
CURVES = ("curve_eps", "curve_steps")  # the names of the curves' rows among the records
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
    """The network."""

    architecture: Literal["resnet18", "resnet20"] = "resnet18"
    width: int = Field(default=64, ge=1, le=1024)
    normalize: bool = True
    weights: WeightsSettings | None = None


class TrainSettings(Settings):
    """The training recipe: SGD with Nesterov momentum under a one-cycle schedule."""

    epochs: int = Field(default=30, ge=1, le=10000)
    batch: int = Field(default=128, ge=2)
    lr: float = Field(default=0.1, gt=0, le=10)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0, le=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False
    crop: int = Field(default=0, ge=0, le=64)


class AttackSettings(Settings):
    """One attack of the PGD engine (`advprune.attacks.pgd`)."""

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
    note: str = ""

    @model_validator(mode="after")
    def _linf_budget_fits_the_pixel_range(self) -> "AttackSettings":
        if self.norm == "Linf" and self.eps > 1:
            raise ValueError("eps: an Linf budget lies between 0 and 1 (pixels are in [0, 1])")
        return self


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


class Profile(Settings):
    """Everything that depends on the data set and on the time one has."""

    data: DataSettings
    model: ModelSettings
    train: TrainSettings
    attacks: dict[Name, AttackSettings] = Field(min_length=1)
    curves: CurveSettings
    batch: int = Field(default=128, ge=1)
    show_images: bool = True


class AttackChoice(Settings):
    """Which of the profile's attacks the leaderboard shows, and extra ones by name."""

    main: Name
    extra: list[ExtraAttack] = []


class QuantizeSettings(Settings):
    """Post-training quantization of weights and activations."""

    bits: int = Field(default=8, ge=2, le=8)
    calibration_images: int = Field(default=512, ge=1)
    percentile: float = Field(default=100.0, gt=50, le=100)


class BaseSettings(Settings):
    """A way of training the dense network that families are applied to."""

    method: Literal["standard"] = "standard"


class Params(Settings):
    """All of params.yaml."""

    profile: str
    seed: int = Field(default=0, ge=0, lt=2**31)
    bases: dict[Name, BaseSettings] = Field(min_length=1)
    prune: dict[Name, Any] = Field(min_length=1)
    sweep: dict[Name, Annotated[list[Any], Field(min_length=1)]]
    quantize: QuantizeSettings
    attack: AttackChoice
    profiles: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Profile]

    @model_validator(mode="after")
    def _names_exist(self) -> "Params":
        if self.profile not in self.profiles:
            known = ", ".join(self.profiles)
            raise ValueError(f"profile: there is no profile {self.profile!r}; known: {known}")
        for name, profile in self.profiles.items():
            if self.attack.main not in profile.attacks:
                raise ValueError(
                    f"attack.main: {self.attack.main!r} is not in profiles.{name}.attacks"
                    f" ({', '.join(profile.attacks)})"
                )
        extras = [extra.key for extra in self.attack.extra]
        for key in extras:
            if extras.count(key) > 1 or key in {*self.active().attacks, *CURVES}:
                raise ValueError(f"attack.extra: the name {key!r} is taken; give a `label`")
        if taken := set(CURVES) & {name for p in self.profiles.values() for name in p.attacks}:
            raise ValueError(f"attacks: the name {taken.pop()!r} is taken by the curves")
        if reserved := {"dense", "int8"} & set(self.prune):
            raise ValueError(f"prune: the name {reserved.pop()!r} is taken by the pipeline itself")
        return self

    def active(self) -> Profile:
        """The settings of the chosen profile."""
        return self.profiles[self.profile]


def load(path: Path = Path("params.yaml"), profile: str | None = None) -> Params:
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
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        unclear = first["type"] == "missing" or isinstance(first["input"], Mapping)
        given = "" if unclear else f" (got {first['input']!r})"
        raise UserError(f"{where}: {key + ': ' if key else ''}{message}{given}") from error
