"""The application whose streams the process tests cut, kill and read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import JSONResponse, Response

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step, stream
from tests.chaos.app import note

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())

PAUSE = float(os.environ.get("PAUSE", "0.001"))


@app.get("/alive")
async def alive() -> str:
    return "yes"


@app.get("/report/{run}")
@endpoint
async def report(run: str) -> Response:
    """Chunks outside steps, a step that fails once in the middle, a sleep, two steps side by side.

    The texts differ from try to try, so that a chunk of one can be told from a chunk of another.
    """

    async def words(name: str, fails: bool) -> AsyncIterator[str]:
        note(f"{run} {name}")
        number = Path(os.environ["JOURNAL"]).read_text().split("\n").count(f"{run} {name}")
        for n in range(8):
            yield f"[{name}{number}.{n} é]"
            await asyncio.sleep(PAUSE)
            if fails and number == 1 and n == 4:
                raise RuntimeError("the provider went away")

    stream.push(f"[title of {run}]")
    first = await step.run("first", lambda: stream.pipe(words("first", fails=True)))
    stream.push("[between]")
    await step.sleep("nap", "10ms")
    pair = await asyncio.gather(
        step.run("left", lambda: stream.pipe(words("left", fails=False))),
        step.run("right", lambda: stream.pipe(words("right", fails=True))),
    )
    stream.push("[end]")
    return JSONResponse({"texts": [f"[title of {run}]", first, "[between]", *pair, "[end]"]})


@app.get("/short/{run}")
@endpoint
async def short(run: str) -> str:
    async def words() -> AsyncIterator[str]:
        note(f"{run} short")
        yield "a"
        yield "é"
        if Path(os.environ["JOURNAL"]).read_text().count(f"{run} short") == 1:
            raise RuntimeError("the provider went away")

    return await step.run("only", lambda: stream.pipe(words()))
