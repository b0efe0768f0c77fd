"""docs/reference.md, made of the docstrings: `python -m tests.docs.reference` writes it anew."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from types import FunctionType
from typing import Any, NamedTuple

import click

import durable_endpoints
import durable_endpoints.client
import durable_endpoints.testing
from durable_endpoints import checkpoint_client, encryption, errors, hooks, settings
from durable_endpoints.client.call import Sending
from durable_endpoints_server import cli
from tests.docs.pages import GENERATED
from tests.docs.rendering import code, doc, fields, function, klass, paragraphs

_HEAD = """# Reference

Every public name, with the text of its docstring. This page is made from the source, by
`python -m tests.docs.reference`; the guides are in the [index](README.md)."""

_NAMESPACES = {"step", "stream"}
"""Names that stand for an object whose methods are called."""
_NOT_MADE = {"DurableStream", "DurableStreamSync"}
"""Classes whose objects users get, and do not make."""
_MIB = 1024 * 1024


class Section(NamedTuple):
    title: str
    text: str
    names: tuple[str, ...] = ()
    """Of `durable_endpoints`."""


_SECTIONS = [
    Section(
        "Setting up",
        "",
        (
            "DurableEndpointsMiddleware",
            "endpoint",
            "configure",
            "endpoint_proxy",
            "endpoint_app",
            "remember",
        ),
    ),
    Section("Steps", "", ("step", "Saga")),
    Section("Streams", "", ("stream",)),
    Section("Events and signals", "", ("send_event", "Event", "send_signal", "Signal")),
    Section("Errors", "", ()),
]
_CHECKPOINTS = (
    "CheckpointClient",
    "CheckpointClientSync",
    "RunEvent",
    "CheckpointRun",
    "ApiResult",
    "CheckpointError",
    "CheckpointRefusedError",
    "UnknownRunError",
    "BadCheckpointError",
    "ServerUnavailableError",
)
"""Of `durable_endpoints.client`, but not about streams."""


def public_names() -> set[str]:
    """What the page has to tell of."""
    modules = (durable_endpoints, durable_endpoints.client, durable_endpoints.testing)
    return {name for module in modules for name in module.__all__}


def page() -> str:
    """The whole page."""
    told = {name for section in _SECTIONS for name in section.names}
    of_client = set(durable_endpoints.client.__all__)
    all_errors = {name for name in durable_endpoints.__all__ if _is_error(name)}
    others = set(durable_endpoints.__all__) - told - of_client - all_errors - {"Hook"}
    parts = [_HEAD]
    for section in _SECTIONS:
        if section.title == "Errors":
            if others:
                parts += ["## More", *_objects(durable_endpoints, sorted(others))]
            parts += ["## Errors", *_errors(all_errors)]
        else:
            parts += [f"## {section.title}", *_objects(durable_endpoints, section.names)]
    parts += ["## Hooks", *_objects(hooks, ("Hook", "RunInfo", "StepInfo", "StepData", "Result"))]
    parts += _objects(encryption, ("StepEncryption",))
    parts += ["## Settings", _settings()]
    parts += ["## Reading streams", "From `durable_endpoints.client`."]
    of_streams = [name for name in durable_endpoints.client.__all__ if name not in _CHECKPOINTS]
    parts += _objects(durable_endpoints.client, of_streams)
    parts += ["### Sending", klass("Sending", Sending, 4)]
    parts += ["## Checkpoint API", "From `durable_endpoints.client`."]
    parts += [doc(checkpoint_client), *_objects(durable_endpoints.client, _CHECKPOINTS)]
    parts += ["## Testing", "From `durable_endpoints.testing`.", doc(durable_endpoints.testing)]
    parts += _objects(durable_endpoints.testing, durable_endpoints.testing.__all__)
    parts += ["## Command line", *_commands(cli.main, "durable-endpoints")]
    contents = [
        f"* [{part.removeprefix('## ')}](#{_anchor(part)})" for part in parts if part[:3] == "## "
    ]
    return paragraphs(parts[0], "\n".join(contents), *parts[1:]) + "\n"


def _anchor(heading: str) -> str:
    return heading.removeprefix("## ").lower().replace(" ", "-")


def _objects(module: Any, names: Any) -> Iterator[str]:
    for name in names:
        given = getattr(module, name)
        yield f"### {name}"
        if name in _NAMESPACES:
            yield _namespace(name, given)
        elif isinstance(given, type):
            yield klass(name, given, 4, name not in _NOT_MADE)
        elif callable(given):
            yield function(name, given)
        else:
            yield _alternatives(given)


def _namespace(name: str, given: Any) -> str:
    """`step.run` and so on, in the order of their definition."""
    parts = [f"#### {name}"] if "." in name else []
    parts += [doc(given)]
    members = {
        member_name: member
        for owner in reversed(type(given).__mro__)
        for member_name, member in vars(owner).items()
        if isinstance(member, FunctionType | staticmethod | property)
        and not member_name.startswith("_")
    }
    for member_name, member in members.items():
        path = f"{name}.{member_name}"
        is_property = isinstance(member, property)
        text = doc(member) if is_property else function(path, getattr(given, member_name))
        parts += [f"#### {path}", text]
    for attribute, inner in vars(given).items():
        if attribute == "sync":
            of_inner = [f"`{name}.sync.{other}`" for other in _public_methods(inner)]
            parts += [f"#### {name}.sync", "For plain `def` functions: blocking."]
            parts += [", ".join(of_inner)]
        elif not attribute.startswith("_"):
            parts += [_namespace(f"{name}.{attribute}", inner)]
    return paragraphs(*parts)


def _public_methods(given: Any) -> list[str]:
    owners = reversed(type(given).__mro__)
    names = [name for owner in owners for name, member in vars(owner).items() if callable(member)]
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def _alternatives(given: Any) -> str:
    kinds = getattr(given, "__args__", ())
    return "One of " + ", ".join(f"`{kind.__name__}`" for kind in kinds) + "."


def _is_error(name: str) -> bool:
    given = getattr(durable_endpoints, name)
    return isinstance(given, type) and issubclass(given, BaseException)


def _errors(names: set[str]) -> Iterator[str]:
    _, tree, *text = doc(errors).split("\n\n")
    yield f"```text\n{tree}\n```"
    yield from text
    ordered = sorted(names, key=lambda name: (tree.find(name) if name in tree else 9_999, name))
    for name in ordered:
        yield f"### {name}"
        yield klass(name, getattr(durable_endpoints, name), 4)


def _settings() -> str:
    """The settings: keyword arguments of the middleware, or variables of the environment."""
    return paragraphs(
        "Keyword arguments of `DurableEndpointsMiddleware`, or environment variables: "
        '`DURABLE_ENDPOINTS_DATABASE` is `database`. Durations are texts such as `"30s"`, a '
        "`timedelta`, or seconds. Sizes are bytes.",
        _with_defaults(fields(settings.Settings)),
    )


def _with_defaults(table: str) -> str:
    """The table of fields, with their defaults instead of their types."""

    def row(found: re.Match[str]) -> str:
        return f"| `{found[1]}` | {_default(found[1])} |"

    return re.sub(r"^\| `(\w+)` \| `[^`]*` \|", row, table, flags=re.MULTILINE)


def _default(name: str) -> str:
    value = getattr(settings.Settings(), name)
    if value is None or value == "":
        return ""
    if settings.SettingsArguments.__annotations__[name].__forward_arg__ == "Duration":
        units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
        unit = next(unit for unit, length in units.items() if value % length == 0)
        return f"`{value // units[unit]}{unit}`"
    if isinstance(value, int) and not isinstance(value, bool) and value % _MIB == 0:
        return f"{value // _MIB} MiB"
    return f"`{', '.join(value) if isinstance(value, tuple) else value}`"


def _commands(command: click.Command, path: str) -> Iterator[str]:
    """A command, and those below it."""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _commands(inner, f"{path} {name}")
        return
    arguments = [p.make_metavar(click.Context(command)) for p in command.params if _is_argument(p)]
    yield f"### {path}"
    yield code(" ".join([path, "[OPTIONS]", *arguments]))
    yield inspect.cleandoc(command.help or "")
    options = [p for p in command.params if isinstance(p, click.Option)]
    rows = [f"| `{', '.join(option.opts)}` | {option.help or ''} |" for option in options]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows])


def _is_argument(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Argument)


if __name__ == "__main__":
    GENERATED.write_text(page(), "utf-8")
