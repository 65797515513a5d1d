"""The one exception that nppkit raises for bad input, and how a command ends with it."""

import sys
from collections.abc import Callable
from typing import NoReturn


class NppkitError(ValueError):
    """One line: the file or parameter, what is wrong with it, and what to do."""

    status = 1  # of a command that ends with it


def run_command(main: Callable[[], int | None]) -> NoReturn:
    """Run a module's command line; a NppkitError becomes one line on standard error and the exit status."""
    try:
        sys.exit(main())
    except NppkitError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)
