"""Settings outside of a project: those of params.yaml that all profiles share, at a given budget.
The installed package carries the pipeline's own files (setup.py); in a clone they are its own."""

from math import prod, sqrt
from pathlib import Path
from typing import Any

from advprune.core.errors import InputError
from advprune.core.params import FILE, Params
from advprune.core.profile import check_budget
from advprune.core.settings import parse, parse_fraction, text_of, yaml_of

PROFILE = "default"  # what these settings are called in reports
SHARED = ("attack", "attacks", "suite", "curves", "protocol", "flips", "statistics")
GREY = 128 / 255  # a change of every pixel by which any image becomes any other's equal


def project() -> Path:
    """The folder of dvc.yaml, params.yaml and stages/: inside the package, or a clone's root."""
    inside = Path(__file__).parent / "project"
    return inside if inside.is_dir() else Path(__file__).parents[2]


def defaults(
    eps: float | str,
    norm: str,
    shape: tuple[int, int, int],
    seed: int = 0,
    queries: int | None = None,
) -> Params:
    """The settings of an evaluation within `eps` (0.5, "8/255"; of pixels in [0, 1]) in the norm
    Linf or L2, of images `(C, H, W)`. queries: of Square and HopSkipJump per image, if not the
    usual number. InputError for another norm or budget."""
    try:
        eps = float(parse_fraction(eps))
    except (TypeError, ValueError) as error:
        raise InputError(f"eps is a number or a fraction such as 8/255 (got {eps!r})") from error
    if norm not in ("Linf", "L2"):
        raise InputError(f"norm is Linf or L2 (got {norm!r})")
    size = sqrt(prod(shape)) if norm == "L2" else 1.0  # of a change of every pixel by one
    if not 0 < eps <= size:
        raise InputError(f"eps is above 0 and at most {size:g} in {norm} (got {eps:g})")
    try:
        check_budget(eps, norm)
    except ValueError as error:
        raise InputError(error) from error
    read = yaml_of(text_of(project() / FILE), FILE)
    raw = {key: read[key] for key in SHARED if key in read}
    searches: dict[str, Any] = {"square": {}} if "square" in raw["attacks"] else {}
    searches |= {"hopskipjump": {"method": "hopskipjump"}}
    asked = {} if queries is None else {"queries": queries}
    profile: dict[str, Any] = {
        "data": {"source": "imagefolder"},
        "model": {"normalize": False},
        "eps": eps,
        "norm": norm,
        "train": {"eps": min(eps, 1.0)},
        "attacks": {n: searches[n] | asked for n in searches},
        "curves": {"eps": sorted({eps / 4, eps, min(2 * eps, size), max(GREY * size, eps)})},
        "show_images": False,
    }
    found = {"profile": PROFILE, "seed": seed, "recipes": {"given": {"method": "standard"}}}
    return parse(Params, {**found, **raw, "profiles": {PROFILE: profile}}, "settings")
