"""The small files through which Linux describes itself: where they are and how to read them.

Where they do not exist (macOS) the answer is empty, never an error.
"""

from __future__ import annotations

from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")


def read_text(path: Path) -> str:
    """The text of a small system file without white space at its ends, empty if there is none.

    Device tree strings end with a zero byte, which is dropped too.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\n")
    except OSError:
        return ""


def read_number(path: Path) -> int | None:
    """The whole number a system file holds, None if there is none."""
    text = read_text(path)
    return int(text) if text.removeprefix("-").isdecimal() else None


def number_list(text: str) -> frozenset[int]:
    """Numbers written as the kernel writes lists of processors: ``0-3,8``; empty if it is none."""
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return frozenset()
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def group_folders(controller: str, proc: Path = PROC, cgroups: Path = CGROUPS) -> list[Path]:
    """Folders of this process's control group and all its parents, version 2 or 1.

    The mount point itself is included: in a container it is the group's own folder, whatever path
    /proc/self/cgroup gives.

    Args:
        controller: ``memory`` or ``cpu``.
        proc: where procfs is mounted.
        cgroups: where the control groups are mounted.
    """
    folders: list[Path] = []
    for line in read_text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        group = root / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return [*folders, cgroups, cgroups / controller]
