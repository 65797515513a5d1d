"""The one exception that nppkit raises for bad input."""


class NppkitError(ValueError):
    """One line: the file or parameter, what is wrong with it, and what to do."""

    status = 1  # of a command that ends with it
