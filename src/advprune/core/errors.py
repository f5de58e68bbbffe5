"""The one error that users see: a sentence that says what is wrong, where, and what to do."""


class UserError(Exception):
    """Something outside the code is wrong: a setting, a file, an image, a checkpoint.

    The message is one line. Stage scripts print it and exit with status 1, without a traceback.
    """
