"""The most memory that this process has had at once."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_memory_bytes() -> int:
    """Largest resident memory so far, in bytes.

    Linux tells it of this program. getrusage, which other systems have, would count what the
    process was before it became this program: a child of a large process begins with its parent's.
    """
    if _STATUS.exists():
        peak = re.search(r"^VmHWM:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss if sys.platform == "darwin" else peak_rss * 1024
