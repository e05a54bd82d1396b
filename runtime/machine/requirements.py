"""What shoal needs of a machine and of onnxruntime, checked before either can fail obscurely."""

from __future__ import annotations

import platform
import re
import struct
import sys

from shoal.graphs.errors import RuntimeFailure

ONNXRUNTIME_NEEDED = (1, 32)
"""The first version whose experts compute with 8-bit products."""

_NEEDED = ".".join(map(str, ONNXRUNTIME_NEEDED))
_INSTALL = f"pip install --upgrade 'onnxruntime>={_NEEDED}'"


def check_machine() -> None:
    """Refuse machines on which weights.bin cannot be used as it lies in the file.

    Raises:
        RuntimeFailure: the machine is big-endian, or this Python is a 32-bit one.
    """
    bits = struct.calcsize("P") * 8
    if sys.byteorder != "little":
        raise RuntimeFailure(
            f"this machine: bundles need a little-endian processor, {platform.machine()} is "
            f"{sys.byteorder}-endian here; use an x86-64 or 64-bit ARM machine"
        )
    if bits != 64:
        advice = "install a 64-bit system and Python"
        if platform.machine().startswith(("arm", "aarch64")):
            advice += " (for a Raspberry Pi 3 or newer: the 64-bit Raspberry Pi OS)"
        raise RuntimeFailure(
            f"this machine: bundles need a 64-bit Python, this one is {bits}-bit on "
            f"{platform.machine()}; {advice}"
        )


def onnxruntime_error(version: str | None, reason: str = "") -> str | None:
    """What is wrong with the installed onnxruntime and what to do, None if nothing is.

    Args:
        version: None if it is not there or does not start.
        reason: why it does not start.
    """
    if version is None:
        found = f"cannot be imported ({reason})" if reason else "is not installed"
        return f"onnxruntime {found}: {_INSTALL}"
    if version_pair(version) < ONNXRUNTIME_NEEDED:
        return (
            f"onnxruntime {version} is older than {_NEEDED}, which the experts' int8 products "
            f"need: {_INSTALL}"
        )
    return None


def version_pair(text: str) -> tuple[int, int]:
    """Major and minor number of a version, zeros for what is not there."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)
