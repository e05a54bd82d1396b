"""Builds the native kernels during installation; everything else is in pyproject.toml.

The extension is optional: without a C++ compiler the installation goes on and runs the portable
form of the ops, which `shoal doctor` says. ``CXX`` names another compiler, a cross compiler too;
``SHOAL_KERNELS=none`` leaves the kernels out.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

_BUILD_FILE = Path(__file__).parent / "runtime" / "kernels" / "build.py"
_spec = importlib.util.spec_from_file_location("shoal_kernel_build", _BUILD_FILE)
assert _spec is not None
assert _spec.loader is not None
kernel_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(kernel_build)


class BuildKernels(build_ext):
    """Builds the kernel library: not a Python module, one file for every Python version."""

    def get_ext_filename(self, fullname: str) -> str:
        """The library beside the package's modules, under its own name."""
        folder = Path(*fullname.split(".")[:-1])
        return str(folder / kernel_build.LIBRARY_NAME)

    def build_extension(self, ext: Extension) -> None:
        """Compile and link."""
        try:
            kernel_build.build_library(Path(self.get_ext_fullpath(ext.name)).resolve())
        except kernel_build.KernelBuildError as error:
            raise CompileError(str(error)) from error


class BuildWheel(bdist_wheel):
    """Tags a wheel by the processor its library is for, whatever Python and machine built it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Any Python 3; ``any`` machine if there is no library."""
        built = Path(self.get_finalized_command("build").build_lib)
        library = built / "shoal" / "runtime" / "kernels" / kernel_build.LIBRARY_NAME
        machine = kernel_build.library_machine(library) if library.is_file() else None
        return "py3", "none", f"linux_{machine}" if machine else "any"


with_kernels = os.environ.get("SHOAL_KERNELS") != "none"
setup(
    ext_modules=[Extension("shoal.runtime.kernels.libshoal_kernels", sources=[], optional=True)]
    if with_kernels
    else [],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": BuildWheel},
)
