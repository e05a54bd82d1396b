"""Chat templates: those of the families taken apart and put together with hostile expressions."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from random import Random
from typing import Any

import jinja2.filters
from tests.fuzz.fuzz_format import Samples, Use, require
from tests.fuzz.mutations import TEXTS, change_bytes, number_of_changes
from tests.runtime.text.chat_templates import CONVERSATIONS, TEMPLATES

from shoal.runtime.text.chat import ChatTemplate
from shoal.runtime.text.tokenizer import find_template

_PIECE = re.compile(r"(\{%.*?%\}|\{\{.*?\}\}|\{#.*?#\})", re.DOTALL)
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
_LEAVES = (
    *("messages", "messages[0]", "messages[0].content", "bos_token", "loop", "loop.index", "tools"),
    *("none", "true", "1", "0", "-1", "10 ** 10", "2 ** 63", "1e308", "1e400", "9" * 50, "x", "ns"),
    *("'a'", "''", "'%9999999d'", "'{0:999999999}'", "'{0.__class__}'", "[]", "{}", "[1, 2]"),
    *("range(10)", "range(10 ** 10)", "namespace(a=1)", "dict(a=1)", "cycler", "lipsum()", "self"),
    *("raise_exception('no')", "strftime_now('%Y')", "m(1)", "caller()", "joiner()", "9" * 5000),
)
_METHODS = (
    *("upper", "split", "join", "format", "replace", "items", "get", "append", "extend", "update"),
    *("center", "ljust", "zfill", "encode", "expandtabs", "translate", "format_map", "pop", "copy"),
    *("__class__", "__init__", "__mro__", "__globals__", "__getitem__", "mro", "gi_frame", "index"),
)
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or")
_FILTERS = sorted(jinja2.filters.FILTERS)
_TESTS = ("defined", "string", "mapping", "none", "iterable", "in [1]", "divisibleby 0", "escaped")
_STATEMENTS = (
    *("{{% for x in {0} %}}{1}{{% endfor %}}", "{{% if {0} %}}{1}{{% else %}}{1}{{% endif %}}"),
    *("{{% for x in {0} recursive %}}{{{{ loop(x) }}}}{1}{{% endfor %}}", "{{% set x = {0} %}}{1}"),
    *("{{% set ns.a = {0} %}}{1}", "{{% set x %}}{1}{{% endset %}}{{{{ x }}}}", "{{{{ {0} }}}}{1}"),
    *("{{% macro m(x) %}}{{{{ {0} }}}}{1}{{{{ m(x) }}}}{{% endmacro %}}", "{{% raw %}}{1}"),
    *("{{% call m() %}}{1}{{% endcall %}}", "{{% filter {2} %}}{1}{{% endfilter %}}"),
    *("{{% generation %}}{1}{{% endgeneration %}}", "{{% break %}}{1}", "{{% continue %}}{1}"),
    *("{{% include {0} %}}{1}", "{{% extends {0} %}}{1}", "{{% import {0} as q %}}{1}"),
    *("{{% autoescape true %}}{1}{{% endautoescape %}}", "{{% block b %}}{1}{{% endblock %}}"),
    *("{{% with a = {0} %}}{1}{{% endwith %}}", "{{% for a, b in {0} if {0} %}}{1}{{% endfor %}}"),
)
_DEPTHS = (2, 2, 2, 30, 120, 1000)


class TemplateFormat:
    """Templates that the families ship."""

    def __init__(self) -> None:
        pieces = [piece for source in TEMPLATES.values() for piece in _PIECE.split(source)]
        self._expressions = [piece for piece in pieces if piece.startswith("{{")]

    def prepare(self, rng: Random, folder: Path) -> Use:
        """See ``FuzzFormat``."""
        pieces = _PIECE.split(rng.choice(list(TEMPLATES.values())))
        if rng.random() < 0.4:
            pieces = [expression(rng, 0), " "]
            pieces = [f"{{{{ {pieces[0]} }}}}"]
        for _ in range(number_of_changes(rng)):
            self._change(rng, pieces)
        content = "".join(pieces).encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            content = change_bytes(rng, content)
        path = folder / "chat_template.jinja"
        path.write_bytes(content)
        messages = copy.deepcopy(rng.choice(list(CONVERSATIONS.values())))
        return lambda: _use(path, messages)

    def _change(self, rng: Random, pieces: list[str]) -> None:
        whole = [n for n, piece in enumerate(pieces) if not piece.startswith("{%")]
        place = rng.randrange(len(pieces)) if rng.random() < 0.1 else rng.choice(whole or [0])
        match rng.randrange(10):
            case 0:
                del pieces[place]
                pieces.append("")
            case 1:
                pieces.insert(place, rng.choice(self._expressions))
            case 2:
                pieces[place] = rng.choice(TEXTS)
            case 3:
                depth = rng.choice(_DEPTHS)
                pieces[place] = "{% if 1 %}" * depth + pieces[place] + "{% endif %}" * depth
            case 4:
                words = re.split(r"(\W+)", pieces[place])
                words[rng.randrange(len(words))] = expression(rng, 0)
                pieces[place] = "".join(words)
            case _:
                statement = rng.choice(_STATEMENTS)
                filters = "|".join(rng.choices(_FILTERS, k=rng.choice((1, 1, 2, 50))))
                pieces[place] = statement.format(expression(rng, 0), pieces[place], filters)


def expression(rng: Random, depth: int) -> str:
    """An expression that a template may have, or may not."""
    if depth > 4 or rng.random() < 0.25:
        return rng.choice(_LEAVES)
    inner = expression(rng, depth + 1)
    match rng.randrange(10):
        case 0 | 1:
            return f"({inner} {rng.choice(_OPERATORS)} {expression(rng, depth + 1)})"
        case 2 | 3:
            arguments = rng.choice(
                ("", "(1)", f"({expression(rng, depth + 1)})", "(attribute='a')")
            )
            return f"({inner})|{rng.choice(_FILTERS)}{arguments}"
        case 4:
            arguments = rng.choice(("()", "(1)", f"({expression(rng, depth + 1)})", ""))
            return f"({inner}).{rng.choice(_METHODS)}{arguments}"
        case 5:
            return f"({inner})[{rng.choice(('0', '-1', '::-1', '::0', ':10**9', repr('a')))}]"
        case 6:
            return f"({inner}) is {rng.choice(_TESTS)}"
        case 7:
            return f"[{inner}, {expression(rng, depth + 1)}] * {rng.choice((1, 1000, 10**9))}"
        case 8:
            return f"({inner} if {expression(rng, depth + 1)} else {rng.choice(_LEAVES)})"
        case _:
            depth = rng.choice(_DEPTHS)
            return rng.choice(("[" * depth + inner + "]" * depth, f"{'not ' * depth}{inner}"))


def _use(path: Path, messages: list[dict[str, Any]]) -> None:
    found = find_template(path, {})
    assert found is not None, "the file is there"
    template = ChatTemplate(found[0], _SPECIAL, str(path))
    before = copy.deepcopy(messages)
    text = template.render(messages)
    require(type(text) is str, "a rendering that is no text")
    require(messages == before, "the template changed the conversation")


def make(samples: Samples) -> TemplateFormat:
    """The format; it needs no samples."""
    return TemplateFormat()
