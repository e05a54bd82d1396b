from __future__ import annotations

from pathlib import Path

import pytest

from shoal.runtime.machine.memory import Memory, ResidentMemory, read_memory, read_resident

MEMINFO = """\
MemTotal:       16000000 kB
MemFree:  1000 kB
MemAvailable:    8000000 kB
SwapFree:  2000 kB
"""
AVAILABLE = 8_192_000_000


class System:
    """A /proc and a /sys/fs/cgroup of our own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("proc/meminfo", MEMINFO)

    def write(self, path: str, text: str) -> None:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def memory(self) -> Memory:
        memory = read_memory(self.root / "proc", self.root / "groups")
        assert memory is not None
        return memory


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_memory_without_a_limit_is_the_machines(system: System) -> None:
    assert system.memory() == Memory(
        total_bytes=16_384_000_000,
        available_bytes=AVAILABLE,
        limit_bytes=None,
        limited_by="free memory",
        swap_bytes=2_048_000,
        address_space_bytes=None,
    )


def test_the_tightest_of_all_parent_groups_counts_without_page_cache(system: System) -> None:
    system.write("proc/self/cgroup", "0::/box/inner/leaf\n")
    system.write("groups/memory.max", "max\n")
    system.write("groups/box/memory.max", "1000000\n")
    system.write("groups/box/memory.current", "900000\n")
    system.write("groups/box/memory.stat", "anon 1\ninactive_file 400000\nactive_file 100000\n")
    system.write("groups/box/inner/memory.max", "2000000\n")
    system.write("groups/box/inner/memory.current", "900000\n")
    system.write("groups/box/inner/leaf/memory.max", "max\n")
    memory = system.memory()
    assert (memory.limit_bytes, memory.available_bytes) == (1_000_000, 600_000)
    assert memory.limited_by == "the limit of the control group"
    assert memory.swap_bytes == 0, "swap is no way out of a control group's limit"


def test_a_container_sees_its_own_group_at_the_mount_point(system: System) -> None:
    system.write("proc/self/cgroup", "0::/docker/0123abcd\n")
    system.write("groups/memory.max", "5000000\n")
    system.write("groups/memory.current", "1000000\n")
    assert system.memory().available_bytes == 4_000_000


def test_version_1_groups_are_read_too(system: System) -> None:
    system.write("proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    system.write("groups/memory/box/memory.limit_in_bytes", "1000000\n")
    system.write("groups/memory/box/memory.usage_in_bytes", "300000\n")
    stat = "inactive_file 1\nactive_file 1\ntotal_inactive_file 60000\ntotal_active_file 40000\n"
    system.write("groups/memory/box/memory.stat", stat)
    system.write("groups/memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    memory = system.memory()
    assert (memory.limit_bytes, memory.available_bytes) == (1_000_000, 800_000)


@pytest.mark.parametrize(
    ("name", "field", "words"),
    [
        ("Max address space", "VmSize", "the limit of the address space (ulimit -v)"),
        ("Max data size", "VmData", "the limit of data (ulimit -d)"),
    ],
)
def test_limits_of_the_process_count(system: System, name: str, field: str, words: str) -> None:
    system.write("proc/self/limits", f"{name:<26}5000000              unlimited   bytes\n")
    system.write("proc/self/status", f"{field}:\t 1000 kB\n")
    memory = system.memory()
    assert memory.available_bytes == 5_000_000 - 1_024_000
    assert memory.limited_by == words
    assert memory.address_space_bytes == (3_976_000 if field == "VmSize" else None)


def test_no_limit_of_the_process_is_none(system: System) -> None:
    system.write("proc/self/limits", "Max address space         unlimited   unlimited   bytes\n")
    assert system.memory().available_bytes == AVAILABLE


def test_more_in_use_than_the_limit_leaves_nothing(system: System) -> None:
    system.write("groups/memory.max", "1000\n")
    system.write("groups/memory.current", "2000\n")
    assert system.memory().available_bytes == 0


def test_resident_memory_tells_heap_from_files(system: System) -> None:
    system.write("proc/self/status", "VmRSS:\t 30 kB\nRssAnon:\t 10 kB\nRssFile:\t 20 kB\n")
    assert read_resident(system.root / "proc") == ResidentMemory(
        anonymous_bytes=10_240, file_bytes=20_480
    )


def test_a_system_without_proc_gives_no_answer_instead_of_a_wrong_one(tmp_path: Path) -> None:
    assert read_memory(tmp_path, tmp_path) is None
    assert read_resident(tmp_path) is None
