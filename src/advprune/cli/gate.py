"""`advprune gate`: the results of the working tree against those of another revision."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from advprune.cli.options import ProfileOption, option_groups
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from advprune.core.params import Params
    from advprune.report.gate import Gate
    from advprune.report.margin import Rules
    from advprune.report.revision import Revision

FOLDERS = ("reports", "metrics")
RESULTS_OF = "reports/{}/results.csv"


@dataclass(frozen=True)
class Asked:
    """What fails."""

    PANEL: ClassVar = "What fails"
    alpha: Annotated[float, typer.Option(help="Level of the tests, over all models together.")] = (
        0.05
    )
    margin: Annotated[
        float | None,
        typer.Option(help="Points of accuracy: fail unless a larger loss is ruled out."),
    ] = None
    floor: Annotated[
        list[str] | None,
        typer.Option(help="Least robust accuracy in percent: 30, or `<model>=30`. Repeatable."),
    ] = None
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="A model that may fall or vanish, a profile that may change without its records, "
            "or: images, settings. Repeatable."
        ),
    ] = None

    @property
    def rules(self) -> "Rules":
        """The same as fractions; UserError where a number lies outside of its range."""
        from advprune.report.margin import Rules

        if not 0 < self.alpha < 1:
            raise UserError(f"--alpha lies between 0 and 1 (got {self.alpha})")
        if self.margin is not None and not 0 < self.margin < 100:
            raise UserError(
                f"--margin is a number of points, between 0 and 100 (got {self.margin})"
            )
        points, given = None if self.margin is None else self.margin / 100, self.floor or []
        parted = {name: percent for name, _, percent in (text.rpartition("=") for text in given)}
        try:
            floors = {name: float(percent) / 100 for name, percent in parted.items()}
        except ValueError:
            floors = {"": -1.0}
        if not all(0 <= floor <= 1 for floor in floors.values()):
            raise UserError(
                f"--floor is a percentage, or <model>=<percentage> (got {', '.join(given)})"
            )
        return Rules(self.alpha, points, floors, frozenset(self.allow or ()))


@option_groups
def gate(
    asked: Asked,
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    profile: ProfileOption = None,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Judge the records of the run, not results.csv.")
    ] = False,
) -> None:
    """Did robustness fall? Compares the committed results with those of another revision.

    Reads `reports/<profile>/results.csv` of working tree and revision, of every profile that has
    results or metrics in one of them, and prints a Markdown table of each for a pull request:
    clean and robust accuracy, distances and verdicts before and after, with tests on the same
    images.

    With --recompute, the results of the active profile are computed from the records of its run.
    results.csv is then judged as well: it may not claim more than the records show. Results of
    other profiles may not differ from the revision's, since nothing here shows them.

    Exit status: 0 passed; 1 if a model's robust accuracy or its distances fell, its verdict got
    worse or is unknown, a model vanished, or test images, seed, data or attacks changed, unless
    that is allowed by name, or if a --margin or a --floor is not kept; 2 if there is nothing to
    compare, or results are damaged or contradict the metrics. New models are listed.
    """
    from advprune.core.params import load
    from advprune.report.gate import page

    rules = asked.rules
    commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    params, there = load(profile=profile), Tree(f"{base}:", commit)
    found = compared(params, there, rules, recompute, only=profile is not None)
    for title, judged in found:
        print(page(judged, title), end="\n\n")
    if not all(judged.passed for _, judged in found):
        raise typer.Exit(1)


def compared(
    params: "Params", there: "Tree", rules: "Rules", recompute: bool, only: bool
) -> "list[tuple[str, Gate]]":
    """The working tree against another revision, profile by profile, each with a title; the records
    of the active profile against its results.csv, if they are what is judged."""
    from advprune.report.gate import code, judge, quoted
    from advprune.report.margin import Rules
    from advprune.report.revision import Revision

    here, active, order = Tree(), params.profile, params.leaderboard()
    made = recomputed(params) if recompute else here.revision(active)
    if made is None:
        raise UserError(f"there are no results in reports/{active}; run `dvc repro`")
    found, base = [], f"{code(there.where[:-1])} ({str(there.commit)[:7]})"
    for name in [active] if only else dict.fromkeys([active, *there.profiles, *here.profiles]):
        after = made if name == active else here.revision(name)
        judged = judge(there.revision(name) or Revision({}), after or Revision({}), rules, order)
        if recompute and name not in rules.allow and (why := unshown(name, active, here, there)):
            why = f"{why} (--allow {quoted(name)})."
            judged = replace(judged, failures=[*judged.failures, why])
        found.append((f"Robustness of {code(name)} against {base}", judged))
    unknown = sorted(set(rules.floors) - {""} - {row.name for _, one in found for row in one.rows})
    if unknown:
        raise UserError(f"--floor: there is no model {unknown[0]!r}; check its name")
    if recompute and (committed := here.revision(active)):
        judged = judge(committed, made, Rules(rules.alpha, allow=rules.allow), order)
        found.append((f"Records of {code(active)} against its results.csv", judged))
    return found


def recomputed(params: "Params") -> "Revision":
    """The results of the active profile, computed from the records of its run; UserError where
    that is not whole: fewer attacks would raise robust accuracies."""
    from advprune.report.read import read_run
    from advprune.report.results import results
    from advprune.report.revision import revision_of
    from advprune.report.write import settings_of

    run = read_run(params)
    if run.absent:
        raise UserError(f"--recompute needs a whole run: run `dvc repro {run.absent[0].stage}`")
    return revision_of(results(run), measured(settings_of(params), params.profile))


def unshown(profile: str, active: str, here: "Tree", there: "Tree") -> str:
    """Why the records of the active profile do not show how robust the models of a profile are."""
    from advprune.core.params import FILE
    from advprune.core.settings import yaml_of

    if profile == active:
        before = git("show", f"{there.commit}:./{FILE}") if there.paths else "{}"
        known = yaml_of(before, there.where + FILE)
        other = isinstance(known, Mapping) and known.get("profile", active) != active
        return "It was not the active profile, which is then not measured" if other else ""
    place = RESULTS_OF.format(profile)
    changed = here.read(place) != there.read(place)
    return "The results changed, and no records here show them" if changed else ""


@dataclass(frozen=True)
class Tree:
    """The results and metrics of the working tree, or of a commit; where: how messages name it."""

    where: str = ""
    commit: str | None = None

    @cached_property
    def paths(self) -> list[str]:
        """`<folder>/<profile>/<file>` of each."""
        if self.commit is None:
            found = (path for folder in FOLDERS for path in Path(folder).glob("*/*"))
            return sorted(path.as_posix() for path in found if path.suffix or not path.is_dir())
        listed = git("ls-tree", "-rz", "--name-only", self.commit, *(f"{f}/" for f in FOLDERS))
        return [path for path in listed.split("\0") if path.count("/") == 2]

    @property
    def profiles(self) -> list[str]:
        """Those that have results or metrics."""
        known = [path.split("/")[1] for path in self.paths if path.endswith((".csv", ".json"))]
        return list(dict.fromkeys(known))

    def read(self, path: str) -> str | None:
        """A file; None where there is none."""
        if path not in self.paths:
            return None
        if self.commit is not None:
            return git("show", f"{self.commit}:./{path}")
        if Path(path).is_symlink() or not Path(path).is_file():  # which could lead anywhere
            raise UserError(f"{path} is no plain file; run `dvc repro`")
        try:
            return Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {path}: {error}") from error

    def revision(self, profile: str) -> "Revision | None":
        """What a profile's results say; None where it has neither results nor metrics. UserError
        where they are damaged, or where metrics say something else."""
        from advprune.report.results import metrics_of, read_results
        from advprune.report.revision import revision_of

        place, folder = RESULTS_OF.format(profile), f"metrics/{profile}/"
        found = {Path(path).stem: path for path in self.paths if path.startswith(folder)}
        if (text := self.read(place)) is None:
            if found:
                raise UserError(f"{self.where}{folder} has no {place}; run `dvc repro`")
            return None
        table = read_results(text, self.where + place)
        rows = metrics_of(table)
        for model, path in found.items():
            try:
                known = json.loads(self.read(path) or "")
            except (ValueError, RecursionError) as error:
                raise UserError(f"{self.where}{path} is damaged: {error}") from error
            if known != rows.get(model):
                raise UserError(f"{self.where}{path} contradicts {place}; run `dvc repro`")
        settings = self.read(f"reports/{profile}/params.yaml")
        return revision_of(table, None if settings is None else measured(settings, profile))


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


def git(*command: str) -> str:
    """What git prints, in the current folder; UserError with its last line where it fails."""
    try:
        done = subprocess.run(["git", *command], capture_output=True, check=False)
    except OSError as error:
        raise UserError(f"gate reads the other revision with git: {error}") from error
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise UserError(f"git {command[0]}: {said[-1]}")
    return done.stdout.decode("utf-8", "replace")
