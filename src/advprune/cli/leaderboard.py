"""`advprune leaderboard`: the results of a finished run in the terminal."""

from typing import Annotated

import typer

from advprune.cli.options import ProfileOption


def leaderboard(
    profile: ProfileOption = None,
    markdown: Annotated[bool, typer.Option(help="Print a Markdown table instead.")] = False,
) -> None:
    """Print one row per model and the path of the report, from `reports/<profile>/results.csv`."""
    from advprune.core.params import load
    from advprune.report.terminal import leaderboard as shown

    print(shown(load(profile=profile).profile, markdown))
