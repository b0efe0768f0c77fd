"""A small SDK that speaks as Inngest's does, and a server on a virtual clock that it speaks to.

A handler is a generator. It yields one op, or a list of them that go on in parallel, and gets their
results; it sees the errors of its steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
from ulid import ULID

from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.app import create_app
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.server import Server
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.base import Store

ORIGIN = "http://localhost:3000"
COMPLETE = hash_name("complete")
SDK_HEADERS = {"x-inngest-sdk": "inngest-js:v4.24.0", "x-inngest-req-version": "2"}

Op = dict[str, Any]
Handler = Callable[[], Generator[Any, Any, Any]]


class StepFailedError(Exception):
    """A step of a handler has failed for good."""


class NonRetriableError(Exception):
    """Shall not be tried again."""


@dataclass
class RunStep:
    """A step that runs a body."""

    name: str
    body: Callable[[], Any]


def op(code: str, name: str, **fields: Any) -> Op:
    """An op as it goes over the wire."""
    return {
        "op": code,
        "id": hash_name(name),
        "name": name,
        "displayName": name,
        "userland": {"id": name},
        "opts": {},
        **fields,
    }


def step_run(name: str, data: Any) -> Op:
    return op("StepRun", name, data=data, timing={"a": 1, "b": 2_000_000})


def step_error(name: str, message: str, code: str = "StepError") -> Op:
    return op(code, name, error={"name": "Error", "message": message, "stack": "secret.js:1"})


def sleep(name: str, duration: str) -> Op:
    return {**op("Sleep", name), "name": duration}


def wait(name: str, event: str, **opts: Any) -> Op:
    return {**op("WaitForEvent", name, opts={"timeout": "1h", **opts}), "name": event}


def complete(body: str, status: int = 200, **headers: str) -> Op:
    result = {"status": status, "headers": headers, "body": body, "version": 2}
    return {"id": COMPLETE, "op": "RunComplete", "data": result}


def nothing() -> Generator[Any, Any, Any]:
    """A handler without steps."""
    yield from ()


class App:
    """An application, at the far end of the network."""

    def __init__(self) -> None:
        self.handler: Handler = nothing
        self.client: httpx.AsyncClient
        self.requests: list[httpx.Request] = []
        self.replies: list[Callable[[httpx.Request], httpx.Response]] = []
        """What comes instead of the handler's replies, the next one first."""
        self.bodies: list[str] = []
        """The bodies of steps that began."""

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """Serve a re-entry."""
        self.requests.append(request)
        if self.replies:
            return self.replies.pop(0)(request)
        run_id = request.headers["x-run-id"]
        state = await self.client.get(f"/v0/runs/{run_id}/actions")
        assert state.status_code == 200, state.text
        target = request.headers.get("x-inngest-step-id")
        plans = "x-inngest-force-step-plan" in request.headers
        status, value, more = self._enter(state.json(), target, plans)
        return httpx.Response(status, json=value, headers={**SDK_HEADERS, **more})

    def _enter(
        self, memo: dict[str, Any], target: str | None, plans: bool
    ) -> tuple[int, Any, dict[str, str]]:
        handler = self.handler()
        wanted: Any = None
        error: Exception | None = None
        while True:
            try:
                wanted = handler.throw(error) if error else handler.send(wanted)
            except StopIteration as done:
                return 206, complete(orjson.dumps(done.value).decode()), {}
            except (StepFailedError, NonRetriableError) as failed:
                return 400, _form(failed), {"x-inngest-no-retry": "true"}
            except Exception as failed:
                return 500, _form(failed), {"x-inngest-no-retry": "false"}
            several = wanted if isinstance(wanted, list) else [wanted]
            found = [one for one in several if _id(one) not in memo]
            if found:
                return self._found(found, target, plans)
            values = [memo[_id(one)] for one in several]
            failures = [v for v in values if isinstance(v, dict) and v.keys() == {"error"}]
            error = StepFailedError(failures[0]["error"]["message"]) if failures else None
            results = [v["data"] if _is_plain(v) else v for v in values]
            wanted = results if isinstance(wanted, list) else results[0]

    def _found(
        self, found: list[Any], target: str | None, plans: bool
    ) -> tuple[int, Any, dict[str, str]]:
        if target is not None:
            found = [one for one in found if _id(one) == target]
        only = found[0] if len(found) == 1 else None
        if isinstance(only, RunStep) and (target is not None or not plans):
            return self._run(only)
        return 206, [op("StepPlanned", o.name) if isinstance(o, RunStep) else o for o in found], {}

    def _run(self, step: RunStep) -> tuple[int, Any, dict[str, str]]:
        self.bodies.append(step.name)
        try:
            return 206, [step_run(step.name, step.body())], {}
        except NonRetriableError as error:
            return 206, [step_error(step.name, str(error), "StepFailed")], {}
        except Exception as error:
            return 206, [step_error(step.name, str(error))], {}


