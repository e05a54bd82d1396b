"""The filters and operators of chat templates, each refused before it makes more than it may.

Most make no more than they are given; what can make more from little is estimated first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sized
from string import Formatter
from typing import Any

from shoal.runtime.text.template_budget import Budget, OverBudget

FILTERS = (
    *("abs", "attr", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first"),
    *("float", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower"),
    *("map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe"),
    *("select", "selectattr", "sort", "string", "title", "trim", "unique", "upper"),
)
"""Filters of Jinja that chat templates use; ``tojson`` is our own."""

STR_METHODS = frozenset(
    {
        *("capitalize", "casefold", "count", "endswith", "find", "format", "format_map", "index"),
        *("isalnum", "isalpha", "isascii", "isdecimal", "isdigit", "islower", "isnumeric"),
        *("isspace", "istitle", "isupper", "join", "lower", "lstrip", "partition", "removeprefix"),
        *("removesuffix", "replace", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "split"),
        *("splitlines", "startswith", "strip", "swapcase", "title", "upper"),
    }
)
"""Methods of texts that make no more than they are given, or are estimated by ``check_method``."""

CONTAINER_METHODS = frozenset(
    {"copy", "count", "get", "grouper", "index", "items", "keys", "list", "values"}
)
"""Methods of lists and objects, which change none, and the two parts of what ``groupby`` makes."""

_PART_BYTES = 96  # of a list for each short text in it, at most
_BY_CHARACTER = frozenset(
    {
        *("dictsort", "groupby", "join", "last", "list", "map", "max", "min", "reject"),
        *("rejectattr", "reverse", "select", "selectattr", "sort", "title", "unique"),
    }
)  # filters that take a text apart
_FORMATTED_BYTES = 1000  # of a number, at most, with widths below 1000
_LONGEST_INTEGER_BITS = 4096
_MOST_DIGITS = _WIDEST_INDENT = 100
_LONGEST_PATH_BYTES = 1000  # of "attribute,attribute.key" with what holds it
_PARAMETERS = {
    "indent": ("width",),
    "join": ("d",),
    "replace": ("old", "new"),
    "round": ("precision",),
}
_WIDE_FIELD = re.compile(r"\d{4}|\*")
_PERCENT_FIELD = re.compile(r"%(?:\([^()]*\))?([-#0 +]*(?:\*|\d*)(?:\.(?:\*|\d*))?)")
_NESTED_NAME = re.compile(r"%\([^()]*\(")


def check_filter(budget: Budget, name: str, value: Any, args: Any, kwargs: Any) -> None:
    """Refuse a filter whose result may be larger than what is left.

    Raises:
        OverBudget: so it is.
    """
    operands = (value, *args, *kwargs.values())
    budget.expect_text_of(*operands)
    if isinstance(value, str) and name in _BY_CHARACTER:
        budget.expect(_PART_BYTES * len(value))
    given = dict(zip(_PARAMETERS.get(name, ()), args, strict=False)) | kwargs
    if name == "join":
        _check_join(budget, given.get("d", ""), value)
    elif name == "replace":
        _check_replace(budget, value, given.get("old"), given.get("new"))
    elif name in ("e", "escape"):
        budget.expect(5 * budget.size_of(value))
    elif name == "indent":
        width = given.get("width", 4)
        width = len(width) if isinstance(width, str) else width
        budget.expect(4 * width * (len(value) + 1))
    elif name == "round" and abs(given.get("precision", 0)) > _MOST_DIGITS:
        raise OverBudget("rounds to too many digits")
    elif name == "sort" and budget.size_of((args, kwargs)) > _LONGEST_PATH_BYTES:
        raise OverBudget("sorts by too many attributes")


def to_json(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter ``tojson`` as transformers has it; Jinja's own escapes for HTML.

    Raises:
        OverBudget: the indentation or the text may take more than what is left.
    """
    budget.expect_text_of(value)
    if indent is not None and not (isinstance(indent, int) and indent <= _WIDEST_INDENT):
        raise OverBudget("indents too far")
    if separators is not None:
        budget.expect(sum(map(len, separators)) * budget.size_of(value))
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def check_method(budget: Budget, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a method of a text whose result may be larger than what is left.

    Returns:
        The arguments to call it with.

    Raises:
        OverBudget: so it is.
    """
    if name == "join" and args:
        if isinstance(args[0], str):
            budget.expect(_PART_BYTES * len(args[0]))
        parts = list(args[0])  # an iterator can be looked at only once
        _check_join(budget, text, parts)
        return (parts, *args[1:])
    if name == "replace":
        _check_replace(budget, text, *args[:2])
    elif "split" in name:
        at_texts = bool(args) and isinstance(args[0], str) and args[0] != ""
        count = text.count(args[0]) if at_texts else len(text) // 2
        budget.expect(4 * len(text) + _PART_BYTES * (count + 1))
    return args


def check_format(budget: Budget, pattern: str, values: Any) -> None:
    """Refuse ``str.format`` with wide fields, or with more text than what is left.

    Raises:
        OverBudget: so it is.
    """
    fields = [(spec or "") for _, name, spec, _ in Formatter().parse(pattern) if name is not None]
    if any("{" in spec or _WIDE_FIELD.search(spec) for spec in fields):
        raise OverBudget("formats a field that is too wide")
    _check_fields(budget, len(fields), values)


def binary_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result may be larger than what is left.

    Raises:
        OverBudget: so it is.
    """
    if operator == "%" and isinstance(left, str):
        fields = _PERCENT_FIELD.findall(left)
        if _NESTED_NAME.search(left) or any(map(_WIDE_FIELD.search, fields)):
            raise OverBudget("formats a field that is too wide")
        _check_fields(budget, len(fields), right)
    elif operator == "*" and not (isinstance(left, float) or isinstance(right, float)):
        times, repeated = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(times, int) and isinstance(repeated, int):
            _check_bits(times.bit_length() + repeated.bit_length())
        elif isinstance(times, int):
            is_text = isinstance(repeated, str)
            size = 4 * len(repeated) if is_text else budget.size_of(repeated)
            budget.expect(size * max(times, 0))
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))


def _check_fields(budget: Budget, count: int, values: Any) -> None:
    budget.expect_text_of(values)
    size = 1 if isinstance(values, str) else 16
    budget.expect(count * (size * budget.size_of(values) + _FORMATTED_BYTES))


def _check_bits(bits: int) -> None:
    if bits > _LONGEST_INTEGER_BITS:
        raise OverBudget("computes with integers that are too large")


def _check_join(budget: Budget, separator: object, parts: object) -> None:
    if isinstance(parts, Sized):
        size = len(separator) if isinstance(separator, str) else budget.size_of(separator)
        budget.expect(16 * budget.size_of(parts) + 4 * size * len(parts))


def _check_replace(budget: Budget, text: object, old: object, new: object) -> None:
    if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
        budget.expect(4 * (len(text) + text.count(old) * len(new)))
    else:  # of which Jinja takes the texts
        budget.expect(16 * budget.size_of(text) * budget.size_of(new))
