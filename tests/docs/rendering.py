"""Public objects as Markdown: their signatures and docstrings, as the source has them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, get_overloads

_WIDTH = 88
_COROUTINE = re.compile(r"(?:Coroutine\[Any, Any, |StepCall\[)(.+)\]$", re.DOTALL)


def code(text: str) -> str:
    return f"```python\n{text}\n```"


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part.strip())


def function(name: str, given: Callable[..., Any]) -> str:
    """A function, or a method under the name by which it is called."""
    shapes = get_overloads(given) or [given]
    return paragraphs(code("\n".join(_signature(name, shape) for shape in shapes)), doc(given))


def klass(name: str, given: type[Any], level: int, is_made: bool = True) -> str:
    """A class: how it is made, if users make it, what it is, its fields, properties, methods."""
    parts = [_constructor(name, given) if is_made and not _is_data(given) else ""]
    parts += [doc(given), fields(given)]
    members = sorted(_members(given), key=lambda member: not isinstance(member[1], property))
    for method_name, method in members:
        if isinstance(method, property):
            parts.append(f"`.{method_name}`: {_flat(doc(method.fget))}")
        else:
            called = f"{_object_of(name)}.{method_name}"
            parts += [f"{'#' * level} {name}.{method_name}", function(called, method)]
    return paragraphs(*parts)


def _object_of(name: str) -> str:
    """What one calls an object of a class: `VirtualEngine` makes an `engine`."""
    words = re.findall(r"[A-Z][a-z]+", name.removesuffix("Sync"))
    return str(words[-1]).lower()


def fields(given: type[Any]) -> str:
    """The fields of a class as a table: those of a dataclass, a NamedTuple or a TypedDict, and
    others that have a description of their own."""
    rows = [
        f"| `{field.name}` | {field.annotation} | {_cell(_flat(field.text))} |"
        for field in _fields(given)
        if not field.name.startswith("_") and (field.text or _is_data(given))
    ]
    return "\n".join(["| | | |", "|---|---|---|", *rows]) if rows else ""


def doc(given: Any) -> str:
    """The docstring, whose indented lines are code."""
    return inspect.getdoc(given) or ""


def _is_data(given: type[Any]) -> bool:
    kinds = (dataclasses.is_dataclass(given), hasattr(given, "_fields"))
    return any(kinds) or hasattr(given, "__total__")


def _constructor(name: str, given: type[Any]) -> str:
    if "__init__" not in given.__dict__:
        return ""
    return code(_signature(name, given.__dict__["__init__"], returns=False))


def _members(given: type[Any]) -> Iterator[tuple[str, Any]]:
    """Public methods and properties, those of private base classes included."""
    seen: set[str] = set()
    for owner in given.__mro__:
        if owner.__module__.partition(".")[0] != "durable_endpoints":
            continue
        if owner is not given and issubclass(owner, BaseException):
            continue  # the page tells that of its own
        for name, member in vars(owner).items():
            is_member = inspect.isfunction(member) or isinstance(member, property)
            described = is_member and doc(getattr(member, "fget", None) or member)
            if name.startswith("_") or name in seen or not described:
                continue
            seen.add(name)
            yield name, member


def _signature(name: str, given: Callable[..., Any], returns: bool = True) -> str:
    signature = inspect.signature(given)
    made = _text(signature.return_annotation) if returns else ""
    coroutine = _COROUTINE.match(made)
    prefix = ""
    if coroutine or inspect.iscoroutinefunction(given):
        prefix, made = "await ", coroutine[1] if coroutine else made
    inner = inspect.unwrap(given)
    if inner is not given:
        # A context manager, made of a generator function.
        prefix, made = ("async with " if inspect.isasyncgenfunction(inner) else "with "), made
        managed = re.match(r"(?:Async)?(?:Iterator|Generator)\[([^,\]]+)", made)
        made = managed[1] if managed else made
    pieces = list(_parameters(signature))
    end = f") -> {made}" if made else ")"
    line = f"{prefix}{name}({', '.join(pieces)}{end}"
    if len(line) <= _WIDTH:
        return line
    inside = "".join(f"    {piece},\n" for piece in pieces)
    return f"{prefix}{name}(\n{inside}{end}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """The parameters with the marks between them: `/` and `*`."""
    kinds = inspect.Parameter
    before: inspect.Parameter | None = None
    for parameter in signature.parameters.values():
        if parameter.name == "self":
            continue
        if before and before.kind is kinds.POSITIONAL_ONLY and parameter.kind is not before.kind:
            yield "/"
        if parameter.kind is kinds.KEYWORD_ONLY and (
            before is None or before.kind not in (kinds.KEYWORD_ONLY, kinds.VAR_POSITIONAL)
        ):
            yield "*"
        stars = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        text = f"{stars}{parameter.name}"
        if parameter.annotation is not kinds.empty:
            text += f": {_text(parameter.annotation)}"
        if parameter.default is not kinds.empty:
            text += f" = {parameter.default!r}"
        yield text
        before = parameter
    if before and before.kind is kinds.POSITIONAL_ONLY:
        yield "/"


def _text(annotation: Any) -> str:
    if annotation is inspect.Signature.empty:
        return ""
    if isinstance(annotation, str):
        return annotation
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


class _Field(NamedTuple):
    name: str
    annotation: str
    text: str
    """What follows its definition in the source of the class."""


def _fields(given: type[Any]) -> Iterator[_Field]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(given)))
    [definition] = tree.body
    assert isinstance(definition, ast.ClassDef)
    body = list(definition.body)
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            body += node.body
    for statement, after in zip(body, [*body[1:], ast.Pass()], strict=True):
        annotated = isinstance(statement, ast.AnnAssign)
        if not annotated and not isinstance(statement, ast.Assign):
            continue
        target = statement.target if annotated else statement.targets[0]
        name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "_")
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        annotation = f"`{_cell(ast.unparse(statement.annotation))}`" if annotated else ""
        yield _Field(name, annotation, inspect.cleandoc(after.value.value) if is_text else "")


def _flat(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
