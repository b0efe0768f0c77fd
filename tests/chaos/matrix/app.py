"""The application of the crash matrix. Its bodies write down when they begin and end.

A body's *phase* says what is certain when it begins: everything of earlier phases has been
acknowledged (a step's body begins when the results before it are on disk). An *entry* is one
execution of a handler, by the process that writes.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_event,
    send_signal,
    step,
    stream,
)
from tests.chaos.matrix.records import Recorder
from tests.chaos.matrix.switchboard import Switchboard

PIECES = 12
WORDS = 6
PULSE = 0.1
"""Seconds between two signs of life."""

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


class Observation:
    """Where this process writes down what it does."""

    def __init__(self, folder: Path, switchboard: Switchboard) -> None:
        self.folder = folder
        self.entries = itertools.count()
        self.cross = switchboard.cross
        self.note = Recorder(folder / "bodies").note
        threading.Thread(target=self._pulse, daemon=True).start()

    def _pulse(self) -> None:
        """Tell that the process lives: gaps are when it was stopped, or got no processor."""
        while True:
            self.note("pulse", None)
            time.sleep(PULSE)


_observation: Observation


def observe(folder: Path, switchboard: Switchboard) -> None:
    """To be called once in each process, before it serves: the module is imported before that."""
    global _observation
    _observation = Observation(folder, switchboard)


class Entry:
    """One execution of a handler."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.number = next(_observation.entries)
        _observation.note("entered", [run, self.number])

    async def body(self, phase: int, name: str, value: Any) -> Any:
        self._begin(phase, name)
        await asyncio.sleep(0.003)
        self._end(name)
        return value

    def blocking_body(self, phase: int, name: str, value: Any) -> Any:
        self._begin(phase, name)
        time.sleep(0.003)
        self._end(name)
        return value

    async def shaky_body(self, phase: int, name: str, value: Any) -> Any:
        self._begin(phase, name)
        self._fail_once(name)
        self._end(name)
        return value

    async def words(
        self, phase: int, name: str, fails: bool = False, pause: float = 0.003
    ) -> AsyncIterator[str]:
        """Other ones in each try, so that the chunks of one can be told from those of another."""
        self._begin(phase, name)
        mark = secrets.token_hex(3)
        for n in range(WORDS):
            yield f"[{name} {mark} {n} é]"
            await asyncio.sleep(pause)
            if fails and n == WORDS // 2:
                self._fail_once(name)
        self._end(name)

    def _begin(self, phase: int, name: str) -> None:
        _observation.note("begins", [self.run, self.number, phase, name])
        _observation.cross("body-begun")

    def _end(self, name: str) -> None:
        _observation.note("ends", [self.run, self.number, name])
        _observation.cross("body-done")

    def _fail_once(self, name: str) -> None:
        mark = _observation.folder / f"failed {self.run.replace('/', ' ')} {name}"
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return
        raise RuntimeError("the first try fails")


@app.post("/order/{run}")
@endpoint(retries=5)
async def order(run: str, request: Request) -> Response:
    """Most kinds of steps, and an answer that depends on all of them."""
    entry = Entry(run)
    digest = hashlib.sha256(await request.body()).hexdigest()
    first = await step.run("first", entry.body, 1, "first", digest)
    pair = await asyncio.gather(
        step.run("left", entry.body, 2, "left", 1),
        step.run("right", entry.blocking_body, 2, "right", 2),
    )
    await step.sleep("nap", "15ms")
    shaky = await step.run("shaky", entry.shaky_body, 3, "shaky", 3)
    own = step.run_id  # which an anonymous request that arrives twice does not share
    sent = await step.send_event("ask", "asked", {"run": own})
    heard = await step.wait_for_event("hear", event="asked", match={"data.run": own}, timeout="1h")
    is_same = heard is not None and heard.id == sent
    last = await step.run("last", entry.body, 4, "last", [*pair, shaky, is_same])
    return PlainTextResponse(f"{run} {first} {last}", headers={"x-run": run})


@app.post("/quick/{run}")
@endpoint
async def quick(run: str) -> Response:
    value = await step.run("only", Entry(run).body, 1, "only", run)
    return PlainTextResponse(f"{value} " * 200)


