"""`advprune gate`: the results of the working tree against those of another revision."""

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from advprune.cli.options import completed, option_groups
from advprune.core.errors import UserError

if TYPE_CHECKING:
    from advprune.report.margin import Rules


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

        for option, value, most in (("alpha", self.alpha, 1), ("margin", self.margin, 100)):
            if value is not None and not 0 < value < most:
                raise UserError(f"--{option} lies between 0 and {most} (got {value})")
        floors: dict[str, float] = {}
        for text in self.floor or []:
            (name, _, percent), share = text.rpartition("="), -1.0
            with suppress(ValueError):
                share = float(percent) / 100
            if not 0 <= share <= 1:
                raise UserError(f"--floor is a percentage, or <model>=<percentage> (got {text})")
            floors[name] = share
        margin = None if self.margin is None else self.margin / 100
        return Rules(self.alpha, margin, floors, frozenset(self.allow or ()))


@option_groups
def gate(
    asked: Asked,
    base: Annotated[str, typer.Option(help="The git revision to compare with.")] = "main",
    profile: Annotated[
        str | None,
        typer.Option(
            help="This profile alone; by default every one with results.",
            autocompletion=completed(lambda params: params.profiles),
        ),
    ] = None,
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
    results.csv is then judged as well: it may not claim more than the records show and, where it
    has the same outcome for every image, may differ from them in no other column. Results of other
    profiles may not differ from the revision's, since nothing here shows them.

    Exit status: 0 passed; 1 if a model's robust accuracy or its distances fell, its verdict got
    worse or is unknown, a model vanished, or test images, seed, data or attacks changed, unless
    that is allowed by name, or if a --margin or a --floor is not kept; 2 if there is nothing to
    compare, or results are damaged or contradict the metrics. New models are marked in the table.
    """
    from advprune.core.params import load
    from advprune.report.gate import judge_trees
    from advprune.report.gate_page import page
    from advprune.report.revision import Tree, git

    rules = asked.rules
    git("rev-parse", "--git-dir")  # else git says that this is no repository
    try:
        commit = git("rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}").strip()
    except UserError as error:
        raise UserError(
            f"--base {base}: there is no such revision here; check its name, or `git fetch` it "
            f"({error})"
        ) from error
    params, there = load(profile=profile), Tree(f"{base}:", commit)
    found = judge_trees(params, there, rules, recompute, only=profile is not None)
    for title, judged in found:
        print(page(judged, title), end="\n\n")
    if not all(judged.passed for _, judged in found):
        raise typer.Exit(1)
