"""An application that does everything that a run can do, its clients, and what they saw when.

*When* is a position in the record of what SQLite did to its files.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack
from unittest.mock import patch

import httpx
from fastapi import FastAPI

from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_event,
    send_signal,
    step,
    stream,
)
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.client import Chunk, Commit, Rollback, open_stream
from durable_endpoints.client.events import StreamEvent
from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.settings import SettingsArguments
from durable_endpoints.testing.lifespan import running
from durable_endpoints_server.settings import ServerSettings
from durable_endpoints_server.store.sqlite import SqliteStore, Synchronous
from tests.durable_endpoints_server.routes.serving import serving

Place = Literal["embedded", "server"]
"""Where runs are kept."""

_KEY = "a key for tests, and for nothing else"
_LEASE = 1_000
"""Milliseconds after which a server gives the runs of an application to another one."""
ORDERS = [f"order-{n}" for n in range(3)]
STORIES = [f"story-{n}" for n in range(3)]
OTHERS = ["background-0", "family-0", "asking-0", "hearing-0"]
TOLD = ("asking", "hearing")
"""Kinds of runs that wait for somebody outside."""
STEPS = {
    "order": ("first", "pair", "last"),
    "background": ("first", "pair", "last"),
    "family": ("before", "after"),
    "asking": ("before", "after"),
    "hearing": ("before", "after"),
    "story": ("one", "two"),
}
"""The steps of each endpoint, in the order of their bodies."""


class Body(NamedTuple):
    """A step's body began."""

    at: int
    run: str
    step: str


class Answer(NamedTuple):
    """A client has the last byte of the answer."""

    at: int
    run: str
    text: str


class Frame(NamedTuple):
    """A reader of a stream has got something."""

    at: int
    run: str
    event: StreamEvent
    url: str


class Seen:
    """Everything that was seen from outside the engine."""

    def __init__(self, now: Callable[[], int] = lambda: 0) -> None:
        self._now = now
        self.bodies: list[Body] = []
        self.answers: list[Answer] = []
        self.frames: list[Frame] = []
        self.sent: dict[str, int] = {}
        """When the event or signal that a run waits for was acknowledged."""

    def body(self, run: str, name: str) -> None:
        self.bodies.append(Body(self._now(), run, name))

    def answer(self, run: str, text: str) -> None:
        self.answers.append(Answer(self._now(), run, text))

    def frame(self, run: str, event: StreamEvent, url: str) -> None:
        self.frames.append(Frame(self._now(), run, event, url))

    def event(self, run: str) -> None:
        self.sent[run] = self._now()


def kind_of(run: str) -> str:
    return run.partition("-")[0]


def expected(run: str) -> str:
    """What the client of a run gets, whatever happens on the way."""
    return {
        "order": f'"{run}: [1,2,3] heard"',
        "background": f'"{run}: [1,2,3]"',
        "family": f'"{run}: order-of-{run}: [1,2,3] heard"',
        "asking": f'"{run}: yes"',
        "hearing": f'"{run}: yes"',
        "story": f'"{text_of(run)}"',
    }[kind_of(run)]


def text_of(run: str) -> str:
    """What the readers of a story end up with."""
    return "".join(f"[{run} {part}]" for part in ("title", *_PARTS, "between", *_PARTS, "end"))


_PARTS = tuple(str(n) for n in range(5))


