"""`advprune gate`: the results of the working tree against those of another revision."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.options import ProfileOption
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from advprune.report.gate import Side

Read = Callable[[str], str | None]  # a path below the current folder -> its text, None: not there


def gate(
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    profile: ProfileOption = None,
    alpha: Annotated[
        float, typer.Option(help="Level of the tests, over all rows together.")
    ] = 0.05,
) -> None:
    """Did robustness fall? Compares the committed results with those of another revision.

    Reads `metrics/<profile>/` and `reports/<profile>/` of working tree and revision, and
    prints a Markdown table for a pull request: clean and robust accuracy before and after, the p of
    a test on the same images (McNemar's, corrected for the number of rows), and both verdicts.
    Where a revision does not say what became of each image, the rates are compared instead.

    Exit status: 0 passed; 1 where a row's robust accuracy fell or its verdict got worse; 2 where
    there is nothing to compare. A row that is gone or new is named, and fails nothing.
    """
    from advprune.cli.repository import Repository
    from advprune.report.gate import judge, page

    if not 0 < alpha < 1:
        raise UserError(f"--alpha lies between 0 and 1 (got {alpha})")
    params = Repository(profile).params
    commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    place = Path("metrics") / params.profile
    names = [path.as_posix() for path in sorted(place.glob("*.json"))]
    if not names:
        raise UserError(f"there are no metrics in {place}; run `dvc repro`")
    listing = git("ls-tree", "-z", "--name-only", commit, f"{place.as_posix()}/")
    old = [name for name in listing.split("\0") if name.endswith(".json")]
    before = side(old, params.profile, lambda path: _shown(commit, path), f"{base}:")
    after = side(names, params.profile, _text)
    order = [f"{family}-{b}" for b in params.bases for family in params.models(b)]
    found = judge(before, after, alpha, order)
    print(page(found, f"Robustness of `{params.profile}` against `{base}` ({commit[:7]})"))
    if not found.passed:
        raise typer.Exit(1)


def side(names: list[str], profile: str, read: Read, where: str = "") -> "Side":
    """What one revision says: its metrics files, and of its report outcomes and settings."""
    from advprune.core.params import FILE
    from advprune.report.gate import Side
    from advprune.report.outcomes import FILE as OUTCOMES
    from advprune.report.outcomes import read_outcomes

    metrics = {PurePosixPath(name).stem: _metrics(read(name), where + name) for name in names}
    place = f"reports/{profile}"
    outcomes, settings = read(f"{place}/{OUTCOMES}"), read(f"{place}/{FILE}")
    known = read_outcomes(outcomes, f"{where}{place}/{OUTCOMES}") if outcomes is not None else {}
    return Side(metrics, known, measured(settings, profile) if settings is not None else None)


def _metrics(text: str | None, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "")
    except ValueError as error:
        raise UserError(f"{where} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} holds no metrics")
    return found


def measured(text: str, profile: str) -> Any:
    """The settings of the data and of the attacks, out of those that lie beside a report."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        settings = YAML(typ="safe", pure=True).load(text)
        chosen = settings["profiles"][profile]
    except (YAMLError, KeyError, TypeError):
        return None
    if not isinstance(chosen, Mapping):
        return None
    keys = ("data", "attacks", "suite", "curves")
    own = {key: chosen.get(key) for key in keys}
    return own | {"seed": settings.get("seed"), "attack": settings.get("attack")}


def _text(path: str) -> str | None:
    """A file of the working tree."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _shown(commit: str, path: str) -> str | None:
    """A file of a revision; None where it has none of that name."""
    if not git("ls-tree", "--name-only", commit, path).strip():
        return None
    return git("show", f"{commit}:./{path}")


def git(*command: str) -> str:
    """What git prints, in the current folder; UserError with its last line where it fails."""
    try:
        done = subprocess.run(["git", *command], capture_output=True, check=True)
        return done.stdout.decode("utf-8")
    except FileNotFoundError as error:
        raise UserError("git is not installed, and gate reads the other revision by it") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"git {command[0]}: {said[-1]}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"git {command[0]}: what it printed is no text") from error
