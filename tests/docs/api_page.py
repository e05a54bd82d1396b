"""docs/api.md, made from the docstrings of the public names: ``python -m tests.docs.api_page``."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.docs.docstrings import markdown, summary, without
from tests.docs.public_api import PublicName, find, module_docstring, public_methods

HEADER = """\
# Python interface

`make docs` writes this page from the docstrings; a test compares the two. Names that are not on
this page may change without notice. Arrays are NumPy arrays. Letters in shapes: B contexts,
T tokens, D `hidden_size`, K `num_experts_per_tok`, M layers with experts, W `vocab_size`.
"""

LINE_LENGTH = 100


@dataclass(frozen=True, kw_only=True)
class Section:
    """What is imported from one module, and the types that come with it.

    Attributes:
        module: what users import from.
        names: the public names of the module, in the order of the page.
        constructed: classes of which users make objects themselves.
        results: (module, name) of types that users get but need not import.
        elsewhere: public names of the module that another section describes.
        internal: methods that only shoal itself calls, as "Class.method".
    """

    module: str
    names: tuple[str, ...]
    constructed: tuple[str, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    elsewhere: tuple[str, ...] = ()
    internal: tuple[str, ...] = ()


SECTIONS = (
    Section(
        module="shoal.runtime",
        names=("open_bundle", "Model", "Context", "evaluate", "end_on_lost_weights"),
        results=(
            ("shoal.runtime.generate", "Generation"),
            ("shoal.runtime.sampling.log_probs", "TokenLogProbs"),
            ("shoal.runtime.engine.step", "Step"),
            ("shoal.runtime.engine.step", "Routing"),
            ("shoal.runtime.evaluation.results", "Evaluation"),
            ("shoal.runtime.evaluation.results", "ModelResult"),
            ("shoal.runtime.evaluation.results", "Agreement"),
            ("shoal.runtime.evaluation.results", "TaskScore"),
            ("shoal.runtime.evaluation.results", "GenerationScore"),
            ("shoal.runtime.evaluation.results", "Estimate"),
        ),
        internal=(
            *("Context.adopt", "Context.alone", "Context.attach", "Context.observer"),
            *("Context.offer", "Context.peek", "Context.peeked", "Context.restore"),
            "Context.wants_routing",
        ),
    ),
    Section(
        module="shoal.runtime.context_pool", names=("ContextPool",), constructed=("ContextPool",)
    ),
    Section(
        module="shoal.runtime.lm_eval",
        names=("ShoalLM",),
        constructed=("ShoalLM",),
        internal=("ShoalLM.prefix_token_id", "ShoalLM.eot_token_id", "ShoalLM.tokenizer_name"),
    ),
    Section(
        module="shoal.export",
        names=("export_bundle", "ExportReport"),
        elsewhere=("ShoalError", "ConfigError", "CheckpointError", "ExportError", "InputError"),
    ),
    Section(module="shoal.export.optimum", names=("ShoalForCausalLM",)),
    Section(
        module="shoal.graphs.errors",
        names=(
            *("ShoalError", "ConfigError", "CheckpointError", "ExportError", "BundleError"),
            *("InputError", "RuntimeFailure"),
        ),
    ),
)


def api_page() -> str:
    """The whole page."""
    contents = "".join(_contents(section) for section in SECTIONS)
    sections = (text for section in SECTIONS for text in _section(section))
    return f"{HEADER}\n{contents}" + "".join(f"\n{text}" for text in sections)


def _contents(section: Section) -> str:
    names = (*section.names, *section.elsewhere)
    links = ", ".join(f"[{name}](#{name.lower()})" for name in names)
    return f"- [{section.module}](#{section.module.replace('.', '')}): {links}\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.module}\n"
    yield markdown(module_docstring(section.module))
    places = [*((section.module, name) for name in section.names), *section.results]
    for place in places:
        yield from _definition(find(*place), section)


def _definition(public: PublicName, section: Section) -> Iterator[str]:
    yield f"### {public.name}\n"
    node = public.definition
    if isinstance(node, ast.FunctionDef):
        yield from _function(node, node.name)
        return
    text = _docstring(node)
    if _is_dataclass(node):
        yield _block(_fields(node, public.source))
    elif node.name in section.constructed:
        yield _block(_class_signature(node))
    else:  # how it is made does not matter
        text = without(text, "Args")
    yield markdown(text)
    yield from _members(node, section.internal)


def _members(node: ast.ClassDef, internal: tuple[str, ...]) -> Iterator[str]:
    methods = [
        method for method in public_methods(node) if f"{node.name}.{method.name}" not in internal
    ]
    attributes = [*_attributes(node), *(_property(m) for m in methods if _has(m, "property"))]
    if attributes:
        title = "" if "Attributes:" in _docstring(node) else "**Attributes**\n\n"
        yield title + "\n".join(attributes) + "\n"
    for method in methods:
        if not _has(method, "property"):
            yield f"#### {node.name}.{method.name}\n"
            yield from _function(method, method.name)


def _function(node: ast.FunctionDef, name: str) -> Iterator[str]:
    yield _block(_signature(node, name))
    yield markdown(_docstring(node))


def _property(node: ast.FunctionDef) -> str:
    assert node.returns is not None, f"{node.name} says what it returns"
    return f"- `{node.name}: {ast.unparse(node.returns)}`: {summary(_docstring(node))}"


def _attributes(node: ast.ClassDef) -> Iterator[str]:
    """Public attributes that ``__init__`` documents with a text below them."""
    init = _init(node)
    for statement, following in pairwise(init.body if init else []):
        if not isinstance(following, ast.Expr) or not isinstance(following.value, ast.Constant):
            continue
        if isinstance(statement, ast.AnnAssign):
            target, kind = ast.unparse(statement.target), f": {ast.unparse(statement.annotation)}"
        elif isinstance(statement, ast.Assign):
            target, kind = ast.unparse(statement.targets[0]), ""
        else:
            continue
        yield f"- `{target.removeprefix('self.')}{kind}`: {summary(str(following.value.value))}"


def _class_signature(node: ast.ClassDef) -> str:
    init = _init(node)
    assert init is not None, f"{node.name} is made by its users and has a constructor"
    return "class " + _signature(init, node.name).removesuffix(" -> None")


def _signature(node: ast.FunctionDef, name: str) -> str:
    """``name(a: int, *, b: str) -> int``, on a line for each argument if it is too long for one."""
    # ast writes single quotes, the sources have double ones.
    arguments = [argument.replace("'", '"') for argument in _arguments(node.args)]
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{name}({', '.join(arguments)}){result}"
    if len(line) <= LINE_LENGTH:
        return line
    return f"{name}(\n" + "".join(f"    {argument},\n" for argument in arguments) + f"){result}"


def _arguments(arguments: ast.arguments) -> list[str]:
    plain = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    pairs = zip(plain, missing + list(arguments.defaults), strict=True)
    texts = [_argument(argument, value) for argument, value in pairs]
    if arguments.vararg:
        texts.append(f"*{ast.unparse(arguments.vararg)}")
    elif arguments.kwonlyargs:
        texts.append("*")
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    texts += [_argument(argument, value) for argument, value in pairs]
    if arguments.kwarg:
        texts.append(f"**{ast.unparse(arguments.kwarg)}")
    return [text for text in texts if text not in ("self", "cls")]


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + ("" if default is None else f" = {ast.unparse(default)}")


def _fields(node: ast.ClassDef, source: str) -> str:
    """The fields of a dataclass as its source has them, comments included."""
    fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    last = fields[-1].end_lineno
    lines = source.splitlines()[fields[0].lineno - 1 : last]
    return f"class {node.name}:\n" + "\n".join(lines)


def _init(node: ast.ClassDef) -> ast.FunctionDef | None:
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return method
    return None


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _has(node: ast.FunctionDef, decorator: str) -> bool:
    return any(decorator in ast.unparse(found) for found in node.decorator_list)


def _docstring(node: ast.ClassDef | ast.FunctionDef) -> str:
    text = ast.get_docstring(node)
    assert text, f"{node.name} is public and has a docstring"
    return text


def _block(code: str) -> str:
    return f"```python\n{textwrap.dedent(code)}\n```\n"


if __name__ == "__main__":
    print(api_page(), end="")
