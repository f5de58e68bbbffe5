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
    from advprune.report.gate import Result, Side

MOST_BY_RATE = 5000  # images: a rate rounded to four digits still gives the exact count
Read = Callable[[str], str | None]  # a path below the current folder -> its text, None: not there


def gate(
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    profile: ProfileOption = None,
    alpha: Annotated[
        float, typer.Option(help="Level of the tests, over all models together.")
    ] = 0.05,
) -> None:
    """Did robustness fall? Compares the committed results with those of another revision.

    Reads `reports/<profile>/results.csv` of working tree and revision, and prints a Markdown table
    for a pull request: clean and robust accuracy before and after, the p of a test on the same
    images (McNemar's, corrected for the number of models), and both verdicts. If a revision
    lacks the outcome of each image, the counts are compared instead.

    Exit status: 0 passed; 1 if a model's robust accuracy fell or its verdict got worse; 2 if there
    is nothing to compare, or results are damaged. Models that are gone or new are listed and do not
    fail the gate.
    """
    from advprune.cli.repository import Repository
    from advprune.report.gate import judge, page

    if not 0 < alpha < 1:
        raise UserError(f"--alpha lies between 0 and 1 (got {alpha})")
    params = Repository(profile).params
    commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    after = side(params.profile, _text)
    if after is None:
        raise UserError(f"there are no results in reports/{params.profile}; run `dvc repro`")
    before = side(params.profile, lambda path: _shown(commit, path), f"{base}:")
    before = before or _metrics(params.profile, commit, f"{base}:")
    found = judge(before, after, alpha, params.leaderboard())
    print(page(found, f"Robustness of `{params.profile}` against `{base}` ({commit[:7]})"))
    if not found.passed:
        raise typer.Exit(1)


def side(profile: str, read: Read, where: str = "") -> "Side | None":
    """What the report of one revision says; None where it has no results.csv."""
    from advprune.core.params import FILE
    from advprune.report.gate import side_of
    from advprune.report.results import RESULTS, read_results

    place = f"reports/{profile}"
    results, settings = read(f"{place}/{RESULTS}"), read(f"{place}/{FILE}")
    if results is None:
        return None
    known = measured(settings, profile) if settings is not None else None
    return side_of(read_results(results, f"{where}{place}/{RESULTS}"), known)


def _metrics(profile: str, commit: str, where: str) -> "Side":
    """A revision from before results.csv existed: the rates of its metrics, as counts."""
    from advprune.report.gate import Side

    listing = git("ls-tree", "-z", "--name-only", commit, f"metrics/{profile}/").split("\0")
    names = [name for name in listing if name.endswith(".json")]
    found = {
        PurePosixPath(name).stem: _result(_shown(commit, name), where + name) for name in names
    }
    return Side({name: result for name, result in found.items() if result})


def _result(text: str | None, where: str) -> "Result | None":
    """None in metrics from before robust accuracy was recorded."""
    from advprune.report.gate import Result

    try:
        found = json.loads(text or "")
        robust, n = found.get("robust_accuracy"), found["n"]
        clean, verdict = found["clean_accuracy"], found.get("verdict")
        if n > MOST_BY_RATE:
            raise ValueError(f"a rate of four digits does not give counts of {n} images")
        return None if robust is None else Result(round(robust * n), int(n), clean, verdict)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{where} is damaged: {error}") from error


def measured(text: str, profile: str) -> Any:
    """The settings of data and attacks, from the copy beside a report."""
    from advprune.core.settings import yaml_of

    try:
        settings = yaml_of(text, "settings")
        chosen = settings["profiles"][profile]
    except (UserError, KeyError, TypeError):
        return None
    if not isinstance(chosen, Mapping):
        return None
    shared = {key: settings.get(key) for key in ("seed", "attack", "attacks", "suite", "curves")}
    return shared | {f"own {key}": chosen.get(key) for key in ("data", "eps", *shared)}


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
        raise UserError("git is not installed; gate needs it to read the other revision") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"git {command[0]}: {said[-1]}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"git {command[0]}: its output is not text") from error
