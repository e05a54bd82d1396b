"""Memory: what the machine, the control group and the limits of this process leave to it.

Everything is read from /proc and /sys; where those do not exist (macOS) the answer is None.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.machine.system_files import CGROUPS, PROC, group_folders, read_text

FREE_MEMORY = "free memory"
GROUP_LIMIT = "the limit of the control group"
"""What can limit memory that mapped files share; the other limits are of this process."""

_UNLIMITED_BYTES = 1 << 60  # version 1 control groups write a number near 2**63 for "no limit"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What may be taken, and what sets that limit."""

    total_bytes: int  # of the machine
    available_bytes: int  # what may still be used, every limit respected; no swap
    limit_bytes: int | None = None  # limit of the control group, None without one
    limited_by: str = FREE_MEMORY  # what the available bytes are, or the limit that is tighter
    swap_bytes: int = 0  # free swap: usable, but a model that lies there crawls
    address_space_bytes: int | None = None  # left of ulimit -v, which mapped files count for too


@dataclass(frozen=True, kw_only=True)
class ResidentMemory:
    """Memory of this process that is in RAM now."""

    anonymous_bytes: int  # heap: no other process can use it
    file_bytes: int  # mapped files: shared between processes, dropped when memory is short


def read_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """Memory left to this process, or None where the system does not say.

    Args:
        proc: where procfs is mounted.
        cgroups: where the control groups are mounted.
    """
    fields = _kilobyte_fields(read_text(proc / "meminfo"))
    if "MemTotal" not in fields:
        return None
    left = {FREE_MEMORY: fields.get("MemAvailable", fields.get("MemFree", 0))}
    group = _group_limit(proc, cgroups)
    if group is not None:
        left[GROUP_LIMIT] = max(0, group[0] - group[1])
    status = _kilobyte_fields(read_text(proc / "self" / "status"))
    address_space = _process_limit(proc, "Max address space", status.get("VmSize", 0))
    if address_space is not None:
        left["the limit of the address space (ulimit -v)"] = address_space
    data = _process_limit(proc, "Max data size", status.get("VmData", 0))
    if data is not None:
        left["the limit of data (ulimit -d)"] = data
    limited_by = min(left, key=lambda name: left[name])
    return Memory(
        total_bytes=fields["MemTotal"],
        available_bytes=left[limited_by],
        swap_bytes=fields.get("SwapFree", 0) if limited_by == FREE_MEMORY else 0,
        limited_by=limited_by,
        limit_bytes=group[0] if group else None,
        address_space_bytes=address_space,
    )


def read_resident(proc: Path = PROC) -> ResidentMemory | None:
    """Resident memory of this process, or None where the system does not say."""
    fields = _kilobyte_fields(read_text(proc / "self" / "status"))
    if "RssAnon" not in fields:
        return None
    return ResidentMemory(anonymous_bytes=fields["RssAnon"], file_bytes=fields["RssFile"])


def _kilobyte_fields(text: str) -> dict[str, int]:
    """``Name:  123 kB`` lines as bytes by name."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def _process_limit(proc: Path, name: str, used: int) -> int | None:
    """What is left of a soft limit of this process, None without one."""
    found = re.search(rf"^{name}\s+(\d+)\s", read_text(proc / "self" / "limits"), re.MULTILINE)
    return max(0, int(found.group(1)) - used) if found else None


def _group_limit(proc: Path, cgroups: Path) -> tuple[int, int] | None:
    """The limit of the groups that leaves least, and the bytes in use under it."""
    limits = []
    for folder in group_folders("memory", proc, cgroups):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = read_text(folder / limit_file), read_text(folder / used_file)
            if limit.isdigit() and int(limit) < _UNLIMITED_BYTES:
                limits.append((int(limit), _unreclaimable(folder, int(used or 0))))
    return min(limits, key=lambda pair: pair[0] - pair[1], default=None)


def _unreclaimable(folder: Path, used: int) -> int:
    """Bytes in use without the page cache, which the kernel gives up when asked for memory.

    Mapped weights are part of that cache, and active once a token has read them.
    """
    stat = read_text(folder / "memory.stat")
    for prefix in ("total_", ""):  # version 1 counts subgroups under names of their own
        cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
        if cached:
            return max(0, used - sum(map(int, cached)))
    return used
