"""Settings of the whole process that suit an export; for a program to choose, never for a library.

``shoal export`` and ``shoal verify --checkpoint`` make them. A program that calls ``export_bundle``
beside other work may leave them out: the bundle is the same, memory may peak higher.
"""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h
_LARGE_ARRAY_BYTES = 8 << 20


def for_exporting() -> None:
    """Have glibc give every large array pages of its own, which go back when it is freed.

    Left to itself it keeps freed arrays of up to 32 MB for reuse, in holes that do not fit: up to
    a gigabyte of them, more or less from run to run.
    """
    with contextlib.suppress(AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE_ARRAY_BYTES)
        # Smaller ones stay for reuse; else pages are given back and fetched with every chunk.
        mallopt(_M_TRIM_THRESHOLD, _LARGE_ARRAY_BYTES)
