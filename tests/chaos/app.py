"""The application that the process tests torment.

Every body that begins writes a line into the journal, with one `write` on an append-only file, so
that a test can tell afterwards what ran how often.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step

JOURNAL = os.environ["JOURNAL"]
_LONG_ON_DISK = 0.3
"""Seconds after which a result is, on a machine that is busy."""

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


def note(line: str) -> None:
    descriptor = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def once(run: str, name: str, value: Any) -> Any:
    note(f"{run} {name}")
    return value


@app.post("/work/{run}")
@endpoint(retries=3)
async def work(run: str, request: Request) -> Response:
    """Every kind of step, and an answer that depends on all of them."""
    body = await request.body()

    async def body_of(name: str, value: Any) -> Any:
        note(f"{run} {name}")
        await asyncio.sleep(0.002)
        return value

    first = await step.run("first", body_of, "first", len(body))
    pair = await asyncio.gather(
        step.run("left", body_of, "left", 1), step.run("right", once, run, "right", 2)
    )
    await step.sleep("nap", "15ms")
    sent = await step.send_event("ask", "asked", {"run": run})
    event = await step.wait_for_event("hear", event="asked", match={"data.run": run}, timeout="1m")
    last = await step.run("last", body_of, "last", [first, *pair])
    return PlainTextResponse(
        f"{run} {last} {event is not None and event.id == sent}", headers={"x-run": run}
    )


@app.post("/quick/{run}")
@endpoint
async def quick(run: str) -> Response:
    value = await step.run("only", once, run, "only", run)
    return PlainTextResponse(f"quick {value}" * 50)


@app.get("/slow/{run}")
@endpoint
async def slow(run: str, seconds: float = 1.0) -> str:
    """A body that takes long, in a run that is on disk when it begins."""

    async def body() -> str:
        note(f"{run} slow begins")
        await asyncio.sleep(seconds)
        note(f"{run} slow ends")
        return "slow"

    async def nothing() -> None:
        pass

    await step.run("admission", nothing)
    value = await step.run("slow", body)
    return await step.run("after", once, run, "after", f"{value} after")


@app.get("/block/{run}")
@endpoint
async def block(run: str, seconds: float = 1.0) -> str:
    """A body that keeps the event loop to itself."""

    async def body() -> None:
        note(f"{run} block begins")
        time.sleep(seconds)

    await step.run("block", body)
    return await step.run("after", once, run, "after", f"{run} after")


def freeze_once(run: str) -> None:
    """Stop this process, in the first execution of the run."""
    note(f"{run} freezes")
    if Path(JOURNAL).read_text().splitlines().count(f"{run} freezes") == 1:
        os.kill(os.getpid(), signal.SIGSTOP)


@app.get("/freeze/{run}")
@endpoint
async def freeze(run: str) -> str:
    """Frozen between two bodies, when the result of the first one is on disk."""

    async def body() -> str:
        return str(once(run, "after", "thawed"))

    await step.run("before", once, run, "before", 1)
    await asyncio.sleep(_LONG_ON_DISK)
    freeze_once(run)
    return await step.run("after", body)


@app.get("/freeze-plain/{run}")
@endpoint
def freeze_plain(run: str) -> str:
    step.sync.run("before", once, run, "before", 1)
    time.sleep(_LONG_ON_DISK)
    freeze_once(run)
    return str(step.sync.run("after", once, run, "after", "thawed"))


@app.get("/plain-io/{run}")
@endpoint
async def plain_io(run: str, seconds: float = 60.0) -> str:
    await step.run("before", once, run, "before", 1)
    note(f"{run} waits")
    await asyncio.sleep(seconds if os.environ.get("PATIENT") is None else 0)
    return "patient"


@app.get("/nap/{run}")
@endpoint
async def nap(run: str, seconds: float = 0.5) -> str:
    await step.run("before", once, run, "before", 1)
    await step.sleep("nap", seconds)
    return await step.run("after", once, run, "after", f"rested {run}")


@app.get("/stream/{run}")
@endpoint
async def stream(run: str, chunks: int = 10) -> Response:
    await step.run("before", once, run, "before", 1)

    async def numbers() -> AsyncIterator[bytes]:
        for n in range(chunks):
            yield b"%d\n" % n * 100
            await asyncio.sleep(0.02)
        note(f"{run} streamed")

    return StreamingResponse(numbers(), media_type="text/plain")


@app.post("/upload/{run}")
@endpoint
async def upload(run: str, request: Request) -> int:
    size = len(await request.body())
    return await step.run("size", once, run, "size", size)


@app.get("/blocking/{run}")
@endpoint
def blocking(run: str) -> str:
    step.sync.run("a", once, run, "a", 1)
    step.sync.sleep("nap", "100ms")
    answer: str = step.sync.run("b", once, run, "b", f"blocking {run}")
    return answer


@app.get("/wait-for/{run}")
@endpoint
async def wait_for(run: str) -> Any:
    event = await step.wait_for_event("go", event="go", match={"data.run": run}, timeout="1m")
    return event and event.data


@app.get("/alive")
async def alive() -> str:
    return "yes"


@app.post("/family/{run}")
@endpoint(retries=3)
async def family(run: str) -> str:
    """A run with children, of which some are quick, and some wait."""
    members = await asyncio.gather(
        *(step.invoke(f"member {n}", member, params={"run": run, "n": n}) for n in range(3))
    )
    return await step.run("last", once, run, "last", f"{run} {members}")


@app.post("/member/{run}/{n}")
@endpoint
async def member(run: str, n: int) -> int:
    await step.run("begin", once, run, f"member {n} begins", n)
    if n:
        await step.sleep("nap", f"{10 * n}ms")
    return int(await step.run("end", once, run, f"member {n} ends", n))
