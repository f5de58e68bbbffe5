"""The one error that users see: a sentence that says what is wrong, where, and what to do."""

import traceback
from pathlib import Path

MOST = 1500  # characters of a message


class UserError(Exception):
    """Something outside the code is wrong: a setting, a file, an image, a checkpoint.

    The message is one line. Commands and stages print it and exit with status 2, without a
    traceback. Text from files in it cannot steer a terminal.
    """

    def __init__(self, message: object) -> None:
        super().__init__(one_line(" ".join(str(message).split()))[:MOST])


class InputError(UserError, ValueError):
    """What was given to a function makes no sense: a model, images, labels, a budget."""


def one_line(text: str) -> str:
    """Text from a file as one line that cannot steer the terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(":")


def with_place(error: BaseException) -> str:
    """What an error of the user's code is, says and where it arose, on one line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}"
    return f"{type(error).__name__}: {first_line(error)} ({where})"
