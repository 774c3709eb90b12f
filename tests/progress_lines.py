"""Lines of progress on standard error: they come after 10 s, so a slow machine has some where others have none."""

import re

LINE = re.compile(r"^[\w ]+: \d+( of \d+ \(\d+%\))?(, .*)?\n", re.MULTILINE)


def without_progress(error: str) -> str:
    """What a command has said besides its progress."""
    return LINE.sub("", error)
