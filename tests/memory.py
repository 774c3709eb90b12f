"""Memory of this process, as Linux counts it."""

import re
from pathlib import Path


def resident_megabytes(kind: str = "VmRSS") -> float:
    """Resident memory in MB; `kind` is a line of /proc/self/status, such as RssAnon."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) / 1024
