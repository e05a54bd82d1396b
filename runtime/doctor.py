"""``shoal doctor``: what this machine and this installation can do, and what to change."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shoal.graphs.errors import ShoalError
from shoal.graphs.footprint import loaded_weight_bytes
from shoal.runtime.bundle import Bundle, check_machine
from shoal.runtime.extras import EXPORT_INSTALL, missing_export_modules
from shoal.runtime.kernels.library import find_library
from shoal.runtime.machine import Cpu, Memory, read_cpu, read_memory
from shoal.runtime.op_forms import op_forms
from shoal.runtime.report import (
    format_bytes,
    write_grid,
    write_json,
    write_lines,
    write_pairs,
)

ONNXRUNTIME_NEEDED = (1, 32)
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
    warnings = machine_warnings(cpu)
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "versions": versions,
        "export_extra": not missing_export_modules(),
        "cpu": asdict(cpu),
        "memory": asdict(memory) if memory else None,
        "bundle": None,
    }
    weights = "int8"
    if folder is not None and not errors:
        try:
            report["bundle"] = check_bundle(folder, memory, warnings)
            weights = report["bundle"]["weights"]
        except ShoalError as error:
            errors.append(str(error))
    ops = [asdict(form) for form in op_forms(weights, cpu, find_library())]
    return report | {"ops": ops, "errors": errors, "warnings": warnings, "ok": not errors}


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
    needed = ".".join(map(str, ONNXRUNTIME_NEEDED))
    if onnxruntime_version is None:
        errors.append(f"onnxruntime is not installed: pip install 'onnxruntime>={needed}'")
    elif version_pair(onnxruntime_version) < ONNXRUNTIME_NEEDED:
        errors.append(
            f"onnxruntime {onnxruntime_version} is older than {needed}, which the experts' int8 "
            f"products need: pip install --upgrade 'onnxruntime>={needed}'"
        )
    return errors


def version_pair(text: str) -> tuple[int, int]:
    """Major and minor number of a version, zeros for what is not there."""
    found = re.match(r"(\d+)(?:\.(\d+))?", text)
    return (int(found.group(1)), int(found.group(2) or 0)) if found else (0, 0)


def machine_warnings(cpu: Cpu) -> list[str]:
    """What makes this machine slower than it could be."""
    warnings = []
    is_arm = cpu.architecture in ("aarch64", "arm64")
    if is_arm and "asimddp" not in cpu.features and platform.system() == "Linux":
        warnings.append(
            "this ARM processor has no dot product instructions (asimddp): int8 weights are "
            "converted to float32 for every product; use a newer board (Raspberry Pi 5 has them)"
        )
    if cpu.architecture in ("x86_64", "AMD64") and "avx2" not in cpu.features:
        warnings.append(
            "no AVX2 found: int8 products are slow; in a virtual machine, pass the host's "
            "processor through"
        )
    if cpu.quota_cpus is not None and cpu.quota_cpus < cpu.physical_cores:
        warnings.append(
            f"the control group grants {cpu.quota_cpus:g} processors of {cpu.physical_cores}: "
            "raise the container's cpu limit for full speed"
        )
    return warnings


def check_bundle(folder: Path, memory: Memory | None, warnings: list[str]) -> dict[str, Any]:
    """Open a bundle for real, if it fits.

    Args:
        folder: the bundle.
        memory: of this machine.
        warnings: receives one if the bundle does not fit; it is then not loaded.

    Raises:
        ShoalError: the bundle does not open.
    """
    bundle = Bundle.open(folder)
    needed_bytes = loaded_weight_bytes(bundle.manifest.tensors)
    report = {
        "path": str(folder),
        "weights": bundle.manifest.weights,
        "needed_bytes": needed_bytes,
        "load_ms": None,
    }
    if memory is not None and needed_bytes > memory.available_bytes:
        warnings.append(
            f"{folder}: needs {format_bytes(needed_bytes)} of memory, "
            f"{format_bytes(memory.available_bytes)} are available; close programs or take a "
            "smaller model (not loaded)"
        )
        return report
    from shoal.runtime.model import open_bundle  # the only part that loads onnxruntime

    started_s = time.perf_counter()
    open_bundle(folder)
    return report | {"load_ms": (time.perf_counter() - started_s) * 1000}


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
        write_lines([_bundle_line(report["bundle"])])
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
        ("cores", f"{cpu['physical_cores']}, {cpu['usable_cpus']} logical processors"),
    ]
    if memory:
        free = format_bytes(memory["available_bytes"])
        rows.append(("memory", f"{format_bytes(memory['total_bytes'])}, {free} available"))
        if memory["limit_bytes"] is not None:
            rows.append(("memory limit", f"{format_bytes(memory['limit_bytes'])} (control group)"))
    return rows


def _bundle_line(bundle: dict[str, Any]) -> str:
    needs = f"{bundle['path']}: {bundle['weights']}, needs {format_bytes(bundle['needed_bytes'])}"
    if bundle["load_ms"] is None:
        return needs
    return f"{needs}, opened in {bundle['load_ms']:.0f} ms"
