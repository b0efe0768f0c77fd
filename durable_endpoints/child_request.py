"""The request by which a run invokes another endpoint of its application: which route, which path,
which headers and body."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from durable_endpoints.door import Door
from durable_endpoints.errors import StepValueError, UsageError
from durable_endpoints.options import EndpointOptions
from durable_endpoints.protocol.messages import Headers, StoredRequest
from durable_endpoints.protocol.values import NotJsonError, decode, encode
from durable_endpoints.requests import printable
from durable_endpoints.routes import MARK, Found, bare_function

if TYPE_CHECKING:
    from durable_endpoints.endpoint import Endpoint

_INHERITED = frozenset({b"authorization", b"cookie", b"host", b"proxy-authorization", b"x-api-key"})
"""Headers of the parent's own request that its children have too: who asks, and whom."""
_OURS = frozenset({"content-length", "transfer-encoding", "connection", "host", "upgrade"})
"""Headers that nobody but the server that is asked has a say in."""
_BESIDE = frozenset({"HEAD", "OPTIONS"})
"""Methods that a route answers beside the one it is for."""
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110 §5.1)."""
_NO_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What stands in no header's value (RFC 9110 §5.5): a line feed would begin another header."""
_PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")

Params = Mapping[str, Any]


class ChildRequest(NamedTuple):
    """What invokes an endpoint."""

    endpoint: Endpoint
    function_id: str
    options: EndpointOptions
    request: StoredRequest
    root_path: str
    version: str

    def __str__(self) -> str:
        return self.function_id


def request_to(
    door: Door,
    id: str,
    function: Callable[..., Any],
    params: Params | None,
    json: Any,
    headers: Mapping[str, str] | None,
    method: str | None,
) -> ChildRequest:
    """The request by which the step `id` of the request at `door` asks for `function`.

    Raises `UsageError` for what is no endpoint of this application, or not told from another one,
    and for parameters that its path lacks or does not take.
    """
    described: Endpoint | None = getattr(bare_function(function), MARK, None)
    if inspect.iscoroutine(function):
        function.close()
        raise UsageError(
            f"step.invoke({id!r}) was given the coroutine of {_name(function)}(…): pass the "
            "decorated handler itself, and what its path and query need as params={…}"
        )
    if described is None:
        raise UsageError(
            f"step.invoke({id!r}) was given {_name(function)}, which is not decorated with "
            "@endpoint: pass the decorated handler itself, or call a plain function with "
            f"step.run({id!r}, …)"
        )
    application, snapshot = door.application, door.snapshot
    given = {} if params is None else dict(params)
    found, verb = _choose(door, id, described, given, method)
    path = _fill(id, found, given)
    first = application.see(snapshot).first_for(verb, path)
    if first is not found:
        taken = f"belongs to the route {first.template}" if first else "does not fit that route"
        raise UsageError(
            f"step.invoke({id!r}): {verb} {path} is to reach {described.name} at {found.template}, "
            f"but {taken}: change params="
        )
    root_path: str = snapshot.get("root_path", "")
    body, extra = _body(id, json)
    options = application.options_of(described)
    request = StoredRequest(
        method=verb,
        scheme=snapshot.get("scheme", "http"),
        http_version="1.1",
        path=root_path + path,
        raw_path=quote(
            (root_path + path).encode("utf-8", "surrogateescape"), safe="/:@!$&'()*+,;=~"
        ).encode("ascii"),
        root_path=root_path,
        query_string=_query(id, found, given),
        headers=_headers(id, snapshot["headers"], headers, extra),
        client=_pair(snapshot.get("client")),
        server=_pair(snapshot.get("server")),
        body=body,
        path_params=snapshot.get("path_params", {}),
    )
    return ChildRequest(
        described,
        options.function_id or f"{verb} {found.template}",
        options,
        request,
        printable(application.root_path(snapshot)),
        application.settings.version,
    )


