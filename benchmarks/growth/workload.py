"""A day's mix of two hundred runs, made by a real application: what is multiplied."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from benchmarks.in_process import call, durable_app, location
from durable_endpoints import RetryAfterError, endpoint, send_event, step, stream

ORDER = orjson.dumps({"order": 4711, "customer": "c-20931", "items": [{"id": 7, "count": 2}]})
RESULT = {"id": "ch_3PqW8a2e", "amount": 4200}

MIX = {
    "/three": 150,
    "/retried": 10,
    "/event": 12,
    "/slept": 10,
    "/parent": 4,
    "/stream": 4,
    "/failing": 2,
}
"""How many runs of each kind end; a parent has a child."""
OPEN = {"/asleep": 2, "/waits": 2}
"""How many stay."""
SIZE = sum(MIX.values()) + MIX["/parent"] + sum(OPEN.values())

_numbers = itertools.count()


async def make(database: Path) -> None:
    """Run the mix on a new database. What fails in it on purpose is not logged."""
    logging.getLogger("durable_endpoints").setLevel(logging.CRITICAL)
    async with durable_app(database, *_routes()) as app:
        for path, count in {**MIX, **OPEN}.items():
            for _ in range(count):
                try:
                    await _run(app, path)
                except RuntimeError:
                    assert path == "/failing"


async def _run(app: ASGIApp, path: str) -> None:
    number = next(_numbers)
    answer = await call(app, f"{path}/{number}", body=ORDER)
    if path in OPEN or answer["status"] != 303:
        return
    if path == "/event":
        await send_event("order/paid", {"order": f"order-{number}", "amount": 4200})
    where, query = location(answer)
    while answer["status"] == 303:
        answer = await call(app, where, query)


async def _charge() -> dict[str, object]:
    return RESULT


def _routes() -> list[Route]:
    flaky: set[str] = set()

    @endpoint
    async def three(request: Request) -> Response:
        for name in ("reserve", "charge", "ship"):
            await step.run(name, _charge)
        return JSONResponse(RESULT)

    @endpoint
    async def retried(request: Request) -> Response:
        async def once_more() -> dict[str, object]:
            if step.run_id not in flaky:
                flaky.add(step.run_id)
                raise RetryAfterError("the payment provider does not answer", 0.005)
            return RESULT

        await step.run("charge", once_more)
        return JSONResponse(RESULT)

    @endpoint
    async def event(request: Request) -> Response:
        order = f"order-{request.path_params['number']}"
        await step.run("reserve", _charge)
        found = await step.wait_for_event(
            "paid", event="order/paid", match={"data.order": order}, timeout="3d"
        )
        return JSONResponse({**RESULT, "paid": found is not None})

    @endpoint
    async def slept(request: Request) -> Response:
        await step.run("reserve", _charge)
        await step.sleep("cool down", "5ms")
        return JSONResponse(await step.run("charge", _charge))

    @endpoint
    async def child(request: Request) -> Response:
        return JSONResponse(await step.run("charge", _charge))

    @endpoint
    async def parent(request: Request) -> Response:
        answer = await step.invoke("charge", child, params={"number": "0"})
        return JSONResponse(answer.json())

    @endpoint
    async def streams(request: Request) -> Response:
        async def write() -> str:
            return await stream.pipe(f"word {number} " for number in range(50))

        return JSONResponse({"length": len(await step.run("write", write))})

    @endpoint(retries=0)
    async def failing(request: Request) -> Response:
        raise RuntimeError("the warehouse is closed")

    @endpoint
    async def asleep(request: Request) -> Response:
        await step.run("reserve", _charge)
        await step.sleep("until tomorrow", "30d")
        return JSONResponse(RESULT)

    @endpoint
    async def waits(request: Request) -> Response:
        order = f"order-{request.path_params['number']}"
        await step.run("reserve", _charge)
        await step.wait_for_event(
            "paid", event="order/paid", match={"data.order": order}, timeout="30d"
        )
        return JSONResponse(RESULT)

    handlers = {
        "/three": three,
        "/retried": retried,
        "/event": event,
        "/slept": slept,
        "/child": child,
        "/parent": parent,
        "/stream": streams,
        "/failing": failing,
        "/asleep": asleep,
        "/waits": waits,
    }
    return [
        Route(f"{path}/{{number}}", handler, methods=["POST"]) for path, handler in handlers.items()
    ]
