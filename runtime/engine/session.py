"""The only file that imports onnxruntime: sessions, bindings, and its errors as ours.

Threads. Each session has a pool of its own whose threads stop spinning at the end of every run.
Only one graph of a model runs at a time for one context, so the pools act as one. onnxruntime's
process-wide pool was measured against this on two cores: about 10 % faster on an idle machine,
four times slower beside another busy process, and its spinning between tokens (which Python
cannot turn off) cost 0.98 s of processor time in 0.9 s of waiting, against 0.28 s. While nothing
runs, no time is used; only new threads spin once, for about 0.02 s each.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shoal.graphs.errors import BundleError, InputError, RuntimeFailure
from shoal.graphs.manifest import ModelInfo
from shoal.runtime.kernels.library import LIBRARY_FILE, KernelLibrary, find_library
from shoal.runtime.machine.processor import default_threads, read_cpu
from shoal.runtime.machine.requirements import check_machine, onnxruntime_error

_TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


@contextmanager
def _telemetry_off() -> Iterator[None]:
    """Switch off the usage reports of an onnxruntime that is imported meanwhile.

    Its official builds report over the network and keep files for that. They look at the
    environment once, while they are imported (measured with 1.32), so it is as before afterwards.
    Whoever has set the variable, to 0 for instance, has decided.
    """
    if _TELEMETRY_SWITCH in os.environ:
        yield
        return
    os.environ[_TELEMETRY_SWITCH] = "1"
    try:
        yield
    finally:
        del os.environ[_TELEMETRY_SWITCH]


check_machine()  # before the import, which fails obscurely on a 32-bit system
try:
    with _telemetry_off():
        import onnxruntime
except ImportError as error:
    raise RuntimeFailure(onnxruntime_error(None, " ".join(str(error).split()))) from error
if (_wrong := onnxruntime_error(onnxruntime.__version__)) is not None:
    raise RuntimeFailure(_wrong)

Kernels = Literal["auto", "native", "portable"]

_LOG_FATAL_ONLY = 4  # every error reaches the user once, as an exception
_MEMORY_SIGNS = ("bad_alloc", "bad allocation", "Failed to allocate", "out of memory")
_log = logging.getLogger(__name__)

# Every run reads these while it goes on; see ``interrupt_runs``.
_RUN = onnxruntime.RunOptions()
_RUN_AND_RELEASE = onnxruntime.RunOptions()
_RUN_AND_RELEASE.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")


def interrupt_runs() -> None:
    """Let every graph that runs in this process fail before its next node, and all later ones.

    For a process that is told to end while it computes; nothing takes it back.
    """
    _RUN.terminate = True
    _RUN_AND_RELEASE.terminate = True


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How graphs are run."""

    threads: int  # threads that compute, the calling one included
    kernels: Literal["native", "portable"]  # which form of the shoal ops runs
    library: Path | None = None  # of the native kernels


def choose_settings(kernels: Kernels, threads: int | None) -> SessionSettings:
    """What is run with, from what was asked for.

    Args:
        kernels: "native" insists on the native kernels, "auto" takes what there is.
        threads: None for one per big core that this process may use.

    Raises:
        InputError: an unknown value, or a number of threads outside 1..1024.
        RuntimeFailure: native kernels are asked for and this installation has none.
    """
    if kernels not in ("auto", "native", "portable"):
        raise InputError(f"kernels must be auto, native or portable, found {kernels!r}")
    library = None
    if kernels != "portable":
        found = find_library()
        if isinstance(found, KernelLibrary):
            library = found
        elif kernels == "native":
            raise RuntimeFailure(f"kernels: {found}; or use kernels auto or portable")
        elif LIBRARY_FILE.is_file():  # there, but of no use: not what this installation intends
            _log.warning("%s; the portable form runs", found)
    if threads is None:
        threads = default_threads(read_cpu())
    elif isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise InputError(f"threads must be an integer in 1..1024, found {threads!r}")
    return SessionSettings(
        threads=threads,
        kernels="portable" if library is None else "native",
        library=None if library is None else library.path,
    )


