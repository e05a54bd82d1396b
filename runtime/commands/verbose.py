"""What ``shoal run --verbose`` says on stderr about how a bundle runs here."""

from __future__ import annotations

from shoal.graphs.footprint import bundle_cache_token_bytes
from shoal.runtime.console.report import progress_line
from shoal.runtime.kernels.library import find_library
from shoal.runtime.kernels.op_forms import op_forms
from shoal.runtime.machine.memory import read_memory, read_resident
from shoal.runtime.machine.processor import Cpu, read_cpu
from shoal.runtime.model import Model
from shoal.runtime.units import format_bytes


def write_opened(model: Model, load_s: float) -> None:
    """Say what runs: kernels, threads, cache, load time and memory."""
    manifest, cpu = model.manifest, read_cpu()
    library = find_library() if model.kernels == "native" else "portable kernels"
    forms = op_forms(manifest.formats, cpu, library)
    native = [form.op for form in forms if form.form == "native"]
    portable = [form.op for form in forms if form.form == "portable"]
    progress_line(
        f"[opened in {load_s:.2f} s: {manifest.model.model_type}, {manifest.weights} weights, "
        f"{format_bytes(manifest.token_read_bytes)} read per token]"
    )
    if native:
        isa = next(form.implementation for form in forms if form.form == "native")
        progress_line(f"[native kernels ({isa}): {', '.join(native)}]")
    progress_line(f"[portable kernels: {', '.join(portable)}]")
    progress_line(f"[threads: {model.threads}, {_cores(cpu)}]")
    token_bytes = bundle_cache_token_bytes(manifest.model, model.cache_type)
    progress_line(
        f"[latent cache: {model.cache_type}, {format_bytes(token_bytes)} per token, contexts of up "
        f"to {model.max_context} tokens]"
    )
    write_memory()


def write_memory() -> None:
    """Say what this process takes now, and what is left; nothing where the system does not say."""
    resident, memory = read_resident(), read_memory()
    if resident is None or memory is None:
        return
    progress_line(
        f"[memory: {format_bytes(resident.anonymous_bytes)} of its own, "
        f"{format_bytes(resident.file_bytes)} of mapped files, "
        f"{format_bytes(memory.available_bytes)} left ({memory.limited_by})]"
    )


def _cores(cpu: Cpu) -> str:
    text = f"of {cpu.physical_cores} cores"
    if cpu.big_cores < cpu.physical_cores:
        text += f", {cpu.big_cores} of them big"
    if cpu.quota_cpus is not None:
        text += f", {cpu.quota_cpus:g} processors granted"
    return text
