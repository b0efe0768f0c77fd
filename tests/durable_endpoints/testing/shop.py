"""A small application as a user would write it: its middleware is given nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request

from durable_endpoints import DurableEndpointsMiddleware, endpoint, endpoint_proxy, step, stream

ran: list[str] = []
"""The bodies that ran, for tests to look at and clear."""
started: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    started.append("up")
    yield {"greeting": "hello"}
    started.append("down")


app = FastAPI(lifespan=lifespan)
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


def charge(amount: int) -> str:
    ran.append("charge")
    return f"charged {amount}"


async def ship() -> str:
    ran.append("ship")
    return "shipped"


@app.post("/orders/{amount}")
@endpoint
async def order(amount: int) -> dict[str, str]:
    charged = await step.run("charge", charge, amount)
    await step.sleep("cool down", "1h")
    return {"charged": charged, "shipped": await step.run("ship", ship)}


@app.post("/plain/{amount}")
@endpoint
def plain_order(amount: int) -> dict[str, str]:
    charged = step.sync.run("charge", charge, amount)
    step.sync.sleep("cool down", "1h")
    return {"charged": charged, "shipped": step.sync.run("ship", lambda: "shipped")}


@app.post("/approval/{id}")
@endpoint
async def approval(id: int) -> dict[str, Any]:
    event = await step.wait_for_event("approval", event="approved", match="data.id", timeout="24h")
    return {"by": None if event is None else event.data["by"]}


@app.get("/greeting")
@endpoint
async def greeting(request: Request) -> str:
    await step.sleep("nap", "24h")
    return getattr(request.state, "greeting", "none")


@app.get("/signalled")
@endpoint
async def signalled() -> Any:
    signal = await step.wait_for_signal("signal", signal="go", timeout="24h")
    return None if signal is None else signal.data


async def write() -> str:
    for word in ("to", " be"):
        stream.push(word)
    return await stream.pipe([" or", " not"])


@app.get("/text")
@endpoint
async def text() -> str:
    await step.sleep("think", "5m")
    return await step.run("write", write)
