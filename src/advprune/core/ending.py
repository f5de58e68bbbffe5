"""How a command or a stage ends: its exit status, and one line where something is wrong."""

import atexit
import gc
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from advprune.core.errors import UserError

WRONG = 2  # also what a wrong option ends with; 1 is an answer: "no"


def ended(app: Callable[..., Any], name: str) -> int:
    """Run a Typer application; its exit status.

    2 for a UserError, or a file that the system refuses, either of which is printed as one line,
    and for any crash: no answer was given. Code that was called may not end the process by itself.
    """
    # Looking for cycles among all that torch makes costs a second per process: half of it while it
    # is imported, half at exit. Where Triton was imported it would complain of them.
    gc.set_threshold(100_000)

    @atexit.register
    def skip_last_collection() -> None:
        if "triton" not in sys.modules:
            gc.freeze()

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of what a terminal lacks: no reason to end
    import typer
    from typer.exceptions import TyperException

    if any(key.endswith("_COMPLETE") and key.startswith("_") for key in os.environ):
        app(prog_name=name)  # the shell asks for completions
    try:
        return int(app(prog_name=name, standalone_mode=False) or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except TyperException as error:  # of wrong options and arguments
        if message := error.format_message():  # none where help was shown instead
            print(f"error: {message}; see {name} --help", file=sys.stderr)
    except (typer.Abort, KeyboardInterrupt):
        print("error: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno is None:  # raised by code that was called, not by the system
            traceback.print_exc()
        else:  # of a path that was given: too long, not to be read; of a full disk
            where = "" if error.filename is None else f"{error.filename}: "
            print(f"error: {UserError(f'{where}{error.strerror}')}", file=sys.stderr)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # who reads has gone: `| head`
            return WRONG
        print(f"error: code that was called ended by sys.exit({error.code!r})", file=sys.stderr)
    except Exception:
        traceback.print_exc()
    return WRONG
