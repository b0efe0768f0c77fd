"""DBOS with SQLite in a FastAPI application; it runs in a virtual environment of its own.

Everything is as DBOS has it by default: a rollback journal with `synchronous=FULL`, pickled
results, and waits that poll once a second. The database is at `PEER_DATABASE`.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dbos import DBOS, SetWorkflowID  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI
from pydantic import BaseModel


class Order(BaseModel):
    number: int


lags: list[float] = []


async def increase(value: int) -> int:
    return value + 1


def increase_blocking(value: int) -> int:
    return value + 1


async def three_steps(value: int) -> int:
    for number in range(3):
        value = await DBOS.run_step_async({"name": f"step-{number}"}, increase, value)
    return value


def three_blocking_steps(value: int) -> int:
    for number in range(3):
        value = DBOS.run_step({"name": f"step-{number}"}, increase_blocking, value)
    return value


async def many_steps(count: int) -> float:
    """Seconds a step."""
    began = time.perf_counter()
    for number in range(count):
        await DBOS.run_step_async({"name": f"step-{number}"}, increase, number)
    return (time.perf_counter() - began) / count


async def wait() -> int:
    await DBOS.recv_async("go", timeout_seconds=60)
    return time.monotonic_ns()


async def nap(until: float) -> None:
    await DBOS.sleep_async(max(0, until - time.time()))
    lags.append((time.time() - until) * 1e3)


run_async, run_blocking = DBOS.workflow()(three_steps), DBOS.workflow()(three_blocking_steps)
run_many, run_wait, run_nap = map(DBOS.workflow(), (many_steps, wait, nap))


@asynccontextmanager
async def launched(app: FastAPI) -> AsyncIterator[None]:
    database = f"sqlite:///{os.environ['PEER_DATABASE']}"
    DBOS(config={"name": "peer", "system_database_url": database, "log_level": "ERROR"})
    DBOS.launch()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)
    yield
    DBOS.destroy()


app = FastAPI(lifespan=launched)


@app.post("/run/async")
async def asynchronous(order: Order) -> dict[str, int]:
    return {"value": await run_async(order.number)}


@app.post("/run/sync")
def synchronous(order: Order) -> dict[str, int]:
    return {"value": run_blocking(order.number)}


@app.post("/steps/{count}")
async def steps(count: int) -> dict[str, float]:
    """The replay is a fork of the ended workflow behind its last step."""
    first = await DBOS.start_workflow_async(run_many, count)
    executed = await first.get_result()
    fork = await DBOS.fork_workflow_async(first.get_workflow_id(), count + 1)
    return {"executed": executed, "replayed": await fork.get_result()}


@app.post("/wait/{name}")
async def start_waiting(name: str) -> int:
    """When the workflow had its message."""
    with SetWorkflowID(name):
        handle = await DBOS.start_workflow_async(run_wait)
    return int(await handle.get_result(polling_interval_sec=0.05))


@app.post("/go/{name}")
async def go(name: str) -> None:
    await DBOS.send_async(name, "go", topic="go")


@app.post("/nap/{until}")
async def start_nap(until: float) -> None:
    await DBOS.start_workflow_async(run_nap, until)


@app.post("/lags")
async def told_lags() -> list[float]:
    return lags
