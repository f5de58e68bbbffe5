"""`advprune gate`: the results of the working tree against those of another revision."""

import json
import re
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import typer

from advprune.cli.options import ProfileOption
from advprune.core.errors import UserError
from advprune.core.settings import MODEL_NAME

if TYPE_CHECKING:
    from advprune.report.gate import Result, Side

MOST_BY_RATE = 5000  # images: a rate rounded to four digits still gives the exact count
MODEL = re.compile(MODEL_NAME)
Read = Callable[[str], str | None]  # a path below the current folder -> its text, None: not there


def gate(
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    profile: ProfileOption = None,
    alpha: Annotated[
        float, typer.Option(help="Level of the tests, over all models together.")
    ] = 0.05,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that may fall or vanish, or: images, settings. May be given repeatedly."
        ),
    ] = None,
) -> None:
    """Did robustness fall? Compares the committed results with those of another revision.

    Reads `reports/<profile>/results.csv` of working tree and revision, of every profile that has
    results or metrics in one of them, and prints a Markdown table of each
    for a pull request: clean and robust accuracy before and after, the p of a test on the same
    images (McNemar's, corrected for the number of models), and both verdicts. If a revision
    lacks the outcome of each image, the counts are compared instead.

    Exit status: 0 passed; 1 if a model's robust accuracy fell, its verdict got worse or is unknown,
    if a model vanished, or if test images, seed, data or attacks changed, unless that is allowed by
    name; 2 if there is nothing to compare, or results are damaged or contradict the metrics. New
    models are listed.
    """
    from advprune.cli.repository import Repository
    from advprune.report.formats import markdown
    from advprune.report.gate import Side, judge, page

    if not 0 < alpha < 1:
        raise UserError(f"--alpha lies between 0 and 1 (got {alpha})")
    params = Repository(profile).params
    commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    if side(params.profile, _text) is None:
        raise UserError(f"there are no results in reports/{params.profile}; run `dvc repro`")
    judged = []
    for name in [params.profile] if profile else profiles(params.profile, commit):
        after = side(name, _text) or _metrics(name, _listed_here(name), _text)
        before = side(name, lambda path: _shown(commit, path), f"{base}:")
        before = before or _metrics(
            name, _listed(commit, name), lambda path: _shown(commit, path), f"{base}:"
        )
        order = params.leaderboard() if name == params.profile else ()
        found = judge(before, after or Side({}), alpha, order, allow or ())
        judged.append(found)
        title = f"Robustness of `{markdown(name)}` against `{markdown(base)}` ({commit[:7]})"
        print(page(found, title), end="\n\n")
    if not all(found.passed for found in judged):
        raise typer.Exit(1)


def profiles(active: str, commit: str) -> list[str]:
    """The profiles that have results or metrics in the working tree or a revision."""
    here = [path.parent.name for path in Path("reports").glob("*/results.csv")]
    here += [path.parent.name for path in Path("metrics").glob("*/*.json")]
    there = git("ls-tree", "-rz", "--name-only", commit, "reports/", "metrics/").split("\0")
    paths = [PurePosixPath(name) for name in there]
    known = [p.parts[1] for p in paths if len(p.parts) == 3 and p.suffix in (".csv", ".json")]
    return list(dict.fromkeys([active, *sorted({*here, *known})]))


def _listed_here(profile: str) -> list[str]:
    return sorted(path.as_posix() for path in Path("metrics", profile).glob("*.json"))


def _listed(commit: str, profile: str) -> list[str]:
    listing = git("ls-tree", "-z", "--name-only", commit, f"metrics/{profile}/").split("\0")
    return [name for name in listing if name.endswith(".json")]


def side(profile: str, read: Read, where: str = "") -> "Side | None":
    """What the report of one revision says; None where it has no results.csv."""
    from advprune.core.params import FILE
    from advprune.report.gate import side_of
    from advprune.report.results import RESULTS, metrics_of, read_results

    place = f"reports/{profile}"
    results, settings = read(f"{place}/{RESULTS}"), read(f"{place}/{FILE}")
    if results is None:
        return None
    known = measured(settings, profile) if settings is not None else None
    table = read_results(results, f"{where}{place}/{RESULTS}")
    for model, row in metrics_of(table).items():
        path = f"metrics/{profile}/{model}.json"
        text = read(path) if MODEL.fullmatch(model) else None
        if text is not None and _json(text, where + path) != row:
            raise UserError(f"{where}{path} contradicts {place}/{RESULTS}; run `dvc repro`")
    return side_of(table, known)


def _metrics(profile: str, names: list[str], read: Read, where: str = "") -> "Side":
    """A revision from before results.csv existed: the rates of its metrics, as counts."""
    from advprune.report.gate import Side

    found = {PurePosixPath(name).stem: _result(read(name), where + name) for name in names}
    return Side({name: result for name, result in found.items() if result})


def _result(text: str | None, where: str) -> "Result | None":
    """None in metrics from before robust accuracy was recorded."""
    from advprune.report.gate import Result

    found = _json(text or "", where)
    try:
        robust, n = found.get("robust_accuracy"), found["n"]
        clean, verdict = found["clean_accuracy"], found.get("verdict")
        if n > MOST_BY_RATE:
            raise ValueError(f"a rate of four digits does not give counts of {n} images")
        if robust is not None and not (0 <= robust <= 1 and n > 0):
            raise ValueError(f"a rate of {robust} of {n} images")
        return None if robust is None else Result(round(robust * n), int(n), clean, verdict)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{where} is damaged: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
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
