"""The exception for bad input."""


class SllmError(ValueError):
    """Bad input, described in one sentence: what was wrong, what was expected, what to do.

    The command line prints the sentence without a traceback and exits with code 2.
    """