class GraphSession:
    """One loaded graph. Runs of it may happen in several threads at once.

    Args:
        path: the .onnx file; its weights are mapped from the files beside it.
        settings: threads and kernels.

    Raises:
        BundleError: onnxruntime refuses the graph or its weights.
        RuntimeFailure: not enough memory.
    """

    def __init__(self, path: Path, settings: SessionSettings) -> None:
        _check_path(path)
        self.path = path
        self._keeps_scores = settings.library is None
        # Threads do not survive a fork: a run in the child would wait for them for ever.
        self._owner = None if settings.threads == 1 else os.getpid()
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), _session_options(settings), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's classes have no common root
            if _is_memory_error(error):
                raise RuntimeFailure(
                    f"{path}: not enough memory to load it ({_reason(error)}); free memory"
                ) from error
            raise BundleError(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load it "
                f"({_reason(error)}); re-export it or upgrade onnxruntime"
            ) from error
        _log.debug("%s: loaded with %d threads", path, settings.threads)

    def score_bytes(self, info: ModelInfo) -> int:
        """Bytes that attention takes for each pair of a new token and a cached one.

        The portable form holds the scores of all heads at once, the native one those of a few rows.
        """
        return 4 * info.num_attention_heads if self._keeps_scores else 0

    def map_rows(
        self, source: str, rows: npt.NDArray[np.float32], target: str, width: int
    ) -> npt.NDArray[np.float32]:
        """Run a graph that maps float32 rows [T,..] to rows [T,width], one by one.

        Args:
            source: name of its input.
            rows: what to map.
            target: name of its output.
            width: size of the output's rows.
        """
        result = np.empty((len(rows), width), np.float32)
        binding = self.new_binding()
        binding.bind_input(source, np.ascontiguousarray(rows)[None])
        binding.bind_output(target, result[None])
        binding.run()
        return result

    def new_binding(self) -> Binding:
        """A set of buffers to run this graph on; one per context."""
        return Binding(self._session, self._owner, str(self.path))


class Binding:
    """Buffers bound to the inputs and outputs of a graph by address: running copies nothing."""

    def __init__(self, session: Any, owner: int | None, where: str) -> None:
        self._session = session
        self._owner = owner  # the only process that may run it, if it is one
        self._binding = session.io_binding()
        self._where = where
        # The addresses are only as good as the arrays behind them.
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def clear(self) -> None:
        """Forget all buffers."""
        self._binding.clear_binding_inputs()
        self._binding.clear_binding_outputs()
        self._arrays.clear()

    def bind_input(self, name: str, array: npt.NDArray[Any]) -> None:
        """Read ``name`` from ``array``, which must be C-contiguous."""
        self._arrays[name] = array
        self.bind_input_at(name, array.dtype, array.shape, _address(array))

    def bind_output(self, name: str, array: npt.NDArray[Any]) -> None:
        """Write ``name`` to ``array``, which must be C-contiguous and have the exact shape."""
        self._arrays[name] = array
        self.bind_output_at(name, array.dtype, array.shape, _address(array))

    def bind_input_at(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], address: int
    ) -> None:
        """Read ``name`` from memory the caller keeps alive."""
        self._binding.bind_input(name, "cpu", 0, np.dtype(dtype).type, shape, address)

    def bind_output_at(
        self, name: str, dtype: npt.DTypeLike, shape: tuple[int, ...], address: int
    ) -> None:
        """Write ``name`` to memory the caller keeps alive."""
        self._binding.bind_output(name, "cpu", 0, np.dtype(dtype).type, shape, address)

    def run(self, *, release_memory: bool = False) -> None:
        """Run the graph on what is bound.

        Args:
            release_memory: give scratch memory back to the system afterwards, instead of keeping
                it for the next run.

        Raises:
            RuntimeFailure: onnxruntime refuses or fails, or another process opened the bundle.
        """
        if self._owner not in (None, os.getpid()):
            raise RuntimeFailure(
                f"{self._where}: was opened with several threads by process {self._owner}, and a "
                "forked process has none of them; open the bundle after the fork, or with threads=1"
            )
        options = _RUN_AND_RELEASE if release_memory else _RUN
        try:
            self._session.run_with_iobinding(self._binding, options)
        except Exception as error:  # onnxruntime's classes have no common root
            advice = "free memory" if _is_memory_error(error) else "re-export the bundle"
            raise RuntimeFailure(
                f"{self._where}: onnxruntime failed ({_reason(error)}); {advice}"
            ) from error


def _check_path(path: Path) -> None:
    """Refuse what onnxruntime's binding would refuse with a page about types."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"{path}: expected a path in UTF-8, as onnxruntime does, found other bytes; rename its "
            "folders or move the bundle"
        ) from error


def _session_options(settings: SessionSettings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_FATAL_ONLY
    options.enable_mem_pattern = False  # plans are kept per shape, and each step has a new one
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if settings.library is not None:
        options.register_custom_ops_library(str(settings.library))
    return options


def _address(array: npt.NDArray[Any]) -> int:
    assert array.flags.c_contiguous, "only contiguous arrays can be bound"
    return int(array.ctypes.data)


def _is_memory_error(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _MEMORY_SIGNS)


def _reason(error: Exception) -> str:
    """The message of onnxruntime in one line, without its error code."""
    message = " ".join(str(error).split())
    message = message.rpartition("[ONNXRuntimeError] : ")[2]
    return message if len(message) <= 300 else message[:297] + "..."