def application(seen: Seen, **where: Unpack[SettingsArguments]) -> FastAPI:
    """`where` its runs are kept."""
    app = FastAPI()
    settings: SettingsArguments = {
        "signing_key": _KEY,
        "sealing_key": _KEY,
        "retry_base": "2ms",
        "drain_timeout": "50ms",
        **where,
    }
    app.add_middleware(DurableEndpointsMiddleware, **settings)
    app.mount("/wait", endpoint_proxy())

    def once(run: str, name: str, value: Any) -> Any:
        seen.body(run, name)
        return value

    async def work(run: str) -> list[int]:
        first = await step.run("first", once, run, "first", 1)
        pair = await asyncio.gather(
            step.run("left", once, run, "pair", 2), step.run("right", once, run, "pair", 3)
        )
        return [first, *pair]

    def shown(values: list[int]) -> str:
        return f"[{','.join(map(str, values))}]"

    @app.post("/order/{run}")
    @endpoint
    async def order(run: str) -> str:
        values = await work(run)
        await step.sleep("nap", "5ms")
        await step.send_event("ask", "asked", {"run": run})
        event = await step.wait_for_event(
            "hear", event="asked", match={"data.run": run}, timeout="1h"
        )
        heard = await step.run("last", once, run, "last", "heard" if event else "not heard")
        return f"{run}: {shown(values)} {heard}"

    @app.post("/background/{run}")
    @endpoint(checkpoint="background")
    async def background(run: str) -> str:
        values = await work(run)
        return await step.run("last", once, run, "last", f"{run}: {shown(values)}")

    @app.post("/family/{run}")
    @endpoint
    async def family(run: str) -> str:
        await step.run("before", once, run, "before", 1)
        answer = await step.invoke("child", order, params={"run": f"order-of-{run}"})
        return await step.run("after", once, run, "after", f"{run}: {answer}")

    @app.post("/asking/{run}")
    @endpoint
    async def asking(run: str) -> str:
        await step.run("before", once, run, "before", 1)
        event = await step.wait_for_event("go", event="go", match={"data.run": run}, timeout="1h")
        return await step.run("after", once, run, "after", f"{run}: {event and event.data['say']}")

    @app.post("/hearing/{run}")
    @endpoint
    async def hearing(run: str) -> str:
        await step.run("before", once, run, "before", 1)
        signal = await step.wait_for_signal("go", signal=run, timeout="1h")
        return await step.run("after", once, run, "after", f"{run}: {signal and signal.data}")

    @app.post("/story/{run}")
    @endpoint
    async def story(run: str) -> str:
        async def parts(name: str, fails: bool) -> AsyncIterator[str]:
            seen.body(run, name)
            is_first = [body[1:] for body in seen.bodies].count((run, name)) == 1
            for n in _PARTS:
                yield f"[{run} {n}]"
                await asyncio.sleep(0.001)
                if fails and is_first and n == "2":
                    raise RuntimeError("the provider went away")

        stream.push(f"[{run} title]")
        one = await step.run("one", lambda: stream.pipe(parts("one", fails=True)))
        stream.push(f"[{run} between]")
        two = await step.run("two", lambda: stream.pipe(parts("two", fails=False)))
        stream.push(f"[{run} end]")
        return f"[{run} title]{one}[{run} between]{two}[{run} end]"

    return app


@asynccontextmanager
async def served(
    database: Path, seen: Seen, synchronous: Synchronous, place: Place = "embedded"
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs on this event loop, and so does its server, if it
    has one."""
    if place == "embedded":
        app = application(seen, database=str(database), synchronous=synchronous)
        async with _called(app) as client:
            yield client
        return
    settings = ServerSettings(dev=True, lease=_LEASE, heartbeat=_LEASE // 5)
    async with serving(SqliteStore(database, synchronous), settings) as (_, server):
        # By a variable: so those who send events from outside requests find it too.
        variables = {"DURABLE_ENDPOINTS_SERVER_URL": str(server.base_url)}
        with patch.dict(os.environ, variables):
            async with _called(application(seen)) as client:
                yield client


@asynccontextmanager
async def _called(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        running(app),
        httpx.AsyncClient(
            transport=AppTransport(app), base_url="http://app", timeout=30, follow_redirects=True
        ) as client,
    ):
        yield client


async def ask(client: httpx.AsyncClient, seen: Seen, run: str) -> None:
    """Send the request of a run, with its name as the key, until it is not told to come back later,
    and note the answer."""
    while True:
        response = await client.post(f"/{kind_of(run)}/{run}", headers={"idempotency-key": run})
        if response.status_code != 503:
            seen.answer(run, response.text)
            return
        await asyncio.sleep(0.02)


async def read(client: httpx.AsyncClient, seen: Seen, run: str) -> None:
    """The same, by a reader of the stream."""
    async with open_stream(
        f"/story/{run}", client=client, method="POST", headers={"idempotency-key": run}
    ) as events:
        async for event in events:
            if isinstance(event, Chunk | Commit | Rollback):
                seen.frame(run, event, events.run_url or "")
        seen.answer(run, events.response.text)


async def tell(run: str) -> bool:
    """Send the event or signal that a run waits for. Whether it has that for certain."""
    try:
        if kind_of(run) == "hearing":
            return await send_signal(run, "yes")
        await send_event("go", {"run": run, "say": "yes"})
    except StorageError:
        return False
    return True


async def decide(seen: Seen, run: str) -> None:
    """Do that once the run has begun."""
    while not any(body.run == run for body in seen.bodies):
        await asyncio.sleep(0.001)
    while not await tell(run):
        await asyncio.sleep(0.002)
    seen.event(run)


async def insist(run: str) -> None:
    """The same by somebody who does not know whether it has begun."""
    while True:
        await tell(run)
        await asyncio.sleep(0.02)


async def play(database: Path, seen: Seen, synchronous: Synchronous, place: Place) -> None:
    """The whole of it, with an orderly restart in the middle."""
    for half in range(2):
        async with served(database, seen, synchronous, place) as client:
            await asyncio.gather(
                *(ask(client, seen, run) for run in ORDERS[half::2]),
                *(read(client, seen, run) for run in STORIES[half::2]),
                *(ask(client, seen, run) for run in OTHERS[half::2]),
                *(decide(seen, run) for run in OTHERS[half::2] if kind_of(run) in TOLD),
            )
