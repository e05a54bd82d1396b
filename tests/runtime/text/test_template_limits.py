"""Templates of strangers: each of these would take minutes, gigabytes or the process itself."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.text.chat_templates import TEMPLATES

from shoal.graphs.errors import BundleError, InputError
from shoal.runtime.text import template_budget
from shoal.runtime.text.chat import ChatTemplate
from shoal.runtime.text.template_budget import Budget, OverBudget

TURN = [{"role": "user", "content": "x"}]
MEMORY = 512 << 20  # bytes of address space that all of UNREADABLE and ENDLESS may take, and Python


def grow(step, start="'a'", end="ns.x"):
    """A template that makes something of ns.x sixty times over."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}"
        f"{{% set ns.x = {step} %}}{{% endfor %}}{{{{ {end} }}}}"
    )


UNREADABLE = {
    "deep brackets": "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}",
    "deep lists": "{{ " + "[" * 50_000 + "]" * 50_000 + " }}",
    "deep conditions": "{% if x %}" * 2000 + "{% endif %}" * 2000,
    "deep loops": "{% for i in x %}" * 30 + "{% endfor %}" * 30,
    "a sum of many": "{{ " + "+".join(["a"] * 5_000) + " }}",
    "many attributes": "{{ a" + ".b" * 5_000 + " }}",
    "many negations": "{{ " + "not " * 30_000 + "1 }}",
    "many open tags": "{{" * 60_000,
    "break outside a loop": "{% break %}",
    "continue outside a loop": "{% continue %}",
    "5000 digits": "{{ " + "9" * 5_000 + " }}",
    "a long source": "x" * (1 << 18),
    "batch": "{{ 'a' | batch(10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "include": "{% include 'x' %}",
    "extends": "{% extends messages %}",
    "import": "{% import 'os' as os %}",
    "autoescape": "{% autoescape true %}{% endautoescape %}",
}
ENDLESS = {
    "range": "{% for i in range(10**10) %}x{% endfor %}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop that skips": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}"
    ),
    "times": "{{ 'a' * 10**9 }}",
    "times, a list": "{{ 10**9 * [1] }}",
    "power": "{{ 10**(10**8) }}",
    "power, a truth": "{{ (true + 1)**(10**9) }}",
    "squares": grow("ns.x * ns.x", "3"),
    "wide field": "{{ '%9999999999d' % 1 }}",
    "wide field, given": "{{ '%*d' % (10**9, 1) }}",
    "wide field, named": "{{ '%(a(b)c)999999999d' % {'a(b)c': 1} }}",
    "many digits": "{{ '%.999999999f' % 1 }}",
    "many fields": "{{ ('%(a)s' * 10**5) % {'a': 'x' * 10**6} }}",
    "format, wide field": "{{ '{:999999999}'.format(1) }}",
    "format, wide field, given": "{{ '{:{}}'.format(1, 10**9) }}",
    "format, many fields": "{{ ('{0}' * 10**5).format('x' * 10**6) }}",
    "format_map": "{{ ('{a}' * 10**5).format_map({'a': 'x' * 10**6}) }}",
    "lipsum": "{{ lipsum(n=10**6) }}",
    "cycler": "{{ cycler(1) }}",
    "joiner": "{{ joiner() }}",
    "dates": "{{ strftime_now('%Y' * 10**7) }}",
    "sort": "{{ ('ab,' * 10**7).split(',') | sort }}",
    "sort by many": "{{ range(10000) | sort(attribute='a,' * 50000) }}",
    "join": "{{ range(99999) | join('x' * 10**6) }}",
    "join, a method": "{{ ('x' * 10**6).join('a' * 10**6) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "indent, many lines": "{{ ('a\n' * 10**6) | indent(10**6) }}",
    "replace": "{{ ('a' * 10**6) | replace(new='b' * 10**6, old='a') }}",
    "replace, a method": "{{ ('a' * 10**6).replace('', 'b' * 10**6) }}",
    "letters": "{{ ('ā' * 10**7) | list }}",
    "escape": "{{ ('<' * 10**7) | e | e | e }}",
    "round": "{{ 5 | round(-10**9) }}",
    "round up": "{{ 5 | round(10**9, 'ceil') }}",
    "indented JSON": "{{ [[1]] | tojson(indent=10**9) }}",
    "separated JSON": "{{ range(999) | list | tojson(separators=('x' * 10**6, '')) }}",
    "~": grow("ns.x ~ ns.x"),
    "+": grow("ns.x + ns.x"),
    "lists in lists": grow("[ns.x, ns.x]"),
    "tuples in tuples": grow("(ns.x, ns.x)", end="{ns.x: 1}"),
    "objects in objects": grow("{'a': ns.x, 'b': ns.x}", end="ns.x == ns.x"),
    "objects by dict": grow("dict(a=ns.x, b=ns.x)", end="ns.x | tojson"),
    "items of objects": grow("{'a': ns.x, 'b': ns.x}.items()"),
    "defaults of map": grow("[1, 2] | map(attribute='z', default=ns.x) | list"),
    "arguments of macros": (
        "{% set ns = namespace(x=1) %}{% macro f() %}{% set ns.x = varargs %}{% endmacro %}"
        "{% for i in range(60) %}{{ f(ns.x, ns.x) }}{% endfor %}"
    ),
    "captured text": (
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(60) %}"
        "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}"
    ),
    "captured constants": (
        "{% set y %}{% for i in range(99999) %}" + "x" * 99_999 + "{% endfor %}{% endset %}"
    ),
    "deep lists": grow("[ns.x]").replace("60", "99999"),
    "deep tuples": grow("(ns.x,)", end="{ns.x: 1}").replace("60", "99999"),
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(0) }}",
    "a macro that calls itself twice": (
        "{% macro f(x) %}{% if x %}{{ f(x - 1) }}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a loop that calls itself": "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
    "many slices": "{% set a = 'a' * 10**7 %}"
    + "".join(f"{{% set v{n} = a[1:] %}}" for n in range(100)),
    "long searches": (
        "{% set x = 'a' * 10**7 %}{% for i in range(99999) %}{{ 'ab' is in x }}{% endfor %}"
    ),
    "long comparisons": (
        "{% set x = 'a' * 10**7 %}{% set y = 'a' * 10**7 %}"
        "{% for i in range(99999) %}{{ x == y }}{% endfor %}"
    ),
    "methods of numbers": "{{ (1).to_bytes(10**9, 'big') }}",
    "methods of types": "{{ dict.fromkeys(range(99999), 1) }}",
    "methods that pad": "{{ 'a'.zfill(10**9) }}",
}


