"""The command line `advprune`: its subcommands, errors and exit status."""

import sys

import typer

from advprune.cli.audit import audit
from advprune.cli.evaluate import evaluate
from advprune.cli.export import export
from advprune.cli.gate import gate
from advprune.cli.leaderboard import leaderboard
from advprune.cli.prune import prune
from advprune.cli.report import report
from advprune.core.errors import UserError

UNANSWERED = 2  # also what a wrong option ends with

app = typer.Typer(
    name="advprune",
    help=(
        "What does compressing a neural network do to its adversarial robustness?\n\n"
        "Audit a checkpoint, attack it, compress it, and compare one branch with another. Run it "
        "in the root of the repository, where all but audit and export read params.yaml.\n\n"
        "Exit status: 0, success; 1, audit found a fault or gate a drop in robustness; 2, a file "
        "that cannot be read, or a wrong setting or option."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (audit, evaluate, prune, export, report, leaderboard, gate):
    app.command()(command)


def main() -> None:
    """Run the command line; a UserError ends it with one line and exit status 2."""
    try:
        app(prog_name="advprune")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(UNANSWERED)
