"""The native kernels on every instruction set of this processor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.graphs.one_op import OneOpModels
from tests.kernels.isas import ISAS

from shoal.runtime.kernels.build import LIBRARY_NAME, SOURCES, build_library
from shoal.runtime.kernels.library import LIBRARY_FILE, KernelLibrary, find_library

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> KernelLibrary:
    """The installed library, or one built here if that is missing or older than its sources.

    A library out of a wheel belongs to the sources beside it, whatever their times.
    """
    path = LIBRARY_FILE
    newest = max(source.stat().st_mtime for source in SOURCES.iterdir())
    is_checkout = SOURCES.resolve() == ROOT / "runtime" / "kernels" / "src"
    is_old = is_checkout and path.is_file() and path.stat().st_mtime < newest
    if is_old or not path.is_file():
        path = tmp_path_factory.mktemp("kernels") / LIBRARY_NAME
        build_library(path)
    found = find_library(path)
    assert isinstance(found, KernelLibrary), found
    return found


@pytest.fixture(scope="module", params=ISAS)
def isa(request: pytest.FixtureRequest, library: KernelLibrary) -> Iterator[str]:
    """Each instruction set in turn, forced on every session that is opened meanwhile."""
    name: str = request.param
    if name not in library.isas:
        pytest.skip(f"this processor has no {name}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOAL_ISA", name)
        yield name


@pytest.fixture(scope="module")
def models(
    isa: str, library: KernelLibrary, tmp_path_factory: pytest.TempPathFactory
) -> OneOpModels:
    """Models of one op on one thread."""
    return OneOpModels(tmp_path_factory.mktemp(isa), library.path)


@pytest.fixture(scope="module")
def threaded_models(
    isa: str, library: KernelLibrary, tmp_path_factory: pytest.TempPathFactory
) -> OneOpModels:
    """The same on three threads: more than cores, so that tasks end in any order."""
    return OneOpModels(tmp_path_factory.mktemp(f"{isa}_threads"), library.path, threads=3)


@pytest.fixture(scope="session")
def portable_models(tmp_path_factory: pytest.TempPathFactory) -> OneOpModels:
    """Models of one op without native kernels: their function bodies."""
    return OneOpModels(tmp_path_factory.mktemp("bodies"))
