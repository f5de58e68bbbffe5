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
from advprune.cli.time import time
from advprune.core.ending import ended

app = typer.Typer(
    name="advprune",
    help=(
        "What does compressing a neural network do to its adversarial robustness?\n\n"
        "Audit a checkpoint, attack it, compress it, and compare one branch with another. Run it "
        "in the root of the repository, where all but audit and export read params.yaml.\n\n"
        "Exit status: 0, success; 1, audit found a fault or gate a drop in robustness; 2, a file "
        "that cannot be read, a wrong setting or option, or a fault of the program."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (audit, evaluate, prune, export, report, leaderboard, time, gate):
    app.command()(command)


def main() -> None:
    """Run the command line, and end with its exit status."""
    sys.exit(ended(app, "advprune"))
