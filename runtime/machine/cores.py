"""Physical cores, and which of them are worth a thread.

A board with big and little cores decodes fastest, and with least power, on the big ones alone: a
step ends when its slowest thread does, and two or three big cores read memory as fast as it comes.
Threads are not pinned to them: the system moves busy threads to big cores by itself, and away from
where other work runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.machine.system_files import CPUS, number_list, read_number, read_text

BIG_CAPACITY = 0.6
"""Share of the strongest core's cpu_capacity from which a core counts as big: the A720 beside an
X4 does (0.8), the A55 beside an A76 (0.4) and Apple's efficiency cores (0.3 to 0.5) do not."""

BIG_FREQUENCY = 0.8
"""The same for the highest clock rate where that is all there is: little cores are also slower at
the same rate, so the rates lie closer together (A55 and A76: 0.75)."""


@dataclass(frozen=True, kw_only=True)
class Core:
    """One physical core."""

    cpus: tuple[int, ...]  # its logical processors that may be used
    is_efficient: bool  # one that its maker calls an efficiency core (x86)
    capacity: int | None  # cpu_capacity: computing power, 1024 for the strongest of the machine
    frequency_khz: int | None  # highest clock rate


def physical_cores(usable: Sequence[int], cpus: Path = CPUS) -> list[Core]:
    """The cores of logical processors; where the topology is unknown, each is one.

    Args:
        usable: numbers of the logical processors.
        cpus: sysfs folder of the processors.
    """
    grouped: dict[object, list[int]] = {}
    for number in usable:
        grouped.setdefault(_core_key(number, cpus), []).append(number)
    efficient = number_list(read_text(cpus.parent.parent / "cpu_atom" / "cpus"))
    return [
        Core(
            cpus=tuple(numbers),
            is_efficient=numbers[0] in efficient,
            capacity=read_number(cpus / f"cpu{numbers[0]}" / "cpu_capacity"),
            frequency_khz=read_number(cpus / f"cpu{numbers[0]}" / "cpufreq/cpuinfo_max_freq"),
        )
        for numbers in grouped.values()
    ]


def big_cores(cores: Sequence[Core]) -> list[Core]:
    """The cores to compute with: the strong ones among those that may be used.

    What the maker says counts before capacities, capacities before clock rates; cores that nothing
    tells apart are all big.
    """
    performance = [core for core in cores if not core.is_efficient]
    if performance and len(performance) < len(cores):
        return performance
    for strengths, share in (
        ([core.capacity for core in cores], BIG_CAPACITY),
        ([core.frequency_khz for core in cores], BIG_FREQUENCY),
    ):
        known = [strength for strength in strengths if strength is not None]
        if len(known) == len(cores) and len(set(known)) > 1:
            strongest = max(known)
            return [
                core
                for core, strength in zip(cores, known, strict=True)
                if strength >= share * strongest
            ]
    return list(cores)


def _core_key(number: int, cpus: Path) -> object:
    """Equal for the logical processors of one core."""
    topology = cpus / f"cpu{number}" / "topology"
    for name in ("core_cpus_list", "thread_siblings_list"):  # the newer name first
        siblings = number_list(read_text(topology / name))
        if number in siblings:
            return siblings
    core = read_number(topology / "core_id")
    if core is None or core < 0:
        return number
    return read_text(topology / "physical_package_id"), core