def _choose(
    door: Door, id: str, described: Endpoint, params: Params, method: str | None
) -> tuple[Found, str]:
    """The route and the method by which the endpoint is asked."""
    wrapper = described.wrapper
    routes = door.application.see(door.snapshot).routes_to(wrapper)
    if not routes:
        raise UsageError(
            f"step.invoke({id!r}): {described.name} is on no route of this application, and only "
            "by its route it can be asked. Add it to the application whose handler invokes it; one "
            "of another application is asked over HTTP"
        )
    ways = [(found, verb) for found in routes for verb in sorted(found.methods_of(wrapper))]
    if method is not None:
        ways = [way for way in ways if way[1] == method.upper()]
    else:
        ways = [way for way in ways if way[1] not in _BESIDE] or ways
    if not ways:
        known = sorted({verb for found in routes for verb in found.methods_of(wrapper)})
        raise UsageError(
            f"step.invoke({id!r}): {described.name} does not answer {method}: choose one of "
            f"{', '.join(known)} as method="
        )
    if len(ways) > 1:  # the route whose path takes the most of what is given
        fitting = [way for way in ways if way[0].convertors.keys() <= params.keys()] or ways
        most = max(len(found.convertors) for found, _ in fitting)
        ways = [way for way in fitting if len(way[0].convertors) == most]
    if len(ways) > 1:
        names = ", ".join(f"{verb} {found.template}" for found, verb in ways)
        advice = (
            "say which one with method="
            if len({found.template for found, _ in ways}) == 1
            else "give each route a handler of its own"
        )
        raise UsageError(
            f"step.invoke({id!r}): {described.name} can be asked in several ways ({names}): "
            f"{advice}"
        )
    return ways[0]


def _fill(id: str, found: Found, params: Params) -> str:
    """The path, decoded, as it stands in an ASGI scope."""

    def text(match: re.Match[str]) -> str:
        name = match[1]
        if name not in params:
            raise UsageError(
                f"step.invoke({id!r}): the path {found.template} needs {name!r}: "
                f"params={{{name!r}: …}}"
            )
        try:
            value = found.convertors[name].to_string(_bare(params[name]))
            if printable(value) != value:
                raise ValueError("it is not valid Unicode")
            return value
        except (AssertionError, TypeError, ValueError) as error:
            raise UsageError(
                f"step.invoke({id!r}): {params[name]!r} cannot be {name!r} in the path "
                f"{found.template}: {error}"
            ) from None

    return _PARAMETER.sub(text, found.template)


def _query(id: str, found: Found, params: Params) -> bytes:
    """What is no part of the path. A list gives its name several times, None is left out."""
    pairs: list[tuple[str, str]] = []
    for name, value in params.items():
        if name in found.convertors:
            continue
        several = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        for item in map(_bare, value if several else (value,)):
            if isinstance(item, bool):
                pairs.append((name, "true" if item else "false"))
            elif isinstance(item, Collection) and not isinstance(item, str):
                raise UsageError(
                    f"step.invoke({id!r}): params[{name!r}] is {item!r}, which has no place in a "
                    "query: give a text or a number, or send it as json="
                )
            elif item is not None:
                pairs.append((name, str(item)))
    return urlencode(pairs).encode("ascii")


def _bare(value: Any) -> Any:
    """What stands for a member of an enumeration in a URL, as in JSON: its value."""
    return value.value if isinstance(value, Enum) else value


def _headers(id: str, parents: Headers, given: Mapping[str, str] | None, extra: Headers) -> Headers:
    own: Headers = []
    for name, value in (given or {}).items():
        if name.lower() in _OURS:
            raise UsageError(f"step.invoke({id!r}): the header {name!r} cannot be chosen")
        try:
            own.append((name.lower().encode("ascii"), value.encode("latin-1")))
            is_header = _NAME.fullmatch(name) and not _NO_VALUE.search(value)
        except (UnicodeEncodeError, AttributeError, TypeError):
            is_header = False
        if not is_header:
            raise UsageError(
                f"step.invoke({id!r}): {name!r}: {value!r} cannot be a header: a name has letters, "
                "digits and dashes, a value is plain text in one line"
            )
    named = {name for name, _ in own}
    extra = [pair for pair in extra if pair[0] not in named]
    inherited = [pair for pair in parents if pair[0] in _INHERITED and pair[0] not in named]
    return [*inherited, *extra, *own]


def _body(id: str, json: Any) -> tuple[bytes, Headers]:
    if json is None:
        return b"", []
    try:
        body = encode(json)
    except NotJsonError as error:
        body = _encode_with_pydantic(id, json, error)
    length = str(len(body)).encode()
    return body, [(b"content-type", b"application/json"), (b"content-length", length)]


def _encode_with_pydantic(id: str, json: Any, problem: NotJsonError) -> bytes:
    """Models, dataclasses, and what has a usual form in JSON: as their own types say, aliases
    too, as a client would send them."""
    import pydantic_core

    try:
        body = pydantic_core.to_json(json, by_alias=True)
        decode(body)  # it would write NaN
        return body
    except (pydantic_core.PydanticSerializationError, ValueError):
        raise StepValueError(f"step.invoke({id!r}): json= cannot be sent: {problem}") from None


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def _pair(address: Any) -> Any:
    return tuple(address) if address else None
