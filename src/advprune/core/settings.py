"""What all typed settings share: the base class, names, budgets, and one-line refusals."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from advprune.core.errors import UserError

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


def _within_pixels(value: float) -> float:
    if value > 1:
        raise ValueError("a budget is a fraction of the pixel range and lies between 0 and 1")
    return value


Budget = Annotated[
    float, BeforeValidator(parse_fraction), Field(ge=0), AfterValidator(_within_pixels)
]
L2Budget = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0)]
Name = Annotated[str, Field(pattern=NAME)]
ModelName = Annotated[str, Field(pattern=MODEL_NAME)]


class Settings(BaseModel):
    """Base of all settings: unknown keys and infinite or NaN numbers are refused; frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
