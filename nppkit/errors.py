"""The one exception that nppkit raises for bad input."""


class NppkitError(ValueError):
    """One line: the file or parameter, what is wrong with it, and what to do.

    >>> from nppkit import multi_scale_segments
    >>> multi_scale_segments(300, 2, "3/2")
    Traceback (most recent call last):
    nppkit.errors.NppkitError: lambda 3/2 is outside (0, 1): the coarse part is a true fraction of the training
    """

    status = 1  # of a command that ends with it


class Diverged(NppkitError):
    """A training whose loss, gradient or held-out likelihood is no longer a number: an outcome, which a study counts."""
