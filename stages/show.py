"""The closing table: the leaderboard in brief, and where the report lies."""

from common import ProfileOption, Workspace, script


def show(profile: ProfileOption = None) -> None:
    """Print one row per model; the last line is the path of the report."""
    from advprune.report.terminal import leaderboard

    print(leaderboard(Workspace.open(profile).params.profile))


if __name__ == "__main__":
    script(show)
