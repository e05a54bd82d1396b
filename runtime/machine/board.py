"""Which board or machine this is, what its cores are called, and whether it is hot or held back.

Read from the device tree, DMI, /proc/cpuinfo and sysfs; what is not there is None or empty.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.machine.system_files import PROC, read_number, read_text

SYS = Path("/sys")

# Implementer and part number of /proc/cpuinfo. Source: Arm's MIDR_EL1 values, as in the kernel's
# arch/arm64/include/asm/cputype.h.
_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd46"): "Cortex-A510",
    ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4d"): "Cortex-A715",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd80"): "Cortex-A520",
    ("0x41", "0xd81"): "Cortex-A720",
    ("0x41", "0xd82"): "Cortex-X4",
    ("0x61", "0x022"): "Apple M1 efficiency",
    ("0x61", "0x023"): "Apple M1 performance",
    ("0xc0", "0xac3"): "AmpereOne",
}
_DMI_PLACEHOLDERS = ("To Be Filled", "System Product", "System manufacturer", "Default string")


@dataclass(frozen=True, kw_only=True)
class Board:
    """The machine as its owner knows it."""

    name: str | None  # "Raspberry Pi 5 Model B Rev 1.0"
    is_virtual: bool  # a virtual machine, whose figures depend on its neighbours
    cores: str  # "4x Cortex-A55, 4x Cortex-A76", or the model name
    governors: tuple[str, ...]  # of the processors' frequencies
    max_mhz: tuple[int, ...]  # highest frequencies, each once


@dataclass(frozen=True, kw_only=True)
class Condition:
    """The state of the machine at one moment."""

    celsius: float | None  # the hottest sensor
    mhz: tuple[int, int] | None  # lowest and highest frequency of the processors
    throttled: str | None  # what the firmware of a Raspberry Pi says: "0x0" for never
    throttle_count: int | None  # times that cores of an x86 processor were slowed down by heat


def read_board(proc: Path = PROC, sys: Path = SYS) -> Board:
    """Describe the machine.

    Args:
        proc: where procfs is mounted.
        sys: where sysfs is mounted.
    """
    cpuinfo = read_text(proc / "cpuinfo")
    policies = [path / "cpufreq" for path in _cpus(sys)]
    dmi = sys / "class/dmi/id"
    parts = [read_text(dmi / name) for name in ("sys_vendor", "product_name")]
    known = [part for part in parts if part and not part.startswith(_DMI_PLACEHOLDERS)]
    tree = read_text(sys / "firmware/devicetree/base/model")
    name = tree or read_text(proc / "device-tree/model") or " ".join(known)
    return Board(
        name=name or None,
        is_virtual=bool(re.search(r"^flags\s*:.*\bhypervisor\b", cpuinfo, re.MULTILINE))
        or any(sign in name for sign in ("QEMU", "KVM", "Virtual", "VMware", "linux,dummy-virt")),
        cores=_cores(cpuinfo),
        governors=tuple(sorted({text for p in policies if (text := _governor(p))})),
        max_mhz=_mhz(policies, "cpuinfo_max_freq"),
    )


def read_condition(sys: Path = SYS) -> Condition:
    """Temperature, frequency and throttling at this moment.

    Args:
        sys: where sysfs is mounted.
    """
    zones = (sys / "class/thermal").glob("thermal_zone*/temp")
    temperatures = [number / 1000 for zone in zones if (number := read_number(zone)) is not None]
    now = _mhz([path / "cpufreq" for path in _cpus(sys)], "scaling_cur_freq")
    throttles = [path / "thermal_throttle/core_throttle_count" for path in _cpus(sys)]
    counts = [count for path in throttles if (count := read_number(path)) is not None]
    firmware = read_text(sys / "devices/platform/soc/soc:firmware/get_throttled")
    bits = re.fullmatch(r"(?:0x)?([0-9a-fA-F]+)", firmware)
    return Condition(
        celsius=max(temperatures, default=None),
        mhz=(now[0], now[-1]) if now else None,
        throttled=f"0x{bits[1]}" if bits else None,
        throttle_count=sum(counts) if counts else None,
    )


def was_held_back(before: Condition, after: Condition) -> bool | None:
    """Whether heat or a weak power supply slowed the machine down, None where nothing says so."""
    if after.throttled is not None:
        return int(after.throttled, 16) & 0xF != 0 or after.throttled != before.throttled
    if after.throttle_count is not None and before.throttle_count is not None:
        return after.throttle_count > before.throttle_count
    return None


def _cpus(sys: Path) -> list[Path]:
    return sorted((sys / "devices/system/cpu").glob("cpu[0-9]*"))


def _governor(policy: Path) -> str:
    return read_text(policy / "scaling_governor")


def _mhz(policies: Iterable[Path], file: str) -> tuple[int, ...]:
    """Different frequencies, the lowest first."""
    found = {read_number(policy / file) for policy in policies}
    return tuple(sorted(khz // 1000 for khz in found if khz is not None))


def _cores(cpuinfo: str) -> str:
    """Kinds of cores and how many there are of each, or the name of the processor."""
    implementers = re.findall(r"^CPU implementer\s*:\s*(\w+)", cpuinfo, re.MULTILINE)
    parts = re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, re.MULTILINE)
    names = [
        _ARM_CORES.get(pair, "/".join(pair)) for pair in zip(implementers, parts, strict=False)
    ]
    if names:
        return ", ".join(f"{count}x {name}" for name, count in sorted(Counter(names).items()))
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return found.group(1) if found else "unknown"
