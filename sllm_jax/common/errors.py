"""The one exception for bad input."""


class SllmError(ValueError):
    """Bad input, in one sentence: what was wrong, what was expected, what came, what to do.

    The command line prints the sentence and exits with code 2; a traceback would add nothing.
    """
