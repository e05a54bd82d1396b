"""What this machine computes with: processor, instructions, cores, and what a container grants.

Everything is read from /proc and /sys; where those do not exist (macOS) the answer is less, never
wrong.
"""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.machine.cores import big_cores, physical_cores
from shoal.runtime.machine.system_files import CGROUPS, CPUS, PROC, group_folders, read_text

# Instructions that 8-bit products are fast with, by the names of /proc/cpuinfo.
INT8_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve")


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor, as far as it matters for speed."""

    model: str
    architecture: str  # platform.machine(): x86_64, aarch64, ...
    features: tuple[str, ...]  # those of INT8_FEATURES that are present
    usable_cpus: int  # logical processors this process may run on
    physical_cores: int  # distinct cores among them
    big_cores: int  # those of them that are worth a thread; see cores.py
    quota_cpus: float | None  # processor time the control group grants, in processors


def read_cpu(proc: Path = PROC, cgroups: Path = CGROUPS, cpus: Path = CPUS) -> Cpu:
    """Describe the processor.

    Args:
        proc: where procfs is mounted.
        cgroups: where the control groups are mounted.
        cpus: sysfs folder of the processors.
    """
    cpuinfo = read_text(proc / "cpuinfo")
    flags: set[str] = set()
    for found in re.findall(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE):
        flags.update(found.split())
    model = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    usable = usable_cpus()
    cores = physical_cores(usable, cpus)
    return Cpu(
        model=model.group(1) if model else platform.processor() or "unknown",
        architecture=platform.machine(),
        features=tuple(name for name in INT8_FEATURES if name in flags),
        usable_cpus=len(usable),
        physical_cores=len(cores),
        big_cores=len(big_cores(cores)),
        quota_cpus=_quota_cpus(proc, cgroups),
    )


def default_threads(cpu: Cpu) -> int:
    """One thread per big core, or fewer if the control group grants less processor time."""
    if cpu.quota_cpus is None:
        return cpu.big_cores
    return max(1, min(cpu.big_cores, math.ceil(cpu.quota_cpus)))


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def _quota_cpus(proc: Path, cgroups: Path) -> float | None:
    quotas = []
    for folder in group_folders("cpu", proc, cgroups):
        quota, _, period = read_text(folder / "cpu.max").partition(" ")
        if not quota:
            quota = read_text(folder / "cpu.cfs_quota_us")
            period = read_text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None
