"""Reading the text that op bodies are written in, into the nodes that graph files hold.

The text is that of onnx.parser, as far as graphs/ops use it: ``y, z = Op <k: int = 1> (x, w)``, and
``y = Constant <value = uint8 {4}> ()``.
"""

from __future__ import annotations

import re
import struct

from shoal.graphs.onnx_file import UINT8, AttributeValue, Node, Reference, Tensor

_STATEMENT = re.compile(
    r"\s*(?P<outputs>[\w, ]+?)\s*=\s*(?P<op>[\w.]+)\s*"
    r"(?:<(?P<attributes>[^>]*)>)?\s*\((?P<inputs>[^)]*)\)\s*"
)
_BYTE = re.compile(r"\s*value = uint8 \{(\d+)\}\s*")
_ATTRIBUTE = re.compile(
    r"\s*(?P<name>\w+)\s*:\s*(?P<type>ints|floats|int|float|string)\s*=\s*"
    r"(?P<value>@\w+|\[[^\]]*\]|\"[^\"]*\"|[^,\s]+)\s*(?:,|$)"
)


def parse_body(text: str) -> tuple[Node, ...]:
    """The nodes of a function body.

    Args:
        text: the lines between its braces.
    """
    nodes, place = [], 0
    while place < len(text.rstrip()):
        match = _STATEMENT.match(text, place)
        assert match is not None, f"not a node: {text[place : place + 80]!r}"
        place = match.end()
        nodes.append(
            Node(
                op="::".join(match["op"].rsplit(".", 1)),
                inputs=_names(match["inputs"]),
                outputs=_names(match["outputs"]),
                attributes=_attributes(match["attributes"] or ""),
            )
        )
    return tuple(nodes)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def _attributes(text: str) -> dict[str, AttributeValue | Reference]:
    byte = _BYTE.fullmatch(text)
    if byte is not None:
        data = bytes([int(byte[1])])
        return {"value": Tensor(name="", data_type=UINT8, dims=(), external=None, data=data)}
    found: dict[str, AttributeValue | Reference] = {}
    place = 0
    while place < len(text.rstrip()):
        match = _ATTRIBUTE.match(text, place)
        assert match is not None, f"not an attribute: {text[place:]!r}"
        place = match.end()
        found[match["name"]] = _value(match["type"], match["value"])
    return found


def _value(kind: str, text: str) -> AttributeValue | Reference:
    if text.startswith("@"):
        return Reference(text[1:])
    if kind == "string":
        return text.strip('"')
    if kind == "int":
        return int(text)
    if kind == "float":
        return _float32(text)
    items = _names(text.strip("[]"))
    return tuple(map(int, items)) if kind == "ints" else tuple(map(_float32, items))


def _float32(text: str) -> float:
    (value,) = struct.unpack("<f", struct.pack("<f", float(text)))
    return float(value)
