"""Files that are to be written: what a file system will not take, and what to do about it."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OTHER_NAME = (errno.EISDIR, errno.EINVAL, errno.ENAMETOOLONG)


def advice_on(error: OSError) -> str:
    """What a user can do when a file cannot be written."""
    if error.errno in _FULL:
        return "free disk space or choose another place"
    if error.errno == errno.EFBIG:
        return "files of this size are not allowed there (FAT32 ends at 4 GiB); choose another disk"
    if error.errno == errno.ENOENT:
        return "make the folder or choose another place"
    if error.errno in _OTHER_NAME:
        return "choose another name"
    return "make it writable or choose another place"


def check_file_size(descriptor: int, size: int) -> None:
    """See that a file may become as large as it shall, before hours of writing.

    Args:
        descriptor: the file, open for writing; its position is 0 afterwards.
        size: bytes it will have.

    Raises:
        OSError: EFBIG, it may not.
    """
    try:
        os.lseek(descriptor, size, os.SEEK_SET)  # past what the file system can address: EINVAL
    except OSError as error:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from error
    os.lseek(descriptor, 0, os.SEEK_SET)


def check_replaceable(path: Path) -> None:
    """See that there is nothing but a file, or nothing, under a name that a file will take.

    Raises:
        OSError: a folder, or a device or pipe, which a file would replace in its folder.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "expected a regular file, found a device or pipe")
