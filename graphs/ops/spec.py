"""What describes one op of the shoal domain: its signature, its meaning and its portable body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Attribute = int | float | str
Attributes = Mapping[str, Attribute]
Body = Callable[[Attributes], str]

LONGEST_SHORT_STEP = 8
"""Tokens of the longest step whose rows must have the bits they would have one at a time: steps
that check drafts have a few tokens, prompts have many."""


@dataclass(frozen=True, kw_only=True)
class OpSpec:
    """Signature, meaning and portable form of an op.

    Types are written f (float32), h (float16), c (either), u (uint8), i (int64), followed by the
    shape in the project's letters (graphs/contract.py); ``..`` stands for any leading dimensions.
    Inputs, outputs and attributes are in the order in which a node lists them. Only trailing inputs
    can be optional.
    """

    name: str
    doc: str  # the meaning, with its formula
    source: str  # paper section or file that defines the op
    inputs: Mapping[str, str]  # name -> "f[B,T,D]"
    outputs: Mapping[str, str]
    attributes: Mapping[str, str]  # name -> "int", "float" or "string"
    body: Body  # attributes of the nodes -> the lines of the ONNX text between the braces
    optional_inputs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()  # shoal ops that the body itself calls


def fixed_body(text: str) -> Body:
    """A body whose text is the same for all attribute values (it refers to them as ``@name``)."""

    def body(_attributes: Attributes) -> str:
        return text

    return body
