"""Which form of each shoal op runs on this machine, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shoal.graphs.recipes import WeightFormat
from shoal.runtime.kernels.library import KernelLibrary
from shoal.runtime.machine.processor import Cpu

_INT8 = {
    "Embedding": "com.microsoft::GatherBlockQuantized",
    "Linear": "com.microsoft::MatMulNBits, 8 bits",
    "LatentAttention": "MatMul, Softmax, MatMul, TensorScatter",
    "LatentAttentionInt8Cache": "the same, after GatherBlockQuantized",
    "Route": "TopK and other standard ops",
    "PreciseLinear": "Linear, twice",
    "SparseExperts": "com.microsoft::QMoE",
    "Int4SparseExperts": "SparseExperts of unpacked weights",
}
_FLOAT32 = {
    "FloatEmbedding": "Gather",
    "FloatLinear": "MatMul",
    "FloatLatentAttention": "MatMul, Softmax, MatMul, TensorScatter",
    "FloatLatentAttentionInt8Cache": "the same, after GatherBlockQuantized",
    "Route": "TopK and other standard ops",
    "FloatSparseExperts": "MatMul and other standard ops",
}
_INT8_OPS = ("Linear", "SparseExperts", "Int4SparseExperts")


@dataclass(frozen=True, kw_only=True)
class OpForm:
    """How one op runs."""

    op: str
    form: str  # "portable" or "native"
    implementation: str
    why: str


def op_forms(
    formats: Mapping[str, WeightFormat], cpu: Cpu, library: KernelLibrary | str
) -> list[OpForm]:
    """The forms of all ops of a bundle.

    Args:
        formats: ``Manifest.formats``: how each kind of weight is stored; empty for float32.
        cpu: decides which instructions onnxruntime's own 8-bit products use.
        library: the native kernels, or why there are none.
    """
    bodies = _INT8 if formats else _FLOAT32
    has_int4_experts = "experts" in formats and formats["experts"].bits == 4
    other_experts = "SparseExperts" if has_int4_experts else "Int4SparseExperts"
    return [_form(op, body, cpu, library) for op, body in bodies.items() if op != other_experts]


def _form(op: str, body: str, cpu: Cpu, library: KernelLibrary | str) -> OpForm:
    if isinstance(library, KernelLibrary) and op in library.ops:
        return OpForm(op=op, form="native", implementation=library.isa, why="kernels installed")
    return OpForm(
        op=op,
        form="portable",
        implementation=f"{body} ({int8_instructions(cpu)})" if op in _INT8_OPS else body,
        why=library if isinstance(library, str) else "no native kernel for this op",
    )


def int8_instructions(cpu: Cpu) -> str:
    """The instructions onnxruntime takes for 8-bit products on this processor."""
    for feature, name in (
        ("avx512_vnni", "AVX512-VNNI"),
        ("avx_vnni", "AVX-VNNI"),
        ("avx2", "AVX2"),
        ("i8mm", "i8mm"),
        ("asimddp", "dot product"),
    ):
        if feature in cpu.features:
            return name
    if cpu.architecture == "arm64":  # macOS, which has no /proc/cpuinfo; every such Mac has it
        return "dot product"
    return "no 8-bit instructions"
