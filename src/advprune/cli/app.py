"""The command line `advprune`: its subcommands, and how a fault ends it."""

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
        "Audit a checkpoint, attack it, compress it, and compare a branch with another. Commands "
        "read params.yaml of the current folder, the repository's root, except for audit.\n\n"
        "Exit status: 0, success; 1, the answer is no (audit found a fault, gate a fall); "
        "2, no answer could be given (a file that cannot be read, a wrong setting or option)."
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
