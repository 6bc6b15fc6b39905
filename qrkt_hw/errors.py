"""Errors a user can cause."""


class UserError(Exception):
    """One sentence that names the flag, file or key, the value found and the values allowed.

    The command line prints it and exits with status 2; in Python it is an ordinary exception.
    """


class RunWarning(UserWarning):
    """What a user must know of a run that is used all the same; the command line shows it in one line."""
