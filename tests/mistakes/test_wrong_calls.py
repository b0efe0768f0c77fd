"""Calls that do not fit what they call: Python says what is wrong, and nothing is tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from durable_endpoints import RetryAfterError, configure, endpoint, step
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one

pytestmark = pytest.mark.anyio

loose: Any = step
WRONG: dict[str, Callable[[], Any]] = {
    "no duration": lambda: loose.sleep("5s"),
    "no timeout": lambda: loose.wait_for_event("a", event="b"),
    "a positional event": lambda: loose.wait_for_event("a", "b", timeout="1h"),
    "an unknown option": lambda: loose.options(retry=1),
    "a log without a level": lambda: loose.log("hi"),
    "a format and its value": lambda: loose.log.info("%s", 1),
    "an old name": lambda: loose.log.warn("hi"),
    "a dict of options": lambda: configure({"retries": 1}),  # type: ignore[call-arg,arg-type]
    "no time": lambda: RetryAfterError("later"),  # type: ignore[call-arg]
    "a method that is none": lambda: loose.delay("a", "1s"),
    "no URL": lambda: loose.fetch("a", "GET"),
}


@pytest.mark.parametrize("call", WRONG.values(), ids=WRONG)
async def test_a_wrong_call_fails_at_once(engine: VirtualEngine, call: Callable[[], Any]) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        raise RuntimeError(repr(await call()))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 500


async def test_other_errors_of_the_same_kind_are_tried_again(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        raise TypeError("Stepper.run() missing 1 required positional argument")

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).status_code == 303


@pytest.mark.parametrize("answer", [{"a": 1}, "text", None, [1]])
@pytest.mark.parametrize("plain", [False, True])
async def test_a_handler_of_starlette_that_returns_data_fails_at_once(
    engine: VirtualEngine, answer: Any, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(request: Request) -> Any:
        return answer

    def plain_handler(request: Request) -> Any:
        return answer

    app = one(engine, endpoint(plain_handler if plain else handler))
    async with engine.client(app) as client:
        assert (await client.get("/")).status_code == 500
    assert f"returned a {type(answer).__name__}, where Starlette wants a Response" in caplog.text
