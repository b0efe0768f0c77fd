"""Every limit: the last value that passes, the first that does not, and what is said of it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import Depends, HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import RetryAfterError, StepError, configure, endpoint, remember, step
from durable_endpoints.errors import ConfigurationError, LimitError, StepIdError, StepValueError
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of

pytestmark = pytest.mark.anyio


class Outcome:
    """How the handler of one request went on after a limit, seen from inside and outside."""

    response: httpx.Response
    error: Exception | None = None
    shown: str = ""
    """What `durable-endpoints runs show` says of the failure."""
    run_status: Status


async def outcome_of(engine: VirtualEngine, body: Any, **request: Any) -> Outcome:
    """Run `body` in a handler that lets every error escape, and note it."""
    outcome = Outcome()

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await body()
        except Exception as error:
            outcome.error = error
            raise
        return PlainTextResponse("fine")

    async with engine.client(one(engine, handler)) as client:
        outcome.response = await client.request("POST", "/", **request)
        (line,) = (await engine.store.list_runs(list(Status), None, 10)).lines
        outcome.run_status = line.run.status
        kept = await engine.outcome(line.run.id, 0)
        assert kept is not None
        outcome.shown = kept.error
        assert line.run.status is Status.WAITING or engine.host.live == {}
    return outcome


def assert_failed(outcome: Outcome, *words: str, kind: type[Exception] = LimitError) -> None:
    """A limit is an error in the handler, final, and no secret to whoever operates the run."""
    assert isinstance(outcome.error, kind), outcome.error
    for word in words:
        assert word in str(outcome.error)
        assert word in outcome.shown
    assert outcome.response.status_code == 500
    assert outcome.response.text == "Internal Server Error"  # nothing of it leaves the process
    assert outcome.run_status is Status.FAILED


# Steps


async def test_the_last_step_passes_and_the_next_does_not_begin() -> None:
    began: list[int] = []

    async def body(count: int) -> None:
        for n in range(count):
            await step.run(f"s{n}", began.append, n)

    outcome = await outcome_of(VirtualEngine(max_steps=5), lambda: body(5))
    assert outcome.response.status_code == 200
    outcome = await outcome_of(VirtualEngine(max_steps=5), lambda: body(6))
    assert_failed(outcome, "5", "max_steps")
    assert len(began) == 5 + 5


@pytest.mark.parametrize(
    "open_step",
    [
        lambda: step.sleep("nap", "1h"),
        lambda: step.wait_for_event("hear", event="said", timeout="1h"),
        lambda: step.send_event("say", "said"),
    ],
    ids=["sleep", "wait", "send"],
)
async def test_every_kind_of_step_counts(open_step: Any) -> None:
    async def body() -> None:
        await step.run("a", lambda: 1)
        await open_step()

    assert_failed(await outcome_of(VirtualEngine(max_steps=1), body), "max_steps")


async def test_steps_are_counted_over_all_executions(engine: VirtualEngine) -> None:
    errors: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            for n in range(5):
                await step.sleep(f"nap{n}", "1h")
        except LimitError as error:
            errors.append(str(error))
            raise
        return PlainTextResponse("fine")

    engine = VirtualEngine(max_steps=3)
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "10h")
        assert answer.status_code == 500
    assert len(errors) == 1
    assert "max_steps" in errors[0]


async def test_retries_of_one_step_are_one_step() -> None:
    tries: list[int] = []

    @endpoint(retries=5)
    async def handler(request: Request) -> Response:
        def flaky() -> int:
            tries.append(1)
            if len(tries) < 5:
                raise ConnectionError("away")
            return 1

        await step.run("flaky", flaky)
        await step.run("other", lambda: 1)
        return PlainTextResponse("fine")

    engine = VirtualEngine(max_steps=2)
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "10m")
        assert answer.text == "fine"
    assert len(tries) == 5


# Results


async def test_the_size_of_a_result() -> None:
    engine = VirtualEngine(max_result=1_000)
    outcome = await outcome_of(engine, lambda: step.run("a", lambda: "x" * 998))
    assert outcome.response.status_code == 200  # two more for the quotes
    engine = VirtualEngine(max_result=1_000)
    outcome = await outcome_of(engine, lambda: step.run("a", lambda: "x" * 999))
    assert_failed(outcome, "1,001 bytes", "1,000", "max_result", "return a reference")


async def test_a_result_is_measured_in_bytes() -> None:
    engine = VirtualEngine(max_result=1_000)
    outcome = await outcome_of(engine, lambda: step.run("a", lambda: "ü" * 500))
    assert_failed(outcome, "1,002 bytes")


async def test_a_result_that_is_too_large_is_not_tried_again() -> None:
    tries: list[int] = []

    def large() -> str:
        tries.append(1)
        return "x" * 2_000

    await outcome_of(VirtualEngine(max_result=1_000), lambda: step.run("a", large))
    assert tries == [1]


async def test_a_handler_may_go_on_after_a_result_that_is_too_large() -> None:
    async def body() -> None:
        try:
            await step.run("large", lambda: "x" * 2_000)
        except LimitError:
            assert await step.run("small", lambda: "y") == "y"

    outcome = await outcome_of(VirtualEngine(max_result=1_000), body)
    assert outcome.response.text == "fine"


async def test_the_size_of_all_results_together() -> None:
    async def body(last: int) -> None:
        for n in range(9):
            await step.run(f"s{n}", lambda: "x" * 98)
        await step.run("last", lambda: "x" * (last - 2))

    outcome = await outcome_of(VirtualEngine(max_memo=1_000), lambda: body(100))
    assert outcome.response.status_code == 200
    outcome = await outcome_of(VirtualEngine(max_memo=1_000), lambda: body(101))
    assert_failed(outcome, "1,000 bytes", "max_memo")


async def test_an_error_of_any_size_can_be_kept() -> None:
    """A failure is told in short, so it never passes a limit itself."""

    def fail() -> None:
        raise ValueError("no ink " * 1_000_000)

    engine = VirtualEngine(max_result=100_000)
    outcome = await outcome_of(engine, lambda: step.options(retries=0).run("a", fail))
    assert isinstance(outcome.error, StepError)
    assert outcome.run_status is Status.FAILED
    assert len(outcome.shown) < 100_000


# Waits


@pytest.mark.parametrize(
    "wait",
    [
        lambda time: step.sleep("nap", time),
        lambda time: step.wait_for_event("hear", event="said", timeout=time),
        lambda time: step.wait_for_any("hear", ["a", "b"], timeout=time),
    ],
    ids=["sleep", "wait", "wait for any"],
)
async def test_a_wait_lasts_366_days_at_the_most(wait: Any) -> None:
    outcome = await outcome_of(VirtualEngine(), lambda: wait("366d"))
    assert outcome.response.status_code == 303
    assert outcome.run_status is Status.WAITING
    outcome = await outcome_of(VirtualEngine(), lambda: wait(timedelta(days=366, seconds=1)))
    assert_failed(outcome, "366.0 days", "may last")


async def test_sleep_until_a_time_too_far_away() -> None:
    outcome = await outcome_of(
        VirtualEngine(), lambda: step.sleep_until("nap", "2036-01-01T00:00:00Z")
    )
    assert_failed(outcome, "may last")


async def test_a_retry_too_far_away() -> None:
    def fail() -> None:
        raise RetryAfterError("come back in two years", "730d")

    assert_failed(await outcome_of(VirtualEngine(), lambda: step.run("a", fail)), "may last")


# Names and events


@pytest.mark.parametrize("name", [" ", "x" * 1_024, "ü" * 1_024, "line\nbreak", "nul\0"])
async def test_odd_names_of_steps_are_names(name: str) -> None:
    outcome = await outcome_of(VirtualEngine(), lambda: step.run(name, lambda: 1))
    assert outcome.response.text == "fine"


@pytest.mark.parametrize("name", ["", "x" * 1_025, 5, None])
async def test_the_name_of_a_step(name: Any) -> None:
    outcome = await outcome_of(VirtualEngine(), lambda: step.run(name, lambda: 1))
    assert_failed(outcome, "text of 1 to 1024 letters", kind=StepIdError)


@pytest.mark.parametrize("name", ["", "x" * 513, "line\nbreak", "\ud800", 7, None])
async def test_the_name_of_an_event(name: Any) -> None:
    outcome = await outcome_of(VirtualEngine(), lambda: step.send_event("say", name))
    assert isinstance(outcome.error, StepValueError)
    assert "printable text of 1 to 512 letters" in str(outcome.error)
    outcome = await outcome_of(
        VirtualEngine(), lambda: step.wait_for_event("hear", event=name, timeout="1h")
    )
    assert isinstance(outcome.error, StepValueError | ConfigurationError)


async def test_the_size_of_an_events_data() -> None:
    data = "x" * (3 * 1024 * 1024 - 2)
    engine = VirtualEngine()
    outcome = await outcome_of(engine, lambda: step.send_event("say", "said", data))
    assert outcome.response.text == "fine"
    outcome = await outcome_of(VirtualEngine(), lambda: step.send_event("say", "said", data + "x"))
    assert isinstance(outcome.error, StepValueError)
    assert "3,145,728 are allowed" in str(outcome.error)


@pytest.mark.parametrize("event_id", ["", "x" * 513])
async def test_the_length_of_an_event_id(event_id: str) -> None:
    outcome = await outcome_of(
        VirtualEngine(), lambda: step.send_event("say", "said", event_id=event_id)
    )
    assert isinstance(outcome.error, StepValueError)


# Requests and responses


async def test_the_request_body() -> None:
    engine = VirtualEngine(max_request_body=1_000)

    async def nothing() -> None:
        pass

    assert (await outcome_of(engine, nothing, content=b"x" * 1_000)).response.text == "fine"
    engine = VirtualEngine(max_request_body=1_000)

    @endpoint
    async def handler(request: Request) -> Response:
        raise AssertionError

    async with engine.client(one(engine, handler, max_request_body=1_000)) as client:
        response = await client.post("/", content=b"x" * 1_001)
        assert response.status_code == 413
        assert "1,000 bytes" in response.text
        assert "max_request_body" in response.text
        assert (await engine.store.list_runs(list(Status), None, 10)).lines == []


async def test_the_defaults_are_those_of_the_design() -> None:
    engine = VirtualEngine()
    policy = engine._new_host(engine.store).policy
    assert policy.max_steps == 10_000
    assert policy.max_result == 4 * 1024 * 1024
    assert policy.max_memo == 32 * 1024 * 1024
    assert policy.max_wait == 366 * 86_400_000
    assert policy.run_retention == 7 * 86_400_000
    assert policy.event_retention == 86_400_000


async def test_a_limit_of_the_middleware_reaches_requests(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    async with engine.client(one(engine, handler)) as client:
        whole = b"x" * (4 * 1024 * 1024)
        assert (await client.post("/", content=whole)).text == str(len(whole))
        assert (await client.post("/", content=whole + b"x")).status_code == 413


@pytest.mark.parametrize("length", [255, 256])
async def test_the_length_of_an_idempotency_key(engine: VirtualEngine, length: int) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse("fine")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", headers={"idempotency-key": "k" * length})
        if length <= 255:
            assert response.text == "fine"
        else:
            assert (response.status_code, response.json()["error"]) == (400, "bad_idempotency_key")
            assert "255" in response.json()["detail"]


async def test_a_run_that_passes_max_runtime_is_504(engine: VirtualEngine) -> None:
    @endpoint(max_runtime="30m")
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "30m")
        assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
        assert "max_runtime" in answer.json()["detail"]
        assert run_id_of(answer) == run_id_of(response)


async def test_retries_are_limited_to_twenty(engine: VirtualEngine) -> None:
    errors: list[str] = []

    async def body() -> None:
        for change in ({"retries": 21}, {"retries": -1}, {"retries": True}):
            try:
                configure(**change)
            except ConfigurationError as error:
                errors.append(str(error))
        with pytest.raises(ConfigurationError, match="0 to 20"):
            step.options(retries=21)

    assert (await outcome_of(engine, body)).response.text == "fine"
    assert len(errors) == 3
    assert all("0 to 20" in error for error in errors)


async def test_a_remembered_value_within_the_limit_counts_as_a_step(engine: VirtualEngine) -> None:
    engine = VirtualEngine(max_steps=2)
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler(steps: int, value: str = Depends(remember(lambda: "x"))) -> str:
        for n in range(steps):
            await step.run(f"s{n}", lambda: 1)
        return value

    async with engine.client(app) as client:
        assert (await client.get("/?steps=1")).json() == "x"
        assert (await client.get("/?steps=2")).status_code == 500
        await asyncio.sleep(0.01)
        assert engine.host.live == {}


# Limits that are met outside the handler


async def final(engine: VirtualEngine, run_id: str) -> Status:
    async with asyncio.timeout(2):
        while not (status := (await engine.run(run_id)).status).is_final:
            await asyncio.sleep(0.005)
    return status


async def only_run(engine: VirtualEngine) -> str:
    (line,) = (await engine.store.list_runs(list(Status), None, 10)).lines
    return line.run.id


async def test_a_handler_that_fails_at_its_last_step_ends() -> None:
    engine = VirtualEngine(max_steps=2)

    @endpoint(retries=1)
    async def handler(request: Request) -> Response:
        await step.run("a", lambda: 1)
        await step.run("b", lambda: 1)
        raise ValueError("no ink")

    async with engine.client(one(engine, handler)) as client:
        await client.get("/")
        await engine.advance("1h")
        assert await final(engine, await only_run(engine)) is Status.FAILED
        assert engine.host.live == {}


async def test_a_handler_that_asks_for_too_long_a_wait_fails() -> None:
    engine = VirtualEngine()

    @endpoint
    async def handler(request: Request) -> Response:
        raise RetryAfterError("come back in two years", "730d")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 500
        assert await final(engine, await only_run(engine)) is Status.FAILED


async def test_a_reentry_that_is_refused_at_max_steps_ends() -> None:
    engine = VirtualEngine(max_steps=1)
    app = fast(engine)
    seen: list[int] = []

    def login() -> None:
        seen.append(1)
        if len(seen) > 1:
            raise HTTPException(401)

    @app.get("/")
    @endpoint(retries=1)
    async def handler(_: None = Depends(login)) -> int:
        await step.sleep("nap", "1h")
        return 1

    async with engine.client(app) as client:
        run_id = run_id_of(await client.get("/"))
        await engine.advance("3h")
        assert await final(engine, run_id) is Status.FAILED
