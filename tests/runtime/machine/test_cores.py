"""Which cores compute, on trees of files as the boards' kernels write them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.runtime.machine.cores import big_cores, physical_cores
from shoal.runtime.machine.processor import Cpu, default_threads


@dataclass(frozen=True)
class Kind:
    """Logical processors of one kind, as sysfs shows them."""

    cpus: range
    threads_per_core: int = 1
    capacity: int | None = None
    frequency_khz: int | None = None
    siblings_file: str = "core_cpus_list"


def write_tree(root: Path, *kinds: Kind) -> Path:
    cpus = root / "devices/system/cpu"
    for kind in kinds:
        for place, number in enumerate(kind.cpus):
            folder = cpus / f"cpu{number}"
            (folder / "topology").mkdir(parents=True)
            (folder / "cpufreq").mkdir()
            first = kind.cpus[place - place % kind.threads_per_core]
            last = first + kind.threads_per_core - 1
            siblings = f"{first}-{last}\n" if last > first else f"{first}\n"
            (folder / "topology" / kind.siblings_file).write_text(siblings)
            if kind.capacity is not None:
                (folder / "cpu_capacity").write_text(f"{kind.capacity}\n")
            if kind.frequency_khz is not None:
                (folder / "cpufreq/cpuinfo_max_freq").write_text(f"{kind.frequency_khz}\n")
    return cpus


def pi_4(root: Path) -> Path:
    return write_tree(root, Kind(range(4), capacity=1024, frequency_khz=1_800_000))


def pi_5(root: Path) -> Path:
    return write_tree(root, Kind(range(4), capacity=1024, frequency_khz=2_400_000))


def rk3588(root: Path) -> Path:
    return write_tree(
        root,
        Kind(range(4), capacity=414, frequency_khz=1_800_000),
        Kind(range(4, 8), capacity=1024, frequency_khz=2_400_000),
    )


def rk3588_without_capacities(root: Path) -> Path:
    return write_tree(
        root,
        Kind(range(4), frequency_khz=1_800_000),
        Kind(range(4, 8), frequency_khz=2_400_000),
    )


def altra(root: Path) -> Path:
    return write_tree(root, Kind(range(80), capacity=1024, frequency_khz=3_000_000))


def apple_m1(root: Path) -> Path:
    return write_tree(
        root,
        Kind(range(4), capacity=296, frequency_khz=2_064_000),
        Kind(range(4, 8), capacity=1024, frequency_khz=3_204_000),
    )


def phone_with_three_tiers(root: Path) -> Path:
    return write_tree(
        root,
        Kind(range(4), capacity=325, frequency_khz=2_016_000),
        Kind(range(4, 7), capacity=828, frequency_khz=2_803_000),
        Kind(range(7, 8), capacity=1024, frequency_khz=3_187_000),
    )


def x86_hybrid(root: Path) -> Path:
    """8 performance cores with two threads each, 8 efficiency cores."""
    (root / "devices/cpu_atom").mkdir(parents=True)
    (root / "devices/cpu_atom/cpus").write_text("16-23\n")
    (root / "devices/cpu_core").mkdir()
    (root / "devices/cpu_core/cpus").write_text("0-15\n")
    return write_tree(
        root,
        Kind(range(16), 2, frequency_khz=5_400_000, siblings_file="thread_siblings_list"),
        Kind(range(16, 24), frequency_khz=4_300_000, siblings_file="thread_siblings_list"),
    )


def x86_server(root: Path) -> Path:
    return write_tree(root, Kind(range(64), 2, frequency_khz=3_700_000))


def x86_favoured_cores(root: Path) -> Path:
    """One kind of core, two of which may clock a little higher."""
    return write_tree(
        root,
        Kind(range(4), 2, frequency_khz=5_800_000),
        Kind(range(4, 16), 2, frequency_khz=5_500_000),
    )


Board = Callable[[Path], Path]


@pytest.mark.parametrize(
    ("board", "logical", "physical", "big"),
    [
        (pi_4, 4, 4, 4),
        (pi_5, 4, 4, 4),
        (rk3588, 8, 8, 4),
        (rk3588_without_capacities, 8, 8, 4),
        (altra, 80, 80, 80),
        (apple_m1, 8, 8, 4),
        (phone_with_three_tiers, 8, 8, 4),
        (x86_hybrid, 24, 16, 8),
        (x86_server, 64, 32, 32),
        (x86_favoured_cores, 16, 8, 8),
    ],
)
def test_big_cores_of_boards(
    board: Board, logical: int, physical: int, big: int, tmp_path: Path
) -> None:
    cores = physical_cores(range(logical), board(tmp_path))
    assert len(cores) == physical
    assert len(big_cores(cores)) == big


@pytest.mark.parametrize(
    ("board", "usable", "big"),
    [
        (rk3588, (2, 3, 4, 5), (4, 5)),  # taskset -c 2-5
        (rk3588, (0, 1, 2), (0, 1, 2)),  # only little ones: then they are all there is
        (x86_hybrid, (0, 1, 2, 16, 17), (0, 2)),
        (x86_hybrid, (16, 17), (16, 17)),
        (x86_server, (1, 3), (1, 3)),  # the second threads of two cores
    ],
)
def test_only_cores_of_the_affinity_mask_count(
    board: Board, usable: tuple[int, ...], big: tuple[int, ...], tmp_path: Path
) -> None:
    cores = physical_cores(usable, board(tmp_path))
    assert tuple(core.cpus[0] for core in big_cores(cores)) == big


def test_core_ids_tell_cores_apart_where_siblings_are_not_listed(tmp_path: Path) -> None:
    for number in range(8):
        topology = tmp_path / f"cpu{number}/topology"
        topology.mkdir(parents=True)
        (topology / "core_id").write_text(f"{number % 2}\n")
        (topology / "physical_package_id").write_text(f"{number // 4}\n")
    assert len(physical_cores(range(8), tmp_path)) == 4


def test_unknown_topology_counts_each_processor(tmp_path: Path) -> None:
    assert len(big_cores(physical_cores(range(6), tmp_path))) == 6


@pytest.mark.parametrize(
    ("big", "quota", "threads"),
    [(4, None, 4), (4, 4.0, 4), (4, 1.5, 2), (4, 0.2, 1), (2, 8.0, 2)],
)
def test_threads_are_the_big_cores_that_the_container_grants(
    big: int, quota: float | None, threads: int
) -> None:
    cpu = Cpu(
        model="m",
        architecture="a",
        features=(),
        usable_cpus=16,
        physical_cores=8,
        big_cores=big,
        quota_cpus=quota,
    )
    assert default_threads(cpu) == threads
