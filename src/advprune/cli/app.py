"""The command line `advprune`: its subcommands, errors and exit status."""

import sys

import typer

from advprune.cli.audit import audit
from advprune.cli.evaluate import evaluate
from advprune.cli.export import export
from advprune.cli.gate import gate
from advprune.cli.init import init
from advprune.cli.leaderboard import leaderboard
from advprune.cli.prune import prune, quantize
from advprune.cli.report import report
from advprune.cli.time import time
from advprune.core.ending import ended

app = typer.Typer(
    name="advprune",
    help=(
        "What does compressing a neural network do to its adversarial robustness?\n\n"
        "Anywhere: audit a checkpoint, export it, and evaluate it on pictures of your own, "
        "`advprune evaluate net.pt --data pictures/ --eps 8/255`; init sets up a DVC "
        "project around them. In "
        "the root of a repository or project, where params.yaml is: evaluate, prune and quantize "
        "with its settings, report, leaderboard, and gate, which compares two branches.\n\n"
        "Exit status: 0, success; 1, audit found a fault or gate a drop in robustness; 2, a file "
        "that cannot be read, a wrong setting or option, or a fault of the program."
    ),
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (audit, evaluate, init, prune, quantize, export, report, leaderboard, time, gate):
    app.command()(command)


def main() -> None:
    """Run the command line, and end with its exit status."""
    sys.exit(ended(app, "advprune"))
