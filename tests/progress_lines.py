"""Progress lines on standard error. They appear after 10 s, so only on slow machines."""

import re

LINE = re.compile(r"^[\w ]+: \d+( of \d+ \(\d+%\))?(, .*)?\n", re.MULTILINE)


def without_progress(error: str) -> str:
    """What a command has said besides its progress."""
    return LINE.sub("", error)