@app.post("/download/{run}")
@endpoint
async def download(run: str) -> Response:
    """An answer of many messages."""
    value = await step.run("only", Entry(run).body, 1, "only", run)

    async def pieces() -> AsyncIterator[str]:
        for n in range(PIECES):
            yield f"{value} {n}\n" * 20
            await asyncio.sleep(0.002)

    return StreamingResponse(pieces(), media_type="text/plain")


@app.post("/blocking/{run}")
@endpoint(retries=5)
def blocking(run: str) -> str:
    """A plain `def` handler, in a thread."""
    entry = Entry(run)
    one = step.sync.run("one", entry.blocking_body, 1, "one", 1)
    step.sync.sleep("nap", "10ms")
    two = step.sync.run("two", entry.blocking_body, 2, "two", 2)
    return f"{run} {one} {two}"


@app.post("/background/{run}")
@endpoint(checkpoint="background")
async def background(run: str) -> str:
    """Its bodies do not wait until what was before them is on disk, so they have one phase."""
    entry = Entry(run)
    values = [await step.run(name, entry.body, 1, name, name) for name in ("one", "two", "three")]
    return f"{run} {values}"


@app.post("/family/{run}")
@endpoint(retries=5)
async def family(run: str) -> str:
    """A run that invokes others."""
    entry = Entry(run)
    values = await asyncio.gather(
        *(step.invoke(f"member {n}", member, params={"run": run, "n": n}) for n in range(2))
    )
    return str(await step.run("last", entry.body, 1, "last", f"{run} {values}"))


@app.post("/member/{run}/{n}")
@endpoint(retries=5)
async def member(run: str, n: int) -> int:
    entry = Entry(f"{run}/{n}")
    await step.run("begin", entry.body, 1, "begin", n)
    if n:
        await step.sleep("nap", "10ms")
    return int(await step.run("end", entry.shaky_body, 2, "end", n * 10))


@app.post("/story/{run}")
@endpoint(retries=5)
async def story(run: str) -> Response:
    """Chunks outside steps, a step that fails in the middle, a sleep, two steps side by side."""
    entry = Entry(run)
    title = f"[title of {run}]"
    stream.push(title)
    first = await step.run("first", lambda: stream.pipe(entry.words(1, "first", fails=True)))
    stream.push("[between]")
    await step.sleep("nap", "10ms")
    pair = await asyncio.gather(
        step.run("left", lambda: stream.pipe(entry.words(2, "left"))),
        step.run("right", lambda: stream.pipe(entry.words(2, "right", fails=True))),
    )
    stream.push("[end]")
    return JSONResponse({"outside": [title, "[between]", "[end]"], "steps": [first, *pair]})


@app.post("/murmur/{run}")
@endpoint
async def murmur(run: str) -> Response:
    """Chunks with pauses between them: long enough for a sync that nothing else asks for."""
    entry = Entry(run)
    text = await step.run("only", lambda: stream.pipe(entry.words(1, "only", pause=0.1)))
    return JSONResponse({"outside": [], "steps": [text]})


@app.post("/approval/{run}")
@endpoint(retries=5)
async def approval(run: str) -> str:
    """Waits for an event from outside."""
    entry = Entry(run)
    await step.run("before", entry.body, 1, "before", 1)
    event = await step.wait_for_event("ok", event="ok", match={"data.run": run}, timeout="1h")
    data = None if event is None else event.data
    return str(await step.run("after", entry.body, 2, "after", f"{run} {data}"))


@app.post("/signal/{run}")
@endpoint(retries=5)
async def signal(run: str) -> str:
    """Waits for a signal."""
    entry = Entry(run)
    await step.run("before", entry.body, 1, "before", 1)
    heard = await step.wait_for_signal("told", signal=f"tell {run}", timeout="1h")
    data = None if heard is None else heard.data
    return str(await step.run("after", entry.body, 2, "after", f"{run} {data}"))


@app.post("/endless/{run}")
@endpoint(cancellable=True)
async def endless(run: str) -> None:
    """Ends when it is cancelled."""
    await step.run("before", Entry(run).body, 1, "before", 1)
    await step.wait_for_event("never", event="never", timeout="1h")


@app.post("/do/{what}/{run}")
async def do(what: Literal["approve", "tell"], run: str) -> bool:
    """What the runs wait for: an event, the same one however often it is sent, or a signal."""
    if what == "tell":
        return await send_signal(f"tell {run}", "yes")
    await send_event("ok", {"run": run}, id=f"ok {run}")
    return True


@app.get("/alive")
async def alive() -> str:
    return "yes"
