"""An aarch64 Debian with Python that runs on this x86-64 machine, one process at a time.

qemu's user-mode emulation translates the instructions of a program and passes its system calls on.
Needed are the emulator and the files that an aarch64 Python opens: Debian's own packages, unpacked
into a folder. Nothing is installed on the machine, nothing needs root, and neither binfmt_misc nor
a chroot nor containers are involved. The folder is filled once; a second call finds it as it was.

Paths that the folder does not have are the host's: /proc, /tmp, this source tree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from shoal.runtime.packing.device_wheels import pip_platform

_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6", "libgcc-s1")


class SysrootError(Exception):
    """Something is missing on this machine; the message says in one line what to install."""


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """A processor that qemu can be, and what Linux would say about it."""

    model: str  # as qemu's -cpu takes it
    stands_for: str
    part: str  # "CPU part" in /proc/cpuinfo
    features: str  # "Features" there


_BASE = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_DOT_PRODUCT = f"{_BASE} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
CPUS = {
    cpu.model: cpu
    for cpu in (
        Cpu(model="cortex-a72", stands_for="Raspberry Pi 4", part="0xd08", features=_BASE),
        Cpu(model="cortex-a76", stands_for="Raspberry Pi 5", part="0xd0b", features=_DOT_PRODUCT),
        Cpu(
            model="neoverse-n1",
            stands_for="Graviton2, Ampere Altra",
            part="0xd0c",
            features=f"{_DOT_PRODUCT} ssbs",
        ),
        Cpu(
            model="max,sme=off",
            stands_for="Graviton3 and newer, Grace",
            part="0xd40",
            features=f"{_DOT_PRODUCT} ssbs sve i8mm bf16",
        ),
    )
}


class Sysroot:
    """The folder that holds the emulator, the system and what was installed into it.

    Args:
        folder: made by ``set_up``; about 400 MB.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.tools = self.folder / "tools"  # on the path of tests, not of a device
        self._system = self.folder / "system"
        self._qemu = self.folder / "qemu-aarch64-static"

    def set_up(self) -> None:
        """Fetch the emulator and the system, unless they are there.

        Raises:
            SysrootError: this is no Debian, or a download failed.
        """
        for tool, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
            if shutil.which(tool) is None:
                raise SysrootError(f"no {tool}: needs Debian 12 or newer with {package}")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._qemu.exists():
            self._fetch_emulator()
        if not self._system.exists():
            self._fetch_system()
        for cpu in CPUS.values():
            self._write_launcher(cpu)

    def python(self, cpu: str) -> Path:
        """A program that is an aarch64 Python on that processor."""
        return self.folder / f"python-{CPUS[cpu].model}"

    def install_device(self, wheels: Path) -> None:
        """Install shoal and what it needs from a folder and nowhere else.

        This machine's pip does it, told what the device is: Debian's minimal Python has none.
        """
        if _is_installed(self._packages, key := _key(list(wheels.glob("*.whl")))):
            return
        command = [*_pip_install(self._packages), *pip_platform("aarch64", self.version)]
        _run([*command, "--no-index", "--find-links", str(wheels), "shoal"], str(wheels))
        # Programs that Python starts must be ones that this machine can start.
        line = "import os, sys; sys.executable = os.environ['EMULATED_PYTHON']\n"
        (self._packages / "_executable.pth").write_text(line)
        self._finish(self._packages, key)

    def install_tools(self, names: tuple[str, ...]) -> None:
        """Install exactly these packages where only tests look for them."""
        if _is_installed(self.tools, key := " ".join(names)):
            return
        command = [*_pip_install(self.tools), *pip_platform("aarch64", self.version)]
        _run([*command, "--no-deps", *names], "tools of the tests")
        self._finish(self.tools, key)

    def _finish(self, place: Path, key: str) -> None:
        self._compile(place)
        (place / ".installed").write_text(key)

    @property
    def version(self) -> str:
        """Of the system's Python: ``3.11``."""
        return os.readlink(self._system / "usr" / "bin" / "python3").removeprefix("python")

    @property
    def _packages(self) -> Path:
        return self._system / f"usr/local/lib/python{self.version}/dist-packages"

    def _fetch_emulator(self) -> None:
        """One static program out of a package 30 times its size."""
        installed = shutil.which("qemu-aarch64-static")
        if installed:
            self._qemu.symlink_to(installed)
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            _apt_get_download("qemu-user-static", Path(folder))
            (package,) = Path(folder).glob("*.deb")
            _run(["dpkg-deb", "--extract", str(package), f"{folder}/all"], "qemu-user-static")
            (Path(folder) / "all/usr/bin/qemu-aarch64-static").rename(self._qemu)

    def _fetch_system(self) -> None:
        """Packages for arm64, fetched by an apt whose lists and state are its own."""
        with tempfile.TemporaryDirectory(dir=self.folder) as name:
            folder = Path(name)
            apt = _foreign_apt(folder)
            _run([*apt, "update"], "Debian's package lists for arm64")
            _run([*apt, "install", "-y", "--download-only", *_PACKAGES], "Debian's Python")
            system = folder / "system"
            for package in (folder / "archives").glob("*.deb"):
                if not package.name.startswith(("dpkg_", "tar_")):  # needed by scripts only
                    _run(["dpkg-deb", "--extract", str(package), str(system)], package.name)
            shutil.rmtree(system / "usr/share/doc")
            for link in system.glob("usr/lib/python3*/sitecustomize.py"):
                link.unlink()  # leads to the host's /etc
            self._compile(system / "usr/lib")
            system.rename(self._system)

    def _compile(self, folder: Path) -> None:
        """Bytecode made here, where that is fast, if this Python writes the same."""
        if self._system.exists() and f"{sys.version_info[0]}.{sys.version_info[1]}" != self.version:
            return
        command = [sys.executable, "-m", "compileall", "-q", "-j", "2", str(folder)]
        subprocess.run(command, capture_output=True, check=False)  # templates need not compile

    def _write_launcher(self, cpu: Cpu) -> None:
        """The program that starts Python, and a view of the system with that processor's cpuinfo.

        onnxruntime reads /proc/cpuinfo, and crashes when it finds an x86 one.
        """
        view = self.folder / f"view-{cpu.model}"
        (view / "proc").mkdir(parents=True, exist_ok=True)
        for name in ("usr", "lib", "etc"):
            if not (view / name).is_symlink():
                (view / name).symlink_to(f"../{self._system.name}/{name}")
        lines = f"BogoMIPS: 108.00\nFeatures: {cpu.features}\nCPU implementer: 0x41\n"
        lines += f"CPU architecture: 8\nCPU variant: 0x1\nCPU part: {cpu.part}\nCPU revision: 1\n"
        cores = "".join(f"processor: {core}\n{lines}\n" for core in range(os.cpu_count() or 1))
        (view / "proc" / "cpuinfo").write_text(cores.replace(":", "\t:"))
        launcher = self.python(cpu.model)
        launcher.write_text(
            "#!/bin/sh\n"
            "unset PYTHONHOME; ulimit -c 0\n"
            f'export PYTHONNOUSERSITE=1 EMULATED_PYTHON="{launcher}"\n'
            f'exec "{self._qemu}" -cpu "{cpu.model}" -L "{view}" '
            f'"{self._system}/usr/bin/python{self.version}" "$@"\n'
        )
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def _pip_install(target: Path) -> list[str]:
    shutil.rmtree(target, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return [*command, "--root-user-action=ignore", "--no-compile", "--target", str(target)]


def _is_installed(place: Path, key: str) -> bool:
    mark = place / ".installed"
    return mark.exists() and mark.read_text() == key


def _foreign_apt(folder: Path) -> list[str]:
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "0",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::State": str(folder),
        "Dir::State::status": str(folder / "status"),
        "Dir::State::lists": str(folder / "lists"),
        "Dir::Cache": str(folder),
        "Dir::Cache::archives": str(folder / "archives"),
    }
    return ["apt-get", "-q", *(f"-o{key}={value}" for key, value in settings.items())]


def _apt_get_download(package: str, folder: Path) -> None:
    command = ["apt-get", "-q", "-oAPT::Sandbox::User=", "download", package]
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0:
        return
    subprocess.run(["apt-get", "-q", "update"], capture_output=True, check=False)  # as root
    if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode != 0:
        raise SysrootError(f"no qemu-aarch64-static: install it with: apt-get install {package}")


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        reason = lines[-1] if lines else "no message"
        raise SysrootError(f"{what}: {' '.join(command[:4])} ... failed ({reason})")


def _key(wheels: list[Path]) -> str:
    digest = hashlib.sha256()
    for wheel in sorted(wheels):
        digest.update(wheel.name.encode() + wheel.read_bytes())
    return digest.hexdigest()
