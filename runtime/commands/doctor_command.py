"""``shoal doctor``: what this machine and this installation can do, and what to change."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.graphs.errors import ShoalError
from shoal.graphs.manifest import Manifest
from shoal.graphs.recipes import DEFAULT_RECIPE, RECIPES
from shoal.runtime.bundle import Bundle
from shoal.runtime.console.report import write_grid, write_json, write_lines, write_pairs
from shoal.runtime.engine.fit import SMALLEST_CONTEXT, find_room
from shoal.runtime.engine.need import Form, bundle_need
from shoal.runtime.extras import EXPORT_INSTALL, missing_export_modules
from shoal.runtime.kernels.library import KernelLibrary, find_library
from shoal.runtime.kernels.op_forms import op_forms
from shoal.runtime.machine.memory import FREE_MEMORY, read_memory
from shoal.runtime.machine.processor import Cpu, default_threads, read_cpu
from shoal.runtime.machine.requirements import check_machine, onnxruntime_error
from shoal.runtime.units import format_bytes

_PACKAGES = ("shoal", "numpy", "onnxruntime", "tokenizers", "jinja2", "rich")
_EXTRA_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "safetensors")


def doctor_command(args: argparse.Namespace) -> int:
    """Carry out ``shoal doctor``; 1 when something keeps shoal from running."""
    report = doctor_report(args.bundle)
    if args.json:
        write_json(report)
    else:
        _write_report(report)
    return 0 if report["ok"] else 1


def doctor_report(folder: Path | None) -> dict[str, Any]:
    """Everything ``shoal doctor`` finds, as JSON-ready values.

    Args:
        folder: a bundle to open and check too.
    """
    cpu, memory = read_cpu(), read_memory()
    versions = {name: package_version(name) for name in (*_PACKAGES, *_EXTRA_PACKAGES)}
    errors = installation_errors(versions["onnxruntime"])
    library = find_library()
    slow = machine_warnings(cpu, has_native=isinstance(library, KernelLibrary))
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "export_extra": not missing_export_modules(),
        "cpu": asdict(cpu),
        "memory": asdict(memory) if memory else None,
        "bundle": None,
    }
    formats = RECIPES[DEFAULT_RECIPE].formats
    if folder is not None and not errors:
        try:
            manifest = Bundle.open(folder).manifest
            report["bundle"] = check_bundle(folder, manifest, slow)
            formats = manifest.formats
        except ShoalError as error:
            errors.append(str(error))
    ops = [asdict(form) for form in op_forms(formats, cpu, library)]
    return report | {"ops": ops, "errors": errors, "warnings": slow, "ok": not errors}


def package_version(name: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def installation_errors(onnxruntime_version: str | None) -> list[str]:
    """What keeps shoal from running here, each with what to do about it."""
    errors = []
    try:
        check_machine()
    except ShoalError as error:
        errors.append(str(error))
    wrong = onnxruntime_error(onnxruntime_version)
    if wrong is not None:
        errors.append(wrong)
    return errors


def machine_warnings(cpu: Cpu, *, has_native: bool) -> list[str]:
    """What makes this machine slower than it could be.

    Args:
        cpu: its processor.
        has_native: native kernels are installed.
    """
    slow = []
    is_arm = cpu.architecture in ("aarch64", "arm64")
    has_dot_product = "asimddp" in cpu.features or platform.system() != "Linux"
    if is_arm and not has_dot_product and not has_native:
        slow.append(
            "this ARM processor has no dot product instructions (asimddp), without which portable "
            "kernels convert int8 weights to float32 for every product; install native kernels or "
            "use a newer board (Raspberry Pi 5 has them)"
        )
    if cpu.architecture in ("x86_64", "AMD64") and "avx2" not in cpu.features:
        slow.append(
            "no AVX2 found: int8 products are slow; in a virtual machine, pass the host's "
            "processor through"
        )
    if cpu.quota_cpus is not None and cpu.quota_cpus < cpu.big_cores:
        slow.append(
            f"the control group grants {cpu.quota_cpus:g} processors of {cpu.big_cores}: "
            "raise the container's CPU limit for full speed"
        )
    return slow


def check_bundle(folder: Path, manifest: Manifest, found_warnings: list[str]) -> dict[str, Any]:
    """Say what each form of a bundle takes here, and open it as ``shoal run`` would.

    Args:
        folder: the bundle.
        manifest: its manifest.
        found_warnings: receives what makes it slow here.

    Raises:
        ShoalError: the bundle does not open or does not fit.
    """
    report = {
        "path": str(folder),
        "weights": manifest.weights,
        "forms": [_form_report(manifest, form) for form in _forms(manifest)],
    }
    from shoal.runtime.opening import open_bundle  # the only part that loads onnxruntime

    started_s = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernels = open_bundle(folder).kernels
    load_ms = (time.perf_counter() - started_s) * 1000
    found_warnings += [str(warning.message) for warning in caught]
    return report | {"kernels": kernels, "load_ms": load_ms}


def _forms(manifest: Manifest) -> list[Form]:
    """The forms that can run here, the one that is taken first."""
    has_native = manifest.is_quantized and isinstance(find_library(), KernelLibrary)
    return ["native", "portable"] if has_native else ["portable"]


def _form_report(manifest: Manifest, form: Form) -> dict[str, Any]:
    need = bundle_need(manifest, form)
    room = find_room(need, memory=read_memory(), resident=None, threads=default_threads(read_cpu()))
    tokens = min(SMALLEST_CONTEXT, manifest.model.max_position_embeddings)
    return {
        "kernels": form,
        "mapped_bytes": need.mapped_bytes,
        "copied_bytes": need.copied_bytes,
        "context_tokens": tokens,
        "anonymous_bytes": need.anonymous_bytes(tokens),
        "longest_context": None if room is None else need.longest_context(room.free_bytes),
    }


def _write_report(report: dict[str, Any]) -> None:
    versions = report["versions"]
    write_pairs(
        "Installation",
        [
            ("system", report["system"]),
            ("python", report["python"]),
            *((name, versions[name] or "not installed") for name in _PACKAGES),
            ("export extra", _extra(report)),
        ],
    )
    write_lines([""])
    write_pairs("Machine", _machine_rows(report))
    write_lines([""])
    write_grid(
        "Form of each op",
        ("op", "form", "runs as", "why"),
        [(op["op"], op["form"], op["implementation"], op["why"]) for op in report["ops"]],
        numbers=False,
    )
    write_lines([""])
    if report["bundle"]:
        _write_bundle(report["bundle"])
    write_lines([f"warning: {text}" for text in report["warnings"]])
    write_lines([f"error: {text}" for text in report["errors"]])
    if report["ok"]:
        write_lines(["Ready to run." if not report["warnings"] else "Ready to run, with warnings."])


def _extra(report: dict[str, Any]) -> str:
    versions = report["versions"]
    if not report["export_extra"]:
        return f"not installed, only `shoal export` needs it: {EXPORT_INSTALL}"
    return ", ".join(f"{name} {versions[name]}" for name in _EXTRA_PACKAGES)


def _machine_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, memory = report["cpu"], report["memory"]
    rows = [
        ("processor", f"{cpu['model']} ({cpu['architecture']})"),
        ("int8 features", " ".join(cpu["features"]) or "none known"),
        ("cores", _cores(cpu)),
    ]
    if memory:
        free = format_bytes(memory["available_bytes"])
        rows.append(("memory", f"{format_bytes(memory['total_bytes'])}, {free} available"))
        if memory["limited_by"] != FREE_MEMORY:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} ({memory['limited_by']})")
        if memory["limit_bytes"] is not None:
            rows.append(("memory limit", f"{format_bytes(memory['limit_bytes'])} (control group)"))
    return rows


def _cores(cpu: dict[str, Any]) -> str:
    text = f"{cpu['physical_cores']}, {cpu['usable_cpus']} logical processors"
    if cpu["big_cores"] < cpu["physical_cores"]:
        text += f"; {cpu['big_cores']} of them big, which are used unless --threads is given"
    return text


def _write_bundle(bundle: dict[str, Any]) -> None:
    write_grid(
        f"{bundle['path']}: {bundle['weights']}, opened in {bundle['load_ms']:.0f} ms with "
        f"{bundle['kernels']} kernels",
        ("kernels", "mapped weights", "own memory", "for context", "longest that fits"),
        [
            (
                form["kernels"],
                format_bytes(form["mapped_bytes"]),
                format_bytes(form["anonymous_bytes"]),
                f"{form['context_tokens']} tokens",
                "unknown"
                if form["longest_context"] is None
                else f"{form['longest_context']} tokens",
            )
            for form in bundle["forms"]
        ],
    )
