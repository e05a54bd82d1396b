"""What describes one op of the shoal domain: names of inputs, outputs and attributes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Signature of an op. Types: f float32, u uint8, i int64; shapes in the project's letters."""

    name: str
    doc: str
    inputs: dict[str, str]  # name -> "f[B,T,D]"
    outputs: dict[str, str]
    attributes: dict[str, str]  # name -> "int", "float" or "string"