class Network(httpx.AsyncBaseTransport):
    """Leads to one application, whatever the address."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        reply = await self._app.answer(request)
        assert isinstance(reply.stream, httpx.SyncByteStream)
        stream = httpx.ByteStream(b"".join(reply.stream))
        return httpx.Response(reply.status_code, headers=reply.headers, stream=stream)


def _id(one: Any) -> str:
    return hash_name(one.name) if isinstance(one, RunStep) else one["id"]


def _is_plain(value: Any) -> bool:
    """Whether a value is a step's result, and not an event."""
    return isinstance(value, dict) and value.keys() == {"data"}


def _form(error: Exception) -> dict[str, Any]:
    return {"name": type(error).__name__, "message": str(error), "__serialized": True}


@dataclass
class World:
    """A server, its application, and whoever talks to the server."""

    server: Server
    client: httpx.AsyncClient
    app: App
    clock: VirtualClock
    run_id: str = field(default_factory=lambda: str(ULID()))

    def event(self, **data: Any) -> dict[str, Any]:
        """The trigger of a new run."""
        request = {
            "content_type": "application/json",
            "domain": ORIGIN,
            "ip": "10.0.0.1",
            "method": "GET",
            "path": "/api/x",
            "query_params": "a=1&b=%20",
            "body": "",
            "fn": "",
        }
        return {"name": "inngest/http.request", "data": {**request, **data}}

    async def begin(self, *steps: Op, event: Any = None, **fields: Any) -> httpx.Response:
        """The first checkpoint of a run."""
        form = {
            "run_id": self.run_id,
            "event": event if event is not None else self.event(),
            "steps": list(steps),
            "request_version": 2,
            "retries": 3,
            **fields,
        }
        return await self.client.post("/v1/checkpoint", json=form, headers=SDK_HEADERS)

    async def steps(self, *steps: Op) -> httpx.Response:
        """A later one."""
        form = {"run_id": self.run_id, "steps": list(steps)}
        return await self.client.post(f"/v1/checkpoint/{self.run_id}/steps", json=form)

    async def actions(self) -> Any:
        return (await self.client.get(f"/v0/runs/{self.run_id}/actions")).json()

    async def status(self) -> Status:
        run = await self.server.host.store.run(self.run_id)
        assert run is not None
        return run.status

    async def settle(self) -> Status:
        """Return when nothing goes on that does not need time to pass."""
        async with asyncio.timeout(5):
            while True:
                await asyncio.sleep(0.001)
                if self.server.host.is_quiet and await self.status() is not Status.READY:
                    return await self.status()

    async def pass_time(self, seconds: float) -> Status:
        """Let time pass."""
        self.clock.move_to(self.clock.now() + int(seconds * 1_000))
        await asyncio.sleep(0.005)
        return await self.settle()

    async def output(self, **options: Any) -> httpx.Response:
        token = self.server.keys.sign_run("output", self.run_id)
        url = f"/v1/http/runs/{self.run_id}/output"
        return await self.client.get(url, params={"token": token}, **options)


@asynccontextmanager
async def world(
    store: Store, clock: VirtualClock, app: App | None = None, **settings: Any
) -> AsyncIterator[World]:
    """A development server, and an application of this machine."""
    app = app or App()
    options = ServerSettings(**{"dev": True, "retry_interval": 1_000, **settings})
    server = Server(options, store, clock, Network(app))
    asgi = httpx.ASGITransport(create_app(server), raise_app_exceptions=False)
    await server.start()
    async with httpx.AsyncClient(transport=asgi, base_url="http://127.0.0.1:8288") as client:
        app.client = client
        try:
            yield World(server, client, app, clock)
        finally:
            await server.stop()
