from __future__ import annotations

from pathlib import Path

import pytest

from shoal.runtime import machine

ARM = """\
processor\t: 0
Features\t: fp asimd evtstrm aes crc32 asimdhp cpuid asimdrdm lrcpc dcpop asimddp i8mm
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
X86 = """\
processor\t: 0
model name\t: AMD EPYC 9354
flags\t\t: fpu sse2 avx2 avx512f avx512_vnni
"""
MEMINFO = "MemTotal:       16000000 kB\nMemFree:  1000 kB\nMemAvailable:    8000000 kB\n"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (ARM, "Raspberry Pi 5 Model B Rev 1.0", ("asimddp", "i8mm")),
        (X86, "AMD EPYC 9354", ("avx2", "avx512_vnni")),
    ],
)
def test_cpu_features_are_read_on_arm_and_x86(
    text: str, model: str, features: tuple[str, ...], tmp_path: Path
) -> None:
    write(tmp_path / "cpuinfo", text)
    cpu = machine.read_cpu(tmp_path, tmp_path, tmp_path)
    assert (cpu.model, cpu.features) == (model, features)
    assert cpu.quota_cpus is None


def test_logical_processors_of_one_core_count_once(tmp_path: Path) -> None:
    for number in range(4):
        siblings = f"{number % 2},{number % 2 + 2}\n"
        write(tmp_path / f"cpu{number}/topology/thread_siblings_list", siblings)
    assert machine.count_cores((0, 1, 2, 3), tmp_path) == 2
    assert machine.count_cores((0, 2), tmp_path) == 1
    assert machine.count_cores((0, 1, 2, 3), tmp_path / "nothing") == 4


def test_memory_without_a_limit_is_the_machines(tmp_path: Path) -> None:
    write(tmp_path / "meminfo", MEMINFO)
    memory = machine.read_memory(tmp_path, tmp_path / "cgroup")
    assert memory == machine.Memory(
        total_bytes=16_384_000_000, available_bytes=8_192_000_000, limit_bytes=None
    )


def test_limit_of_the_control_group_counts_without_its_page_cache(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", MEMINFO)
    write(proc / "self/cgroup", "0::/box/inner\n")
    write(groups / "box/memory.max", "1000000\n")
    write(groups / "box/memory.current", "900000\n")
    write(groups / "box/memory.stat", "anon 1\ninactive_file 500000\n")
    write(groups / "box/inner/memory.max", "max\n")
    memory = machine.read_memory(proc, groups)
    assert memory is not None
    assert (memory.limit_bytes, memory.available_bytes) == (1_000_000, 600_000)


def test_version_1_control_groups_are_read_too(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "meminfo", MEMINFO)
    write(proc / "self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    write(groups / "memory/box/memory.limit_in_bytes", "1000000\n")
    write(groups / "memory/box/memory.usage_in_bytes", "300000\n")
    write(groups / "memory/memory.limit_in_bytes", f"{2**63 - 4096}\n")
    write(groups / "cpu,cpuacct/box/cpu.cfs_quota_us", "150000\n")
    write(groups / "cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    memory = machine.read_memory(proc, groups)
    assert memory is not None
    assert (memory.limit_bytes, memory.available_bytes) == (1_000_000, 700_000)
    assert machine.read_cpu(proc, groups, tmp_path).quota_cpus == 1.5


def test_processor_quota_of_version_2_is_read(tmp_path: Path) -> None:
    write(tmp_path / "self/cgroup", "0::/\n")
    write(tmp_path / "groups/cpu.max", "50000 100000\n")
    assert machine.read_cpu(tmp_path, tmp_path / "groups", tmp_path).quota_cpus == 0.5


def test_resident_memory_tells_heap_from_files(tmp_path: Path) -> None:
    write(tmp_path / "self/status", "VmRSS:\t 30 kB\nRssAnon:\t 10 kB\nRssFile:\t 20 kB\n")
    assert machine.read_resident(tmp_path) == machine.ResidentMemory(
        anonymous_bytes=10_240, file_bytes=20_480
    )


def test_a_system_without_proc_gives_no_answer_instead_of_a_wrong_one(tmp_path: Path) -> None:
    assert machine.read_memory(tmp_path, tmp_path) is None
    assert machine.read_resident(tmp_path) is None
    assert machine.read_cpu(tmp_path, tmp_path, tmp_path).features == ()