@pytest.fixture(autouse=True)
def short_time(monkeypatch):
    monkeypatch.setattr(template_budget, "RENDER_S", 0.3)


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_template_that_cannot_be_run_is_a_damaged_bundle(name):
    with pytest.raises(BundleError, match="chat template cannot be read") as caught:
        ChatTemplate(UNREADABLE[name], {}, "t")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_would_not_end_is_refused(name):
    template = ChatTemplate(ENDLESS[name], {}, "t")
    with pytest.raises(InputError, match=r"^(t: the|messages: the) chat template") as caught:
        template.render(TURN)
    assert "\n" not in str(caught.value)


def test_all_of_them_fit_into_half_a_gigabyte():
    """The tests above with a limit that ends in MemoryError, whose message names no limit."""
    name = "tests.runtime.text.test_template_limits"
    code = f"from {name} import *; limit_memory(); refuse_all()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def limit_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    template_budget.RENDER_S = 0.1


def refuse_all():
    for source in ENDLESS.values():
        try:
            ChatTemplate(source, {}, "t").render(TURN)
        except InputError as error:
            assert not isinstance(error.__cause__, MemoryError), source[:80]  # noqa: PT017


def test_limits_hold_in_any_thread():
    found = []

    def render():
        try:
            ChatTemplate(ENDLESS["long searches"], {}, "t").render(TURN)
        except InputError as error:
            found.append(str(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(30)
    assert len(found) == 1
    assert "takes more than" in found[0]


def test_a_rendering_that_was_refused_leaves_nothing_behind():
    template = ChatTemplate("{{ messages[0].content * 10 }}", {}, "t")
    assert template.render(TURN) == "x" * 10
    greedy = ChatTemplate("{% for i in range(messages[0].content | int) %}x{% endfor %}", {}, "t")
    with pytest.raises(InputError, match="Range too big"):
        greedy.render([{"role": "user", "content": "100001"}])
    assert greedy.render([{"role": "user", "content": "3"}]) == "xxx"


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_quarter_of_the_limits_is_enough_for_the_families_templates(family, monkeypatch):
    monkeypatch.setattr(template_budget, "BASE_BYTES", template_budget.BASE_BYTES // 100)
    monkeypatch.setattr(template_budget, "BYTES_PER_INPUT_BYTE", 16)
    turn = {"role": "user", "content": "long text " * 2_000}
    answer = {"role": "assistant", "content": "<think>so</think> " + "yes " * 5_000}
    tokens = {"bos_token": "<b>", "eos_token": "<e>"}
    text = ChatTemplate(TEMPLATES[family], tokens, "t").render([turn, answer] * 50 + [turn])
    assert text.count("yes") == 50 * 5_000


@settings(max_examples=60, deadline=None)
@given(
    value=st.recursive(
        st.text(max_size=5) | st.integers(-5, 5) | st.none(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=20,
    )
)
def test_what_counts_as_a_values_text_bounds_it(value):
    budget = Budget(None)
    assert len(repr(value).encode()) <= 16 * budget.size_of(value)


def test_a_value_that_is_held_twice_counts_twice():
    budget = Budget(None)
    text = "x" * 1000
    assert budget.size_of([text, text]) > 2 * budget.size_of([]) + 2000
    value: list[object] = [text]
    for _ in range(60):
        value = [value, value]
    with pytest.raises(OverBudget):
        budget.size_of(value)
