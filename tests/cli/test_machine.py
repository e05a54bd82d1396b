from __future__ import annotations

from pathlib import Path

import pytest

from shoal.runtime.machine import processor as machine

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


def test_processor_quota_of_version_1_is_read(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write(proc / "self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n")
    write(groups / "cpu,cpuacct/box/cpu.cfs_quota_us", "150000\n")
    write(groups / "cpu,cpuacct/box/cpu.cfs_period_us", "100000\n")
    assert machine.read_cpu(proc, groups, tmp_path).quota_cpus == 1.5


def test_processor_quota_of_version_2_is_read(tmp_path: Path) -> None:
    write(tmp_path / "self/cgroup", "0::/\n")
    write(tmp_path / "groups/cpu.max", "50000 100000\n")
    assert machine.read_cpu(tmp_path, tmp_path / "groups", tmp_path).quota_cpus == 0.5


def test_a_system_without_proc_gives_no_answer_instead_of_a_wrong_one(tmp_path: Path) -> None:
    assert machine.read_cpu(tmp_path, tmp_path, tmp_path).features == ()
