"""The application of these tests: an endpoint for each thing that an engine does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import FastAPI, HTTPException
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import (
    DurableEndpointsMiddleware,
    StepError,
    endpoint,
    endpoint_proxy,
    send_event,
    send_signal,
    step,
    stream,
)

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())

began: Counter[str] = Counter()
"""How often bodies began, by the run's name and the step's."""


def note(run: str, name: str, value: Any) -> Any:
    began[f"{run} {name}"] += 1
    return value


@app.get("/alive")
async def alive() -> str:
    return "yes"


@app.get("/began/{run}")
async def began_by(run: str) -> dict[str, int]:
    return {
        key.removeprefix(f"{run} "): count
        for key, count in began.items()
        if key.startswith(f"{run} ")
    }


@app.post("/events/{name}")
async def event(name: str, data: dict[str, Any]) -> str:
    return await send_event(name, data)


@app.post("/signals/{name}")
async def signal(name: str, data: dict[str, Any]) -> bool:
    return await send_signal(name, data)


@app.post("/basics/{run}")
@endpoint
async def basics(run: str, body: dict[str, Any]) -> Response:
    first = await step.run("first", note, run, "first", body["n"])
    second = await step.run("second", note, run, "second", first + 1)
    return PlainTextResponse(f"{first} {second}", 201, {"x-run": run})


@app.get("/sleeps/{run}")
@endpoint
async def sleeps(run: str) -> str:
    before = await step.run("before", note, run, "before", "slept")
    await step.sleep("nap", "50ms")
    await step.sleep("no time at all", 0)
    return await step.run("after", note, run, "after", f"{before} well")


@app.get("/waits/{run}")
@endpoint(cancellable=True)
async def waits(run: str, timeout: str = "1m") -> Any:
    found = await step.wait_for_event("go", event="go", match={"data.run": run}, timeout=timeout)
    return None if found is None else found.data


@app.get("/signalled/{run}")
@endpoint
async def signalled(run: str) -> Any:
    found = await step.wait_for_signal("go", signal=run, timeout="1m")
    return None if found is None else found.data


@app.get("/retries/{run}")
@endpoint(retries=2)
async def retries(run: str, failures: int) -> str:
    def work() -> str:
        note(run, "work", None)
        if began[f"{run} work"] <= failures:
            raise ConnectionError("it is away")
        return "there"

    try:
        return await step.run("work", work)
    except StepError as error:
        raise HTTPException(502, str(error)) from None


@app.get("/streams/{run}")
@endpoint(retries=1)
async def streams(run: str) -> Response:
    async def write() -> str:
        note(run, "write", None)
        stream.push(f"try {began[f'{run} write']} ")
        if began[f"{run} write"] == 1:
            raise ConnectionError("it broke off")
        stream.push("to the end")
        return "written"

    stream.push("title: ")
    return PlainTextResponse(await step.run("write", write))


@app.get("/parent/{run}")
@endpoint
async def parent(run: str) -> list[Any]:
    one = await step.invoke("one", child, params={"run": run, "n": 1})
    two = await step.invoke("two", child, params={"run": run, "n": 2})
    return [one, two]


@app.get("/child/{run}/{n}")
@endpoint
async def child(run: str, n: int) -> int:
    if n == 2:
        await step.sleep("nap", "50ms")
    return int(await step.run("square", note, run, f"square {n}", n * n))


@app.get("/blocking/{run}")
@endpoint
def blocking(run: str) -> str:
    step.sync.run("a", note, run, "a", 1)
    step.sync.sleep("nap", "50ms")
    return str(step.sync.run("b", note, run, "b", "blocked"))
