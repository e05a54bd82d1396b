"""Jinja for chat templates from strangers: a sandbox that also bounds time, memory and output.

Jinja's sandbox keeps a template from what it is not given; this one also keeps it from using up the
machine, in any thread and without signals. A template's source is bounded when it is read: its
length, its depth, and what of the language it may use (``refuse_statements``, ``FILTERS``). Then
the tree of its statements gets counters of a ``Budget`` (template_budget.py) wherever something
new comes about: turns of loops, comparisons, lists and objects, slices, joined and captured text.
Calls, operators and attributes are counted by the hooks of Jinja's sandbox.

A rendering so takes at most ``RENDER_S`` seconds and the budget's bytes, up to four times that in
memory where texts with wide characters are put together; a single operation between two counters
is at most linear in that. It then ends with ``OverBudget``.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
import jinja2.ext
import jinja2.filters
import jinja2.parser
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.visitor import NodeTransformer

from shoal.runtime.text.template_budget import STEP_BYTES, Budget, OverBudget
from shoal.runtime.text.template_filters import (
    CONTAINER_METHODS,
    FILTERS,
    STR_METHODS,
    binary_operator,
    check_filter,
    check_format,
    check_method,
    to_json,
)

LONGEST_SOURCE = 1 << 17
"""Characters of a template; the longest that are published have 20,000."""

DEEPEST_SOURCE = 100
"""Statements and expressions within each other; a sum of n terms has n."""

_LONGEST_DATE_PATTERN = 200
_REFUSED = (
    *(nodes.Extends, nodes.Block, nodes.Include, nodes.Import, nodes.FromImport),
    *(nodes.EvalContextModifier, nodes.ScopedEvalContextModifier),
)


class BoundedContext(Context):
    """The variables of one rendering, and what is left of its budget."""

    budget: Budget


class BoundedEnvironment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Compiles templates whose renderings keep to a budget."""

    context_class = BoundedContext
    intercepted_binops = frozenset({"+", "*", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, jinja2.ext.loopcontrols],
            finalize=_count_output,
        )
        self.globals = {
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": jinja2.sandbox.safe_range,
            "strftime_now": _strftime_now,
        }
        self._plain = self.overlay()
        self._plain.filters = {name: jinja2.filters.FILTERS[name] for name in FILTERS}
        self.filters = {name: self._bounded_filter(name) for name in FILTERS}
        self.filters |= {"tojson": _to_json, **_COUNTERS}

    def read(self, source: str) -> jinja2.Template:
        """Compile a template.

        Raises:
            jinja2.TemplateError: the source is no Jinja, too long, or uses what is refused.
            RecursionError: it is too deep.
            ValueError: it has numbers that are too long.
            SyntaxError: it has statements where they cannot be.
        """
        if len(source) > LONGEST_SOURCE:
            raise jinja2.TemplateError(f"it has more than {LONGEST_SOURCE} characters")
        tree = self.parse(source)
        _check_tree(tree)
        _AddCounters().visit(tree)
        tree.set_environment(self)
        return self.from_string(tree)

    def render(self, template: jinja2.Template, variables: dict[str, Any]) -> str:
        """The text of a template.

        Raises:
            OverBudget: it takes too much.
            Exception: it fails in another way.
        """
        context = template.new_context(variables)
        assert isinstance(context, BoundedContext), "the context is the environment's"
        context.budget = Budget(variables)
        return "".join(template.root_render_func(context))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls; a hook of Jinja's sandbox."""
        budget = _budget(context)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            args = check_method(budget, owner, obj.__name__, args)
        elif args or kwargs:
            budget.size_of((args, kwargs))  # a macro may keep them as one value
        budget.enter_call()
        try:
            result = super().call(context, obj, *args, **kwargs)
        finally:
            budget.leave_call()
        if not isinstance(owner, list | tuple | dict):  # their methods give parts of them
            budget.made(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Carry out an operator; a hook of Jinja's sandbox."""
        budget = _budget(context)
        if operator != "+":
            binary_operator(budget, operator, left, right)
        result = self.binop_table[operator](left, right)
        budget.made(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may read an attribute; a hook of Jinja's sandbox."""
        if isinstance(obj, str):
            return attr in STR_METHODS
        if isinstance(obj, list | tuple | dict):
            return attr in CONTAINER_METHODS
        if type(obj).__module__ == "builtins" or isinstance(obj, type):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Bounds ``str.format``; a hook of Jinja's sandbox."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        pattern = value.__self__

        @jinja2.pass_context
        def bounded(context: Context, *args: Any, **kwargs: Any) -> str:
            check_format(_budget(context), pattern, (args, kwargs))
            return wrapped(*args, **kwargs)

        return bounded

    def _bounded_filter(self, name: str) -> Callable[..., Any]:
        @jinja2.pass_context
        def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            budget = _budget(context)
            if name == "join" and isinstance(value, Iterator):
                value = list(value)
            check_filter(budget, name, value, args, kwargs)
            result = self._plain.call_filter(
                name, value, args, kwargs, context=context, eval_ctx=context.eval_ctx
            )
            # What is computed when it is asked for would escape the budget and the depth.
            lazy = isinstance(result, Iterator) and result is not value
            values = list(result) if lazy else result
            budget.made(values)
            return iter(values) if lazy else values

        return bounded


class _GenerationBlock(jinja2.ext.Extension):
    """Accepts ``{% generation %}``, which marks the model's words for training, as plain text."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it without ClassVar

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's own writes out what it holds, however large, and what that holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _check_tree(tree: nodes.Template) -> None:
    """Refuse a tree that is too deep, or that has statements which only web pages need."""
    level: list[nodes.Node] = [tree]
    for _ in range(DEEPEST_SOURCE):
        for node in level:
            if isinstance(node, _REFUSED):
                raise jinja2.TemplateSyntaxError(
                    f"chat templates have no {type(node).__name__.lower()}", node.lineno
                )
        level = [child for node in level for child in node.iter_child_nodes()]
        if not level:
            return
    raise jinja2.TemplateError(f"it is nested more than {DEEPEST_SOURCE} deep")


class _AddCounters(NodeTransformer):
    """Passes what a template makes through the filters of ``_COUNTERS``."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        return nodes.Const(node.data, lineno=node.lineno)  # which is passed to _count_output

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        turn = _filtered("count step", nodes.Const(True, lineno=node.lineno))
        node.body.insert(0, nodes.ExprStmt(turn, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(turn, node.test, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("join text", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("count part", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("count step", node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("count step", node) if node.args else node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if _is_constant(node) else _filtered("count value", node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        is_target = node.ctx != "load"
        return node if is_target or _is_constant(node) else _filtered("count value", node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered("count value", node)


def _is_constant(node: nodes.List | nodes.Tuple) -> bool:
    return all(isinstance(item, nodes.Const) for item in node.items)


def _filtered(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _budget(context: Context) -> Budget:
    budget: Budget = context.budget  # type: ignore[attr-defined]
    return budget


@jinja2.pass_context
def _count_output(context: Context, value: Any) -> Any:
    budget = _budget(context)
    if type(value) is not str:
        budget.expect_text_of(value)
        value = str(value)
    budget.made(value)
    return value


@jinja2.pass_context
def _count_step(context: Context, value: Any) -> Any:
    _budget(context).spend(STEP_BYTES)
    return value


@jinja2.pass_context
def _count_value(context: Context, value: Any) -> Any:
    _budget(context).made(value)
    return value


@jinja2.pass_context
def _count_part(context: Context, value: Any) -> Any:
    _budget(context).spend(value.__sizeof__())  # what is in it has been counted
    return value


@jinja2.pass_context
def _join_text(context: Context, parts: list[Any]) -> str:
    budget = _budget(context)
    budget.expect_text_of(*parts)
    texts = [str(part) for part in parts]
    budget.expect(budget.size_of(texts))
    text = "".join(texts)
    budget.made(text)
    return text


_COUNTERS: dict[str, Callable[..., Any]] = {
    "count step": _count_step,
    "count value": _count_value,
    "count part": _count_part,
    "join text": _join_text,
}
"""Filters whose names no source can write."""


@jinja2.pass_context
def _to_json(context: Context, value: Any, **options: Any) -> str:
    budget = _budget(context)
    text = to_json(budget, value, **options)
    budget.made(text)
    return text


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > _LONGEST_DATE_PATTERN:
        raise OverBudget("writes a date that is too long")
    # Local time without a zone: what the templates were written for.
    return datetime.datetime.now().strftime(pattern)
