"""A server that speaks the wire of durable streams from scripts, and misbehaves as they say.

It stands for an application with durable endpoints: real sockets on two origins, a page, `/wait`,
and one endpoint for each function in `scripts.py`. What a run streams goes into its log; a
connection is a reader of that log, which a script can end, cut, or leave in silence.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import durable_endpoints.browser

HERE = Path(__file__).parent
CLIENT = Path(durable_endpoints.browser.__file__).with_name("client.js")

Script = Callable[["Run"], Awaitable[None]]


class Cut(Exception):
    """Makes uvicorn drop the connection in the middle of a response."""


class Drop(Response):
    """No response: the connection is reset."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle: Any = receive.__self__  # type: ignore[attr-defined]
        cycle.transport.abort()
        await asyncio.sleep(0.01)  # until uvicorn knows, and does not try a 500


@dataclass(frozen=True)
class Frame:
    """One record of a run's log."""

    position: int | None
    event: str
    data: dict[str, Any]

    def encode(self) -> bytes:
        number = "" if self.position is None else f"id: {self.position}\n"
        text = json.dumps(self.data, ensure_ascii=False, separators=(",", ":"))
        return f"{number}event: {self.event}\ndata: {text}\n\n".encode()


Reader = asyncio.Queue[bytes | None | type[Cut]]
"""What a connection has still to send: bytes, None for its end, or Cut."""


@dataclass(eq=False)
class Run:
    """One run, and what its script can do."""

    site: Site
    id: str
    base_url: str
    log: list[Frame] = field(default_factory=list)
    readers: list[Reader] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    redirected: bool = False

    @property
    def path(self) -> str:
        return f"/wait?runId={self.id}&token=t%2Bk{self.id}"

    def push(self, data: Any, step: str | None = None, cut: int | None = None) -> None:
        """Stream a chunk; with `cut`, the connections break after so many bytes of its frame."""
        self._append("inngest.stream", {"data": data, **(_named(step) if step else {})}, cut)

    def report(self, what: str, data: Any, step: str | None = None) -> None:
        """Progress, or a line of the log."""
        self._append(f"durable.{what}", {"data": data, **(_named(step) if step else {})}, None)

    def commit(self, step: str | None = None, cut: int | None = None) -> None:
        self._append("inngest.commit", _named(step), cut)
        if not self.redirected:
            self.redirected = True
            url = f"{self.base_url}{self.path}&after=sync"
            self.send(Frame(None, "inngest.redirect_info", {"runId": self.id, "url": url}))

    def rollback(self, step: str | None = None, cut: int | None = None) -> None:
        self._append("inngest.rollback", _named(step), cut)

    def respond(self, body: bytes | str = "", status: int = 200, **more: Any) -> None:
        """The end. `more`: headers, headerList."""
        response: dict[str, Any] = {"body": body, "statusCode": status, "headers": {}, **more}
        if isinstance(body, bytes):
            response |= {"body": "", "bodyBase64": base64.b64encode(body).decode()}
        outcome = "succeeded" if status < 400 else "failed"
        self._append("inngest.response", {"status": outcome, "response": response})
        self.leave()

    def send(self, frame: Frame) -> None:
        """A frame that is in no log."""
        self._offer(frame.encode())

    def beat(self) -> None:
        self._offer(b": heartbeat\n\n")

    def leave(self) -> None:
        """End all streams in good order; the run may go on."""
        self._offer(None)
        self.readers.clear()

    def cut(self) -> None:
        """Break all connections."""
        self._offer(Cut)
        self.readers.clear()

    async def reader(self) -> None:
        """Somebody is connected."""
        while not self.readers:
            await asyncio.sleep(0.005)

    async def gate(self, name: str) -> None:
        """Wait until the test opens it."""
        await self.site.gate(name).wait()

    @property
    def ended(self) -> bool:
        return bool(self.log) and self.log[-1].event == "inngest.response"

    def read(self, position: int) -> Reader:
        """What comes after a position, without chunks that were rolled back meanwhile."""
        reader: Reader = asyncio.Queue()
        reader.put_nowait(Frame(position, "inngest.metadata", {"runId": self.id}).encode())
        for frame in self.log:
            if frame.position is not None and frame.position > position and not self._gone(frame):
                reader.put_nowait(frame.encode())
        if self.ended:
            reader.put_nowait(None)
        else:
            self.readers.append(reader)
        return reader

    def _gone(self, chunk: Frame) -> bool:
        if chunk.event != "inngest.stream":
            return False
        step = chunk.data.get("hashedStepId")
        later = self.log[self.log.index(chunk) :]
        ends = [f.event for f in later if f is not chunk and _settles(f, step)]
        return bool(ends) and ends[0] == "inngest.rollback"

    def _append(self, event: str, data: dict[str, Any], cut: int | None = None) -> None:
        frame = Frame(len(self.log) + 1, event, data)
        self.log.append(frame)
        self._offer(frame.encode()[:cut])
        if cut is not None:
            self.cut()

    def _offer(self, item: bytes | type[Cut] | None) -> None:
        for reader in self.readers:
            reader.put_nowait(item)


