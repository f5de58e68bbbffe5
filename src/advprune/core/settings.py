"""What all typed settings share: the base class, names, budgets, and one-line refusals."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from advprune.core.errors import UserError, first_line

T = TypeVar("T", bound=BaseModel)
NAME = r"^[A-Za-z0-9][A-Za-z0-9_]*$"
MODEL_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
RELATIVE = re.compile(rf"(?:{NUMBER}\s*\*\s*)?eps(?:\s*/\s*{NUMBER})?")

PATH = 1.5  # PGD from a random start takes a path of at least this many eps, to cross the ball


def parse_fraction(value: Any) -> Any:
    """Read `8/255` (text) as the number it stands for; leave everything else as it is."""
    if isinstance(value, str):
        try:
            over, _, under = value.partition("/")
            return float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError("write a number or a fraction such as 8/255") from error
    return value


def relative(value: Any, eps: float) -> Any:
    """`eps/4`, `2*eps` or `eps` (text) as a number; anything else, `eps/0` too, as it is."""
    match = RELATIVE.fullmatch(value.strip()) if isinstance(value, str) else None
    under = float(match[2] or 1) if match else 0.0
    return float(match[1] or 1) * eps / under if match and under else value


def within_pixels(value: float, where: str = "") -> float:
    """A budget in Linf, as it is; ValueError, which `where` begins, for more than all pixels."""
    if value > 1:
        got = f" (got {value:g})" if where else ""
        raise ValueError(
            f"{where}a budget is a fraction of the pixel range and lies between 0 and 1{got}"
        )
    return value


L2Budget = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0)]
Budget = Annotated[L2Budget, AfterValidator(within_pixels)]
Name = Annotated[str, Field(pattern=NAME)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and infinite or NaN numbers are refused; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, values: Any) -> Any:
        """`true` is no number, and none is beyond what fits into memory and time."""
        for key, value in values.items() if isinstance(values, Mapping) else ():
            field = cls.model_fields.get(key) if isinstance(key, str) else None
            kinds = _kinds(field.annotation) if field is not None else set()
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool) and kinds & {int, float} and bool not in kinds:
                    raise ValueError(f"{key}: write a number (got {str(one).lower()})")
                if isinstance(one, int) and abs(one) > LARGEST:
                    raise ValueError(f"{key}: a number beyond {LARGEST} makes no sense here")
        return values


SHOWN = 120  # characters of a wrong value
LARGEST = 1 << 31  # of whole numbers in settings, and of their negatives
MOST_NODES, DEEPEST, LONGEST = 100_000, 50, 1 << 20  # of a YAML text: values, levels, characters


def yaml_of(text: str, where: str) -> Any:
    """The plain values of a YAML text; UserError where it is none, or where aliases make it endless
    or too large to be settings."""
    from ruamel.yaml import YAML

    too_large = UserError(f"{where} is too large or nested too deep to be settings")
    if len(text) > LONGEST:
        raise too_large
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except Exception as error:  # dates, numbers and tags raise many kinds, nesting a RecursionError
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{where} is not valid YAML: {said}") from error
    nodes = [(value, 0)]
    for one, depth in nodes:  # which grows meanwhile
        if len(nodes) > MOST_NODES or depth > DEEPEST:
            raise too_large
        if isinstance(one, Mapping | list | tuple | set):
            inside = one.values() if isinstance(one, Mapping) else one
            nodes += [(part, depth + 1) for part in inside]
    return value


def text_of(path: Path) -> str:
    """The text of a settings file; UserError where there is none, or it is no UTF-8."""
    if not path.is_file():
        why = "it is no plain file" if path.exists() else "it is not there"
        raise UserError(f"cannot read {path}: {why}; run this in the root of the project")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as UTF-8 text: {first_line(error)}") from error


def _kinds(annotation: Any) -> set[Any]:
    """The plain types in an annotation."""
    inside = get_args(annotation)
    return set().union(*map(_kinds, inside)) if inside else {annotation}


def parse(kind: type[T], value: Any, where: str, *, as_json: bool = False) -> T:
    """Check `value`, or the text of one, against the settings type `kind`; UserError names key,
    value and range."""
    try:
        return kind.model_validate_json(value) if as_json else kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        places = [where, ".".join(map(str, first["loc"]))]
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] != "missing" and not isinstance(first["input"], Mapping):
            shown = repr(first["input"])
            message += f" (got {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}…'})"
        raise UserError(": ".join([*filter(None, places), message])) from error
