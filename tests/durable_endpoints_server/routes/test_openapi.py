"""The API's document says what the server does: its routes, and what they answer to anything."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Route

from durable_endpoints.ids import new_run_id
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.ops import StepDone, StepKind
from durable_endpoints.protocol.runs import Complete, NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.app import create_app
from durable_endpoints_server.engine.model import Event
from durable_endpoints_server.inngest.trigger import Trigger
from durable_endpoints_server.realtime import run_token
from durable_endpoints_server.routes.openapi import document, statuses
from durable_endpoints_server.routes.operations import OPERATIONS, Operation
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.sqlite import SqliteStore

EXAMPLES = int(os.environ.get("DURABLE_ENDPOINTS_FUZZ", "500"))
"""How many requests are made. More find more: `DURABLE_ENDPOINTS_FUZZ=100000`."""
PATIENCE = 5.0
"""Seconds for one answer to begin."""


class Site(NamedTuple):
    """A server that has a bit of everything."""

    app: Starlette
    runner: asyncio.Runner
    ids: list[str]
    tokens: list[str]


class Answer(NamedTuple):
    status: int
    content_type: str
    body: bytes


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    path: Path = tmp_path_factory.mktemp("fuzz") / "server.db"
    with asyncio.Runner() as runner:
        server = Server(ServerSettings(dev=True), SqliteStore(path))
        app = create_app(server)
        ids = runner.run(_fill(server))
        tokens = [run_token(server.keys, ids[1]), server.keys.sign_run("output", ids[1])]
        yield Site(app, runner, ids, tokens)
        runner.run(server.stop())


async def _fill(server: Server) -> list[str]:
    """A run that is executed, one that has ended, one of our own SDK, and an event."""
    await server.start()
    ids: list[str] = []
    domain = "http://localhost:3000"
    event = {"name": "e", "id": "e", "data": {"domain": domain, "method": "GET", "path": "/x"}}
    request = Trigger(event, is_base64=False).pack()
    for app in (domain, domain, "shop"):
        new = NewRun(new_run_id(), "GET /x", "", "GET", "/x", request, app=app)
        live = server.host.register(new)
        live.record(StepDone(StepId(hash_name("a"), "a", 0), StepKind.RUN, b"1"))
        await live.acknowledge()
        ids.append(new.id)
        if len(ids) == 2:
            await live.end(Complete(200, StoredResponse(200, [], b"{}").pack()))
    await server.host.events.receive_all([Event("event", "e", b"{}", 0, 0)])
    return [*ids, "event", new_run_id()]


def _routes(app: Starlette) -> Iterator[tuple[Route, str]]:
    for route in app.routes:
        if isinstance(route, Route):
            for method in (route.methods or set()) - {"HEAD"}:
                yield route, method


def test_the_document_has_every_route_and_nothing_else(site: Site) -> None:
    """What differs is to be added to, or taken from, `routes/operations.py`."""
    routes = {(method.lower(), route.path) for route, method in _routes(site.app)}
    told = document()["paths"].items()
    assert {(method, path) for path, forms in told for method in forms} == routes


def test_the_document_is_served(site: Site) -> None:
    answer = site.runner.run(ask(site, "GET", "/openapi.json", b"", [], []))
    assert answer.status == 200
    assert orjson.loads(answer.body)["openapi"] == "3.1.0"


# What anybody may send

_JUNK = st.one_of(st.text(max_size=20), st.sampled_from(["0", "-1", "null", "\0", "../..", "é"]))
_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _JUNK),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
_REQUEST = {"method": "POST", "domain": "http://localhost:3000", "path": "/x", "body": "é"}
_OPS: list[dict[str, Any]] = [
    {"op": "StepRun", "id": hash_name("b"), "name": "b", "data": {"x": 1}, "timing": {"b": 1}},
    {"op": "StepError", "id": hash_name("c"), "error": {"name": "E", "message": "m"}},
    {"op": "Sleep", "id": hash_name("d"), "name": "1s", "opts": {}, "userland": {"index": 1}},
    {"op": "WaitForEvent", "id": hash_name("e"), "opts": {"event": "e", "timeout": "1m"}},
    {"op": "WaitForSignal", "id": hash_name("f"), "opts": {"signal": "s", "timeout": "1m"}},
    {"op": "RunComplete", "id": hash_name("complete"), "data": {"status": 200, "body": "x"}},
]
_CHECKPOINT = {"steps": _OPS, "ts": 1, "generation_id": 1}
_MODELS: dict[str, Any] = {
    "checkpoint": {
        "run_id": "ID",
        "event": {"name": "http", "data": _REQUEST},
        "steps": _OPS[:3],
        "ts": 1_700_000_000_000,
        "retries": 1,
        "idempotency": "k",
    },
    "runs": {
        "run_id": "ID",
        "event": {"name": "http", "data": _REQUEST},
        "steps": _OPS[3:],
    },
    "steps": _CHECKPOINT,
    "async": _CHECKPOINT,
    "{key}": [{"name": "e", "data": {"n": 1}, "id": "i", "ts": 1, "user": {}, "v": "1"}],
    "signals": {"signal": "s", "data": 1},
    "gql": {"query": "run(runID: $x)", "variables": {"x": "ID"}},
    "token": [{"channel": "c", "name": "t", "kind": "run"}],
    "heartbeat": {"process": "p"},
    "apps": {"origin": "http://localhost:3000"},
}
"""Bodies as they should be, by the end of the path."""


@st.composite
def _mutations(draw: st.DrawFn, site: Site, operation: Operation) -> Any:
    """A body as it should be, with some of it replaced, or left out."""
    model = orjson.loads(orjson.dumps(_MODELS.get(operation.path.rpartition("/")[2], {})))
    for _ in range(draw(st.integers(0, 3))):
        place: Any = model
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(st.one_of(_VALUES, _ids(site)))
            break
    return model


@st.composite
def _bodies(draw: st.DrawFn, site: Site, operation: Operation) -> bytes:
    kind = draw(st.sampled_from(["raw", "json", "mutation", "mutation", "mutation", "frames"]))
    if kind == "raw":
        return draw(st.binary(max_size=200))
    if kind == "frames":
        names = st.sampled_from(["inngest.stream", "inngest.commit", "inngest.response", "x"])
        frames = draw(st.lists(st.tuples(names, _VALUES), max_size=3))
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (name.encode(), _dumps(value)) for name, value in frames
        )
    if kind == "mutation":
        run_id = draw(_ids(site)).encode()
        return _dumps(draw(_mutations(site, operation))).replace(b'"ID"', b'"%b"' % run_id)
    return _dumps(draw(_VALUES))


def _dumps(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer, or half a character, that JSON does not hold everywhere
        return repr(value).encode("utf-8", "replace")


def _ids(site: Site) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(site.ids), st.builds(new_run_id))


@st.composite
def _requests(draw: st.DrawFn, site: Site) -> tuple[Operation, str, bytes, Any, list[bytes]]:
    # Those that take something have more to go wrong.
    eager = [operation for operation in OPERATIONS if operation.takes]
    operation = draw(st.sampled_from([*OPERATIONS, *eager * 4]))
    segment = st.one_of(_ids(site), _JUNK.filter(lambda text: text and "/" not in text))
    path = re.sub(r"\{\w+\}", lambda _: draw(segment), operation.path)
    names = [query.name for query in operation.query] or ["x"]
    value = st.one_of(_ids(site), st.sampled_from(site.tokens), _JUNK)
    pairs = draw(st.lists(st.tuples(st.sampled_from(names), value), max_size=4))
    query = urlencode(pairs, errors="replace").encode()
    headers = draw(
        st.dictionaries(
            st.sampled_from(
                [
                    "authorization",
                    "content-type",
                    "last-event-id",
                    "x-inngest-event-id-seed",
                    "x-inngest-sdk",
                    "content-length",
                    "access-control-request-headers",
                    "host",
                ]
            ),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from(
                    [b"Bearer x", b"application/json", b"application/x-www-form-urlencoded", b"7"]
                ),
            ).filter(lambda value: not {10, 13, 0} & set(value)),
            max_size=4,
        )
    )
    body = draw(_bodies(site, operation))
    cut = draw(st.integers(0, len(body)))
    pairs_of_headers = [(name.encode(), value) for name, value in headers.items()]
    return operation, path, query, pairs_of_headers, [body[:cut], body[cut:]]


async def ask(
    site: Site, method: str, path: str, query: bytes, headers: Any, body: list[bytes]
) -> Answer:
    """Send a request, and leave when the answer has begun."""
    messages: list[Any] = []
    begun = asyncio.Event()

    async def pieces() -> AsyncIterator[dict[str, Any]]:
        for piece in body:
            yield {"type": "http.request", "body": piece, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}
        await begun.wait()
        while True:
            yield {"type": "http.disconnect"}

    source = pieces()

    async def receive() -> dict[str, Any]:
        return await anext(source)

    async def send(message: Any) -> None:
        messages.append(message)
        if message["type"] == "http.response.body":
            begun.set()

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": quote(path, errors="replace").encode(),
        "root_path": "",
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8288),
        "state": {},
    }
    async with asyncio.timeout(PATIENCE):
        await site.app(scope, receive, send)
    start = messages[0]
    types = [value.decode() for name, value in start["headers"] if name == b"content-type"]
    content = b"".join(message.get("body", b"") for message in messages[1:])
    return Answer(start["status"], (types or [""])[0].partition(";")[0], content)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="DURABLE_ENDPOINTS_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_is_sent_gets_an_answer_that_the_document_knows(site: Site, data: Any) -> None:
    operation, path, query, headers, body = data.draw(_requests(site))
    answer = site.runner.run(ask(site, operation.method, path, query, headers, body))
    assert answer.status in statuses(operation), answer
    if answer.status in operation.answers:
        assert operation.gives in (answer.content_type, "*/*"), answer
    else:
        error = orjson.loads(answer.body)
        assert error["error"], answer
        assert b"Traceback" not in answer.body
        assert b".py" not in answer.body


@pytest.mark.parametrize("path", ["/", "//", "/e/", "/e/a/b", "/v1/runs/", "/v1/runs/%00/x", "/é"])
def test_a_path_that_leads_nowhere_is_not_found(site: Site, path: str) -> None:
    answer = site.runner.run(ask(site, "GET", path, b"\xff=%ff", [], [b"\xff"]))
    assert answer.status in (404, 405, 307)
    assert answer.status == 307 or orjson.loads(answer.body)["status"] == answer.status


@pytest.mark.parametrize("code", [{}, [], None, 1])
def test_an_op_whose_code_is_no_text_is_refused(site: Site, code: Any) -> None:
    body = orjson.dumps({"steps": [{"op": code, "id": hash_name("b")}]})
    path = f"/v1/checkpoint/{site.ids[0]}/steps"
    assert site.runner.run(ask(site, "POST", path, b"", [], [body])).status == 400