def _named(step: str | None) -> dict[str, Any]:
    return {"hashedStepId": sha1(step.encode()).hexdigest() if step else None}


def _settles(frame: Frame, step: str | None) -> bool:
    settling = frame.event in ("inngest.commit", "inngest.rollback")
    return settling and frame.data["hashedStepId"] == step


@dataclass
class Site:
    """Two origins of one application. Tests look at what happened there, and open gates."""

    scripts: dict[str, Script]
    answers: dict[str, Callable[[Request, int], Response | None]]
    """Endpoints that answer without a stream, or, for None, go on with the script of that name."""
    url: str = ""
    other_url: str = ""
    runs: list[Run] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    _gates: dict[str, asyncio.Event] = field(default_factory=dict)
    _by_key: dict[str, Run] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop | None = None

    def open(self, gate: str) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self.gate(gate).set)

    def gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def forget(self) -> None:
        """Begin a test."""
        for memory in (self.runs, self.requests, self._gates, self._by_key):
            memory.clear()

    def seen(self, method: str, path: str) -> list[Request]:
        return [r for r in self.requests if (r.method, r.url.path) == (method, path)]

    def application(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/page", self._page),
                Route("/wait/client.js", self._client),
                Route("/wait", self._wait, methods=["GET", "DELETE", "OPTIONS"]),
                Route("/{name}", self._endpoint, methods=["GET", "POST", "OPTIONS"]),
            ]
        )

    async def _page(self, request: Request) -> Response:
        return FileResponse(HERE / "page.html")

    async def _client(self, request: Request) -> Response:
        return FileResponse(CLIENT, media_type="text/javascript")

    async def _endpoint(self, request: Request) -> Response:
        self._loop = asyncio.get_running_loop()
        self.requests.append(request)
        name = request.path_params["name"]
        response = self._answer(request, name)
        response.headers.update(CORS.get(request.query_params.get("cors", ""), {}))
        return response

    def _answer(self, request: Request, name: str) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204)
        turn = len(self.seen(request.method, request.url.path))
        plain = self.answers[name](request, turn) if name in self.answers else None
        if plain is not None:
            return plain
        if name not in self.scripts:
            return JSONResponse({"error": "not_found"}, 404)
        run = self._run_of(request, self.scripts[name])
        if turn <= int(request.query_params.get("drop", 0)):
            return Drop()
        if "redirect" in request.query_params:
            return Response(status_code=303, headers={"location": run.path})
        response = self._stream(run, int(request.headers.get("last-event-id", 0)))
        response.headers["durable-run-url"] = run.path
        return response

    def _run_of(self, request: Request, script: Script) -> Run:
        key = request.headers.get("idempotency-key")
        if key in self._by_key:
            return self._by_key[key]
        run = Run(self, f"01J{len(self.runs):023}", str(request.base_url).rstrip("/"))
        self.runs.append(run)
        if key:
            self._by_key[key] = run
        run.task = asyncio.create_task(self._play(run, script))
        return run

    async def _play(self, run: Run, script: Script) -> None:
        await run.reader()
        await script(run)

    async def _wait(self, request: Request) -> Response:
        self.requests.append(request)
        response = self._at_wait(request)
        response.headers.update(CORS["open"])
        return response

    def _at_wait(self, request: Request) -> Response:
        if request.method == "OPTIONS":
            return Response(status_code=204)
        query = request.query_params
        run = next((run for run in self.runs if run.id == query.get("runId")), None)
        if run is None or query.get("token") != f"t+k{run.id}":
            return JSONResponse({"error": "bad_token", "detail": "Not its token."}, 401)
        if request.method == "GET":
            return self._stream(run, int(query.get("from", 0)))
        if run.ended:
            return JSONResponse({"error": "ended", "detail": "It has ended."}, 409)
        assert run.task is not None
        run.task.cancel()
        run.respond('{"error":"cancelled"}', 409)
        return JSONResponse({"run_id": run.id, "status": "cancelled"})

    def _stream(self, run: Run, position: int) -> Response:
        async def send() -> AsyncIterator[bytes]:
            while (item := await reader.get()) is not None:
                if not isinstance(item, bytes):
                    raise Cut
                yield item

        reader = run.read(position)
        headers = {"cache-control": "no-store", "durable-run-id": run.id}
        return StreamingResponse(send(), 200, headers, "text/event-stream")


CORS: dict[str, dict[str, str]] = {
    "open": {
        "access-control-allow-origin": "*",
        "access-control-allow-headers": "*",
        "access-control-allow-methods": "*",
        "access-control-expose-headers": "*",
    },
    "hidden": {
        "access-control-allow-origin": "*",
        "access-control-allow-headers": "idempotency-key, last-event-id",
    },
    "simple": {"access-control-allow-origin": "*"},
}
"""How an endpoint answers other origins, by its query parameter `cors`."""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Run it in a thread, because Playwright's synchronous interface holds this one's loop."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    site.url, site.other_url = (f"http://127.0.0.1:{s.getsockname()[1]}" for s in sockets)
    config = uvicorn.Config(
        site.application(), log_config=None, log_level=100, lifespan="off", ws="none"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(sockets,))
    thread.start()
    try:
        yield site
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
