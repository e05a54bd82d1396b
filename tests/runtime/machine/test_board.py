"""What a report says of a board, on trees of files as the boards' kernels write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal.runtime.machine.bandwidth import array_bytes, largest_cache_bytes, measure_read_bandwidth
from shoal.runtime.machine.board import Condition, read_board, read_condition, was_held_back

MB = 1 << 20


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def arm_cpuinfo(*parts: str) -> str:
    return "\n".join(
        f"processor\t: {n}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n"
        for n, part in enumerate(parts)
    )


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    write(
        tmp_path,
        {
            "proc/cpuinfo": arm_cpuinfo(*["0xd0b"] * 4) + "\nModel\t: Raspberry Pi 5\n",
            "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
            "sys/devices/platform/soc/soc:firmware/get_throttled": "50000\n",
            "sys/class/thermal/thermal_zone0/temp": "61250\n",
            "sys/class/thermal/thermal_zone1/temp": "48000\n",
        },
    )
    for n in range(4):
        policy = f"sys/devices/system/cpu/cpu{n}/cpufreq"
        write(
            tmp_path,
            {
                f"{policy}/scaling_governor": "ondemand\n",
                f"{policy}/cpuinfo_max_freq": "2400000\n",
                f"{policy}/scaling_cur_freq": f"{1500000 + 300000 * n}\n",
            },
        )
    return tmp_path


def test_a_pi_is_named_with_its_cores_governor_and_state(pi: Path) -> None:
    board = read_board(pi / "proc", pi / "sys")
    assert board.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert board.cores == "4x Cortex-A76"
    assert (board.governors, board.max_mhz) == (("ondemand",), (2400,))
    assert not board.is_virtual
    assert read_condition(pi / "sys") == Condition(
        celsius=61.25, mhz=(1500, 2400), throttled="0x50000", throttle_count=None
    )


def test_two_kinds_of_cores_are_both_named(tmp_path: Path) -> None:
    write(tmp_path, {"cpuinfo": arm_cpuinfo("0xd05", "0xd05", "0xd0b", "0xfff")})
    board = read_board(tmp_path, tmp_path)
    assert board.cores == "1x 0x41/0xfff, 2x Cortex-A55, 1x Cortex-A76"
    assert board.name is None


@pytest.mark.parametrize(
    ("files", "name", "is_virtual"),
    [
        (
            {"class/dmi/id/sys_vendor": "Intel(R)", "class/dmi/id/product_name": "NUC13ANKi7"},
            "Intel(R) NUC13ANKi7",
            False,
        ),
        ({"class/dmi/id/product_name": "To Be Filled By O.E.M."}, None, False),
        ({"cpuinfo": "flags\t\t: fpu avx2 hypervisor\n"}, None, True),
        ({"class/dmi/id/sys_vendor": "QEMU", "cpuinfo": "flags\t: fpu\n"}, "QEMU", True),
        ({"firmware/devicetree/base/model": "linux,dummy-virt"}, "linux,dummy-virt", True),
    ],
)
def test_machines_without_a_device_tree_are_named_by_dmi(
    files: dict[str, str], name: str | None, is_virtual: bool, tmp_path: Path
) -> None:
    write(tmp_path, files)
    board = read_board(tmp_path, tmp_path)
    assert (board.name, board.is_virtual) == (name, is_virtual)


def condition(throttled: str | None = None, count: int | None = None) -> Condition:
    return Condition(celsius=None, mhz=None, throttled=throttled, throttle_count=count)


@pytest.mark.parametrize(
    ("before", "after", "held_back"),
    [
        (condition("0x0"), condition("0x0"), False),
        (condition("0x50000"), condition("0x50000"), False),  # long ago, not now
        (condition("0x0"), condition("0x50000"), True),  # on the way
        (condition("0x0"), condition("0x4"), True),  # now
        (condition(count=3), condition(count=3), False),
        (condition(count=3), condition(count=4), True),
        (condition(), condition(), None),
    ],
)
def test_being_held_back_is_noticed(
    before: Condition, after: Condition, held_back: bool | None
) -> None:
    assert was_held_back(before, after) is held_back


def test_throttling_of_x86_cores_is_counted(tmp_path: Path) -> None:
    for n, count in enumerate((2, 5)):
        file = f"devices/system/cpu/cpu{n}/thermal_throttle/core_throttle_count"
        write(tmp_path, {file: f"{count}\n"})
    assert read_condition(tmp_path).throttle_count == 7


@pytest.mark.parametrize(
    ("threads", "cache", "free", "size"),
    [
        (1, 2 * MB, None, 64 * MB),
        (4, 2 * MB, 8192 * MB, 256 * MB),
        (4, 256 * MB, 8192 * MB, 1024 * MB),  # far more than the cache holds
        (4, 2 * MB, 400 * MB, 100 * MB),  # no more than a quarter of what is free
        (4, 2 * MB, 100 * MB, None),  # would measure caches
        (2, 32 * MB, 200 * MB, None),
    ],
)
def test_arrays_are_larger_than_caches_and_fit(
    threads: int, cache: int, free: int | None, size: int | None
) -> None:
    assert array_bytes(threads, cache, free) == size


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    sizes = {"index0": "64K", "index2": "1024K", "index3": "32M", "index4": "?"}
    write(tmp_path, {f"cpu0/cache/{name}/size": f"{size}\n" for name, size in sizes.items()})
    assert largest_cache_bytes(tmp_path) == 32 * MB
    assert largest_cache_bytes(tmp_path / "nothing") == 0


def test_bandwidth_is_bytes_over_the_seconds_of_the_fastest_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    monkeypatch.setattr(np, "max", lambda array: read.append(array.nbytes))
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 24.0, 30.0, 33.0, 40.0, 43.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("shoal.runtime.machine.bandwidth.array_bytes", lambda *sizes: 6 * MB)
    assert measure_read_bandwidth(2) == 6 * MB / 2.0
    assert read == [3 * MB] * 10
