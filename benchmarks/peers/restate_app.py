"""Restate's Python SDK, served by Hypercorn as its documentation says; it runs in a virtual
environment of its own."""

from __future__ import annotations

import gc
import time
from datetime import timedelta

import restate  # pyright: ignore[reportMissingImports]

lags: list[float] = []
entries: dict[str, list[float]] = {}


async def increase(value: int) -> int:
    return value + 1


async def run(ctx: restate.Context, order: dict[str, int]) -> dict[str, int]:
    value = order["number"]
    for number in range(3):
        value = await ctx.run_typed(f"step-{number}", increase, value=value)
    return {"value": value}


async def steps(ctx: restate.Context, count: int) -> dict[str, float]:
    """The first try fails behind its last step, the second one replays."""
    times = entries.setdefault(ctx.request().id, [])
    began = time.perf_counter()
    for number in range(count):
        await ctx.run_typed(f"step-{number}", increase, value=number)
    times.append((time.perf_counter() - began) / count)
    if len(times) == 1:
        raise RuntimeError("once more")
    executed, replayed = times
    return {"executed": executed, "replayed": replayed}


async def nap(ctx: restate.Context, until: float) -> None:
    seconds = await ctx.run_typed("length", lambda: max(0, until - time.time()))
    await ctx.sleep(timedelta(seconds=seconds))
    lags.append((time.time() - until) * 1e3)


async def told_lags(ctx: restate.Context) -> list[float]:
    return lags


async def wait(ctx: restate.WorkflowContext) -> int:
    """When the workflow had its event."""
    await ctx.promise("go", type_hint=bool).value()
    return time.monotonic_ns()


async def go(ctx: restate.WorkflowSharedContext) -> None:
    await ctx.promise("go", type_hint=bool).resolve(True)


service, workflow = restate.Service("bench"), restate.Workflow("waits")
for handler in (run, steps, nap, told_lags):
    service.handler()(handler)
workflow.main()(wait)
workflow.handler()(go)
app = restate.app(services=[service, workflow])
gc.collect()
gc.freeze()
gc.set_threshold(50_000)
