"""Errors name the line of the user's code, and no client gets to see it."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from durable_endpoints import (
    ConfigurationError,
    DurableEndpointsError,
    LimitError,
    NonRetriableError,
    RetryAfterError,
    StepError,
    StepIdError,
    UsageError,
    endpoint,
    step,
)
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import follow, one

pytestmark = pytest.mark.anyio


def line(function: Any, text: str) -> str:
    """The place of the line of `function` that holds `text`, as errors spell it."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    offset = next(n for n, source in enumerate(lines) if text in source)
    return f"{__file__}:{first + offset}, in {inspect.unwrap(function).__name__}"


def broken() -> None:
    raise RuntimeError("card reader offline")


async def test_a_step_that_failed_for_good(engine: VirtualEngine) -> None:
    errors: list[StepError] = []

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        try:
            await step.run("charge", broken)
        except StepError as error:
            errors.append(error)
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "1h")
    first, remembered = errors
    assert str(first) == "step 'charge' failed once: RuntimeError: card reader offline"
    assert first.where == line(handler, 'step.run("charge"')
    assert first.raised_at == line(broken, "raise")
    shown = traceback.format_exception_only(first)
    assert shown == traceback.format_exception_only(remembered)
    assert [text.rstrip() for text in shown[1:]] == [
        f"  raised at {first.raised_at}",
        f"  at {first.where}",
    ]


async def test_in_a_gather_the_line_is_the_one_that_called_the_step(engine: VirtualEngine) -> None:
    errors: list[BaseException] = []

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        calls = [
            step.run("same", asyncio.sleep, 0.01),
            step.run("same", asyncio.sleep, 0.02),
            step.run("broken", broken),
        ]
        results = await asyncio.gather(*calls, return_exceptions=True)
        errors.extend(result for result in results if isinstance(result, BaseException))
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
    twice, failed = errors
    assert isinstance(twice, StepIdError)
    assert str(twice).endswith(f"\n  at {line(handler, '0.02')}")
    assert isinstance(failed, StepError)
    assert failed.where == line(handler, '"broken"')


async def test_in_a_plain_handler() -> None:
    engine = VirtualEngine(max_steps=1)
    errors: list[DurableEndpointsError] = []

    @endpoint(retries=0)
    def handler(request: Request) -> Response:
        try:
            step.sync.run("charge", broken)
        except StepError as error:
            errors.append(error)
        try:
            step.sync.run("one too many", broken)
        except LimitError as error:
            errors.append(error)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
    failed, limit = errors
    assert failed.where == line(handler, '"charge"')
    assert str(limit).endswith(f"or raise the setting\n  at {line(handler, 'too many')}")


async def test_a_step_that_is_never_awaited_fails_the_run(engine: VirtualEngine) -> None:
    errors: list[Exception] = []

    @endpoint
    async def handler(request: Request) -> Response:
        step.run("charge", broken)  # type: ignore[unused-coroutine]
        return PlainTextResponse("ok")

    async def on_error(request: Request, error: Exception) -> Response:
        errors.append(error)
        return JSONResponse({"error": "sorry"}, 500)

    app = one(engine, handler)
    app.add_exception_handler(500, on_error)
    with pytest.warns(RuntimeWarning, match="never awaited"):
        async with engine.client(app) as client:
            assert (await client.get("/")).json() == {"error": "sorry"}
    assert isinstance(errors[0], UsageError)
    assert "step 'charge' was called but never awaited" in str(errors[0])
    assert errors[0].where == line(handler, '"charge"')


def test_a_mistake_in_the_decorator() -> None:
    def mistake() -> None:
        endpoint(retries=-1)

    with pytest.raises(ConfigurationError) as raised:
        mistake()
    assert raised.value.where == line(mistake, "retries=-1")
    assert str(raised.value) == f"{raised.value.explanation}\n  at {raised.value.where}"


def test_what_users_raise_says_what_they_wrote() -> None:
    for error in (NonRetriableError("no such card"), RetryAfterError("no such card", "1s")):
        assert str(error) == "no such card"
        assert error.where == ""


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream"])
async def test_no_client_sees_a_line_of_code(engine: VirtualEngine, accept: str) -> None:
    @endpoint(retries=0)
    async def mistaken(request: Request) -> Response:
        await step.run("", broken)
        return PlainTextResponse("never")

    @endpoint(retries=0)
    async def failing(request: Request) -> Response:
        try:
            await step.run("charge", broken)
        except StepError as error:
            await step.sleep("nap", "1h")
            return PlainTextResponse(str(error))
        return PlainTextResponse("never")

    for handler in (mistaken, failing):
        async with engine.client(one(engine, handler)) as client:
            response = await client.get("/", headers={"accept": accept})
            assert ".py" not in response.text
            if "location" in response.headers:
                response = await follow(engine, client, response.headers["location"], "1h")
                assert response.text.endswith("RuntimeError: card reader offline")


async def test_the_reason_of_a_failed_run_has_no_line_of_code(engine: VirtualEngine) -> None:
    @endpoint(retries=0, omit_response_body=True)
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        await step.run("", broken)
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        location = response.headers["location"]
        for _ in range(2):  # the second time the response was delivered, and is not kept any more
            answer = await follow(engine, client, location, "1h")
            assert answer.status_code >= 400
            assert ".py" not in answer.text
    run = await engine.run(response.headers["durable-run-id"])
    assert run is not None
