"""What this machine is: processor, cores, memory limits, and what this process occupies.

Everything is read from /proc and /sys, the control group's limits included; where those do not
exist (macOS) the answer is less, never wrong.
"""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")

# Instructions that 8-bit products are fast with, by the names of /proc/cpuinfo.
INT8_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")
_UNLIMITED_BYTES = 1 << 60  # version 1 control groups write a number near 2**63 for "no limit"


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor, as far as it matters for speed."""

    model: str
    architecture: str  # platform.machine(): x86_64, aarch64, ...
    features: tuple[str, ...]  # those of INT8_FEATURES that are present
    usable_cpus: int  # logical processors this process may run on
    physical_cores: int  # distinct cores among them
    quota_cpus: float | None  # processor time the control group grants, in processors


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of the machine and of the control group this process is in."""

    total_bytes: int
    available_bytes: int  # what may still be used, the limit of the control group respected
    limit_bytes: int | None  # limit of the control group, None without one


@dataclass(frozen=True, kw_only=True)
class ResidentMemory:
    """Memory of this process that is in RAM now."""

    anonymous_bytes: int  # heap: nobody else can use it
    file_bytes: int  # mapped files: shared between processes, dropped when memory is short


def read_cpu(proc: Path = PROC, cgroups: Path = CGROUPS, cpus: Path = CPUS) -> Cpu:
    """Describe the processor.

    Args:
        proc: where procfs is mounted.
        cgroups: where the control groups are mounted.
        cpus: sysfs folder of the processors.
    """
    text = _read(proc / "cpuinfo")
    flags: set[str] = set()
    for found in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE):
        flags.update(found.split())
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", text, re.MULTILINE)
    usable = usable_cpus()
    return Cpu(
        model=model.group(1).strip() if model else platform.processor() or "unknown",
        architecture=platform.machine(),
        features=tuple(name for name in INT8_FEATURES if name in flags),
        usable_cpus=len(usable),
        physical_cores=count_cores(usable, cpus),
        quota_cpus=_quota_cpus(proc, cgroups),
    )


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def count_cores(usable: tuple[int, ...], cpus: Path = CPUS) -> int:
    """Distinct physical cores among logical processors; unknown topology counts each as one."""
    cores = set()
    for number in usable:
        siblings = _read(cpus / f"cpu{number}" / "topology" / "thread_siblings_list").strip()
        cores.add(siblings or f"cpu{number}")
    return max(1, len(cores))


def read_memory(proc: Path = PROC, cgroups: Path = CGROUPS) -> Memory | None:
    """Memory of machine and control group, or None where the system does not say."""
    fields = _kilobyte_fields(_read(proc / "meminfo"))
    if "MemTotal" not in fields:
        return None
    total = fields["MemTotal"]
    available = fields.get("MemAvailable", fields.get("MemFree", 0))
    limit, used = _memory_limit(proc, cgroups)
    if limit is not None:
        available = min(available, max(0, limit - used))
    return Memory(total_bytes=total, available_bytes=available, limit_bytes=limit)


def read_resident(proc: Path = PROC) -> ResidentMemory | None:
    """Resident memory of this process, or None where the system does not say."""
    fields = _kilobyte_fields(_read(proc / "self" / "status"))
    if "RssAnon" not in fields:
        return None
    return ResidentMemory(anonymous_bytes=fields["RssAnon"], file_bytes=fields["RssFile"])


def _read(path: Path) -> str:
    """The text of a small system file, empty when there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _kilobyte_fields(text: str) -> dict[str, int]:
    """``Name:  123 kB`` lines as bytes by name."""
    found = re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)
    return {name: int(value) * 1024 for name, value in found}


def _group_folders(proc: Path, cgroups: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and all its parents, version 2 or 1.

    The mount point itself is included: in a container it is the group's own folder, whatever path
    /proc/self/cgroup gives.
    """
    folders: list[Path] = []
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        root = cgroups / controllers if controllers else cgroups
        group = root / path.lstrip("/")
        folders += [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    return [*folders, cgroups, cgroups / controller]


def _memory_limit(proc: Path, cgroups: Path) -> tuple[int | None, int]:
    """Tightest memory limit over the groups and the bytes in use under it."""
    limits = []
    for folder in _group_folders(proc, cgroups, "memory"):
        for limit_file, used_file in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _read(folder / limit_file).strip(), _read(folder / used_file).strip()
            if limit.isdigit() and int(limit) < _UNLIMITED_BYTES:
                limits.append((int(limit), _unreclaimable(folder, int(used or 0))))
    return min(limits, key=lambda pair: pair[0] - pair[1]) if limits else (None, 0)


def _unreclaimable(folder: Path, used: int) -> int:
    """Bytes in use without the page cache that the kernel gives up when asked for memory."""
    cached = re.search(r"^(?:total_)?inactive_file (\d+)$", _read(folder / "memory.stat"), re.M)
    return max(0, used - int(cached.group(1))) if cached else used


def _quota_cpus(proc: Path, cgroups: Path) -> float | None:
    quotas = []
    for folder in _group_folders(proc, cgroups, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if not quota:
            quota = _read(folder / "cpu.cfs_quota_us").strip()
            period = _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None
