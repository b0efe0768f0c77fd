"""A double of Inngest's own server, as far as durable endpoints see it, with its weak points.

It does what `protocol/inngest.md` says of the original: a body that is not base64 is refused, a run
is idempotent only while it lives, errors in later checkpoints are swallowed, the request that it
makes to an application has none of the original's headers, and a reply without `x-inngest-sdk`
counts as no reply. It knows nothing of this project.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import uvicorn
from cel import compile as compile_cel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

_LAZY = ("DeferAdd", "DeferAbort")
_SECONDS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1, "ms": 0.001}
_COMPLETE = hashlib.sha1(b"complete").hexdigest()


@dataclass
class Run:
    """A run as the server keeps it."""

    id: str
    event: dict[str, Any]
    attempts: int
    state: dict[str, Any] = field(default_factory=dict)
    pending: set[str] = field(default_factory=set)
    """Steps that were planned, sleep or wait."""
    known: set[str] = field(default_factory=set)
    """Jobs that were enqueued once, and are not a second time."""
    force_plan: bool = False
    status: str = "RUNNING"
    output: Any = None
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass
class Pause:
    """A wait for an event or a signal."""

    run: Run
    op: dict[str, Any]
    event: str = ""
    signal: str = ""
    condition: str = ""


class InngestServer:
    """The double. `interval` is in seconds, and stands for every pause before another try."""

    def __init__(self, signing_key: str = "", interval: float = 0.02) -> None:
        self.signing_key = signing_key
        self.interval = interval
        self.clock = 1.0
        """How many times faster than life sleeps and timeouts pass."""
        self.runs: dict[str, Run] = {}
        self.requests: list[tuple[str, str, Any]] = []
        """What was asked: method, path, and the JSON of its body."""
        self.calls: list[httpx.Request] = []
        """What the application was called with."""
        self.replies: list[httpx.Response] = []
        self.events: list[dict[str, Any]] = []
        self.lose: Callable[[str, Any], bool] = lambda path, body: False
        """Which answers are lost on their way, by path and body. What was asked is done."""
        self.refuse: Callable[[str], bool] = lambda path: False
        """Which requests are answered by 503, and not done."""
        self.url = ""
        self.is_late = False
        """Whether its records of runs are not written yet."""
        self._pauses: list[Pause] = []
        self._seen_events: set[str] = set()
        self._subscribers: dict[str, list[asyncio.Queue[bytes]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._http = httpx.AsyncClient(timeout=30, trust_env=False, verify=False)
        runs = [
            Route(prefix + path, method, methods=[verb])
            for prefix in ("/v1/checkpoint", "/v1/http/runs")
            for path, method, verb in (
                ("", self._new_run, "POST"),
                ("/{id}/steps", self._steps, "POST"),
                ("/{id}/output", self._output, "GET"),
            )
        ]
        self.app = Starlette(
            routes=[
                *runs,
                Route("/v0/runs/{id}/actions", self._actions),
                Route("/v0/runs/{id}/batch", self._batch),
                Route("/v1/runs/{id}", self._run, methods=["GET"]),
                Route("/v1/runs/{id}", self._cancel, methods=["DELETE"]),
                Route("/v1/signals", self._signal, methods=["POST"]),
                Route("/v1/realtime/token", self._realtime_token, methods=["POST"]),
                Route("/v1/realtime/publish/tee", self._tee, methods=["POST"]),
                Route("/v1/realtime/sse", self._sse),
                Route("/e/{key}", self._event, methods=["POST"]),
            ]
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[InngestServer]:
        """Serve on a free port of this machine."""
        async with serving(self) as self.url:
            try:
                yield self
            finally:
                for task in list(self._tasks):
                    task.cancel()
                await self._http.aclose()

    async def ended(self, run_id: str) -> Run:
        """The run, once it has ended."""
        run = self.runs[run_id]
        await asyncio.wait_for(run.over.wait(), 10)
        return run

    # What applications ask

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if self.refuse(path):
            await JSONResponse({"error": "busy", "status": 503}, 503)(scope, receive, send)
            return
        if not self._admits(scope):
            await JSONResponse({"error": "unauthorized", "status": 401}, 401)(scope, receive, send)
            return
        body: Any = None
        if scope["method"] == "POST" and "tee" not in path:
            content = await Request(scope, receive).body()
            try:
                body = json.loads(content)
            except ValueError:
                body = None
            scope["content"], scope["json"] = content, body
        self.requests.append((scope["method"], path, body))
        if self.lose(path, body):
            await self.app(scope, receive, _nothing)
            head = {"type": "http.response.start", "status": 200, "headers": []}
            await send({**head, "headers": [(b"content-length", b"100")]})
            return
        await self.app(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        path = scope["path"]
        if not self.signing_key or path.endswith(("/output", "/sse")) or path.startswith("/e/"):
            return True
        shown = dict(scope["headers"]).get(b"authorization", b"").decode()
        key = re.sub(r"^signkey-\w+-", "", self.signing_key)
        try:
            raw = bytes.fromhex(key)
        except ValueError:
            raw = key.encode()
        hashed = hashlib.sha256(raw).hexdigest()
        return re.sub(r"^signkey-\w+-", "", shown.removeprefix("Bearer ")) in (key, hashed)

    async def _new_run(self, request: Request) -> Response:
        body = request.scope["json"]
        data = body["event"]["data"]
        try:
            content = base64.b64decode(data["body"], validate=True)
        except (ValueError, TypeError):
            return _error(400, "Invalid request body")
        run = self.runs.get(body["run_id"])
        if run is not None and run.over.is_set():
            return _error(500, "Failed to schedule run")
        if run is None:
            event = {**body["event"], "data": {**data, "content": content}}
            run = Run(body["run_id"], event, body.get("retries", 0) + 1)
            self.runs[run.id] = run
        app_id = uuid.uuid5(uuid.NAMESPACE_OID, data["domain"])
        answer = {
            "run_id": run.id,
            "app_id": str(app_id),
            "fn_id": str(uuid.uuid5(app_id, data["fn"] or f"{data['method']} {data['path']}")),
            "realtime_token": _jwt({"topics": [{"channel": run.id}]}),
        }
        if body.get("steps"):
            answer["token"] = _jwt({"sub": "run-claim", "RunID": run.id})
            await self._checkpoint(run, body["steps"])
        return JSONResponse({"data": answer, "metadata": {"fetched_at": _now()}})

    async def _steps(self, request: Request) -> Response:
        body = request.scope["json"]
        run = self.runs.get(request.path_params["id"])
        if run is not None and not run.over.is_set():
            uuid.UUID(body["fn_id"]), uuid.UUID(body["app_id"])
            await self._checkpoint(run, body["steps"])
        return Response()

    async def _output(self, request: Request) -> Response:
        claims = _claims(request.query_params.get("token", ""))
        if claims is None or claims.get("sub") != "run-claim":
            return _error(401, "invalid token")
        run = self.runs[claims["RunID"]]
        while not run.over.is_set():
            await asyncio.sleep(0.01)
        output = run.output
        if isinstance(output, dict) and output.get("op") == "RunComplete":
            output = output["data"]
        if isinstance(output, dict) and isinstance(output.get("status"), int):
            return Response(output["body"], output["status"], output["headers"])
        return JSONResponse(output)

    async def _actions(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["id"])
        if run is None or run.over.is_set():
            return _error(410, "run state is gone")
        return JSONResponse(dict(sorted(run.state.items())))

    async def _batch(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["id"])
        if run is None or run.over.is_set():
            return _error(410, "run state is gone")
        return JSONResponse([{"name": run.event["name"], "data": {}, "id": "1", "ts": 0}])

    async def _run(self, request: Request) -> Response:
        run = self.runs.get(request.path_params["id"])
        if run is None or self.is_late:
            return _error(500, "Unable to load function run")
        output = json.dumps(run.output) if run.output is not None else None
        data = {"run_id": run.id, "status": run.status.capitalize(), "output": output}
        return JSONResponse({"data": data})

    async def _cancel(self, request: Request) -> Response:
        self._end(self.runs[request.path_params["id"]], "CANCELLED", None)
        return Response()

    async def _event(self, request: Request) -> Response:
        events = request.scope["json"]
        for event in events if isinstance(events, list) else [events]:
            event = {"ts": int(time.time() * 1000), "id": str(uuid.uuid4()), **event}
            if event["id"] in self._seen_events:
                continue
            self._seen_events.add(event["id"])
            self.events.append(event)
            for pause in [p for p in self._pauses if p.event == event["name"]]:
                if _holds(pause.condition, event):
                    self._resolve(pause, event)
        return JSONResponse({"ids": ["0" * 26], "status": 200})

    async def _signal(self, request: Request) -> Response:
        body = request.scope["json"]
        for pause in self._pauses:
            if pause.signal == body["signal"]:
                self._resolve(pause, {"data": {"signal": body["signal"], "data": body["data"]}})
                return JSONResponse({"data": {"run_id": pause.run.id}})
        return _error(404, "no run waits for this signal")

    # Realtime

    async def _realtime_token(self, request: Request) -> Response:
        return JSONResponse({"jwt": _jwt({"topics": request.scope["json"]})}, 201)

    async def _tee(self, request: Request) -> Response:
        channel = request.query_params["channel"]
        async for piece in request.stream():
            for queue in self._subscribers.get(channel, []):
                queue.put_nowait(piece)
        return Response()

    async def _sse(self, request: Request) -> Response:
        claims = _claims(request.query_params.get("token", ""))
        if claims is None:
            return _error(401, "invalid token")
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        self._subscribers.setdefault(claims["topics"][0]["channel"], []).append(queue)

        async def frames() -> AsyncIterator[bytes]:
            yield b":\n\n"
            while True:
                yield await queue.get()

        return StreamingResponse(frames(), media_type="text/event-stream")

    # What it makes of steps

    async def _checkpoint(self, run: Run, ops: list[dict[str, Any]]) -> None:
        """Steps of the sync phase."""
        complete = next((op for op in ops if op["op"] == "RunComplete"), None)
        if complete is not None:
            self._end(run, "COMPLETED", complete["data"])
            return
        if sum(op["op"] not in _LAZY for op in ops) > 1:
            run.force_plan = True
        for op in sorted(ops, key=lambda op: op["op"] != "WaitForEvent"):
            if "event." in (op.get("opts") or {}).get("if", ""):
                raise IndexError("the trigger event is not there, as at the original")
            if op["op"] in ("StepRun", "Step"):
                run.state.setdefault(op["id"], {"data": op["data"]})
            elif op["op"] == "StepError" and run.attempts > 1:
                self._spawn(self._job(run, f"retry {op['id']}", self.interval, attempt=1))
            elif op["op"] in ("StepError", "StepFailed"):
                run.state.setdefault(op["id"], {"error": op["error"]})
                self._spawn(self._job(run, f"failed {op['id']}", 0))
            else:
                self._open(run, op)

    def _open(self, run: Run, op: dict[str, Any]) -> None:
        """An operation that ends later."""
        key, opts = op["id"], op.get("opts") or {}
        if key in run.known or key in run.state:
            return
        run.known.add(key)
        run.pending.add(key)
        if op["op"] == "StepPlanned":
            self._spawn(self._job(run, f"plan {key}", 0, step=key, op=op))
        elif op["op"] == "Sleep":
            self._spawn(self._wake(run, op, self._seconds(op["name"])))
        elif op["op"] in ("WaitForEvent", "WaitForSignal"):
            event, signal = opts.get("event", op["name"]), opts.get("signal", "")
            pause = Pause(run, op, "" if signal else event, signal, opts.get("if", ""))
            self._pauses.append(pause)
            self._spawn(self._time_out(pause, self._seconds(opts["timeout"])))
        else:
            raise AssertionError(f"an operation that is not expected: {op}")

    async def _wake(self, run: Run, op: dict[str, Any], delay: float) -> None:
        await asyncio.sleep(delay)
        self._finish(run, op, None)

    async def _time_out(self, pause: Pause, delay: float) -> None:
        await asyncio.sleep(delay)
        if pause in self._pauses:
            self._resolve(pause, None)

    def _resolve(self, pause: Pause, value: Any) -> None:
        self._pauses.remove(pause)
        self._finish(pause.run, pause.op, value)

    def _finish(self, run: Run, op: dict[str, Any], value: Any) -> None:
        """Something that was pending has its value. The last of a group wakes the run, or each of
        one that is a race."""
        run.state.setdefault(op["id"], value)
        run.pending.discard(op["id"])
        is_race = (op.get("opts") or {}).get("parallelMode") == "race"
        if not run.pending or is_race:
            if not run.pending:
                run.force_plan = False
            self._spawn(self._job(run, f"discover {uuid.uuid4()}", 0))

    def _end(self, run: Run, status: str, output: Any) -> None:
        if not run.over.is_set():
            run.status, run.output = status, output
            self._pauses = [pause for pause in self._pauses if pause.run is not run]
            run.over.set()

    # Calling the application

    async def _job(
        self,
        run: Run,
        name: str,
        delay: float,
        attempt: int = 0,
        step: str = "",
        op: dict[str, Any] | None = None,
    ) -> None:
        """One item of the queue: a step, or finding out what comes next."""
        while True:
            await asyncio.sleep(delay)
            if run.over.is_set():
                return
            attempt += 1
            reply = await self._call(run, step)
            delay = self.interval
            if reply is None or "x-inngest-sdk" not in reply.headers:
                if attempt >= run.attempts:
                    self._end(run, "FAILED", {"error": {"message": "no reply of an SDK"}})
                    return
                continue
            if "retry-after" in reply.headers:
                delay = float(reply.headers["retry-after"]) / self.clock
            if reply.status_code == 206:
                answer = reply.json()
                if isinstance(answer, dict):
                    self._end(run, "COMPLETED", answer)
                    return
                if not self._take(run, answer, attempt, op):
                    return
            elif reply.headers.get("x-inngest-no-retry") == "true":
                self._end(run, "FAILED", {"error": reply.json()})
                return
            elif attempt >= run.attempts:
                return  # and the run is stuck, as it is at the original

    def _take(
        self, run: Run, ops: list[dict[str, Any]], attempt: int, planned: dict[str, Any] | None
    ) -> bool:
        """What a reply says. Whether to call once more for the same."""
        if len(ops) == 1 and ops[0]["op"] == "StepError" and attempt < run.attempts:
            return True
        if len(ops) == 1 and ops[0]["op"] in ("StepRun", "StepError", "StepFailed"):
            (op,) = ops
            value = {"data": op["data"]} if op["op"] == "StepRun" else {"error": op["error"]}
            self._finish(run, {**op, "opts": (planned or op).get("opts")}, value)
            return False
        if len(ops) > 1:
            run.force_plan = True
        for op in ops:
            self._open(run, op)
        return False

    async def _call(self, run: Run, step: str) -> httpx.Response | None:
        data = run.event["data"]
        url = data["domain"] + data["path"]
        if data["query_params"]:
            url += f"?{data['query_params']}"
        body = data["content"]
        headers = {
            "content-type": data["content_type"] or "application/json",
            "x-inngest-signature": self.sign(body),
            "x-run-id": run.id,
            "x-request-id": str(uuid.uuid4()),
            "x-inngest-req-version": "2",
        }
        if run.force_plan:
            headers["x-inngest-force-step-plan"] = "true"
        if step:
            headers["x-inngest-step-id"] = step
        request = self._http.build_request(data["method"], url, content=body, headers=headers)
        self.calls.append(request)
        try:
            reply = await self._http.send(request)
        except httpx.HTTPError:
            return None
        self.replies.append(reply)
        return reply

    def sign(self, body: bytes) -> str:
        """The signature of a call."""
        if not self.signing_key:
            return ""
        now = str(int(time.time()))
        key = re.sub(r"^signkey-\w+-", "", self.signing_key).encode()
        digest = hmac.new(key, body + now.encode(), hashlib.sha256).hexdigest()
        return f"t={now}&s={digest}"

    def _seconds(self, text: str) -> float:
        if "T" in text:
            due = datetime.fromisoformat(text).timestamp()
            return max(0.0, due - time.time()) / self.clock
        parts = re.findall(r"(\d+)(ms|[wdhms])", text)
        assert parts, f"no duration: {text!r}"
        return sum(int(n) * _SECONDS[unit] for n, unit in parts) / self.clock

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve an ASGI application on a free port of this machine, with its lifespan."""
    config = uvicorn.Config(
        app,
        "127.0.0.1",
        0,
        log_level="error",
        timeout_graceful_shutdown=1,
        interface="asgi3",
        ws="none",
    )
    server = uvicorn.Server(config)
    server.capture_signals = lambda: _no_signals()  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve())
    while not server.started:
        if task.done():
            task.result()
            raise RuntimeError("the server did not start")
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 5)


class _no_signals:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


async def _nothing(message: Any) -> None: ...


def _holds(condition: str, event: dict[str, Any]) -> bool:
    return not condition or compile_cel(condition).execute({"async": event}) is True


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message, "status": status}, status)


def _now() -> str:
    return datetime.now().astimezone().isoformat()


_SECRET = b"dev-mode-is-not-secret"


def _jwt(claims: dict[str, Any]) -> str:
    parts = [_b64({"alg": "HS256", "typ": "JWT"}), _b64({**claims, "exp": time.time() + 3600})]
    digest = hmac.new(_SECRET, ".".join(parts).encode(), hashlib.sha256).digest()
    return ".".join([*parts, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()])


def _b64(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _claims(token: str) -> dict[str, Any] | None:
    head, _, digest = token.rpartition(".")
    made = hmac.new(_SECRET, head.encode(), hashlib.sha256).digest()
    if base64.urlsafe_b64encode(made).rstrip(b"=").decode() != digest:
        return None
    claims = head.partition(".")[2]
    return dict(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4))))
