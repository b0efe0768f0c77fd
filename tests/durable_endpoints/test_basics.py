"""The main job: steps run once, runs suspend and resume, failures are retried."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from durable_endpoints import (
    NonRetriableError,
    NotInRunError,
    RetryAfterError,
    StepError,
    StepValueError,
    UsageError,
    configure,
    endpoint,
    step,
)
from durable_endpoints.protocol.ops import StepState
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of

pytestmark = pytest.mark.anyio


async def test_the_happy_path_is_a_plain_endpoint(engine: VirtualEngine) -> None:
    calls: Counter[str] = Counter()

    async def work(name: str, *, twice: bool = False) -> dict[str, Any]:
        calls[name] += 1
        return {"name": name * (2 if twice else 1)}

    @endpoint
    async def handler(request: Request) -> Response:
        first = await step.run("first", work, "a")
        second = await step.run("second", work, "b", twice=True)
        return JSONResponse([first, second])

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        assert response.status_code == 200
        assert response.json() == [{"name": "a"}, {"name": "bb"}]
        assert calls == {"a": 1, "b": 1}
        run = await engine.run(run_id_of(response))
        assert run.status is Status.COMPLETED
        assert run.function_id == "POST /"
        memo = await engine.memo(run.id)
        assert [(name, record.order) for name, record in memo.items()] == [
            ("first", 1),
            ("second", 2),
        ]


async def test_a_sleep_redirects_and_the_answer_comes_from_wait(engine: VirtualEngine) -> None:
    calls: Counter[str] = Counter()

    @endpoint
    async def handler(request: Request) -> Response:
        async def before() -> str:
            calls["before"] += 1
            return "x"

        value = await step.run("before", before)
        await step.sleep("nap", "24h")
        calls["after"] += 1
        return PlainTextResponse(value, 201, {"X-Own": "1"})

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/", content=b"body")
        assert response.status_code == 303
        assert response.content == b""
        assert response.headers["durable-run-status"] == "running"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["referrer-policy"] == "no-referrer"
        location = response.headers["location"]
        assert location.startswith("/wait?runId=")
        await engine.advance("23h59m")
        assert calls == {"before": 1}
        answer = await follow(engine, client, location, "1m")
        assert (answer.status_code, answer.text, answer.headers["x-own"]) == (201, "x", "1")
        assert calls == {"before": 1, "after": 1}


async def test_a_failing_step_is_retried_after_the_redirect(engine: VirtualEngine) -> None:
    @endpoint(retries=3)
    async def handler(request: Request) -> Response:
        return JSONResponse(await step.run("flaky", lambda: "done"))

    engine.fail("flaky", times=2, error=ValueError("not yet"))
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        assert await engine.attempts() == [("flaky", 1, "ValueError: not yet")]
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.json() == "done"
        assert await engine.attempts() == [
            ("flaky", 1, "ValueError: not yet"),
            ("flaky", 2, "ValueError: not yet"),
            ("flaky", 3, None),
        ]


async def test_each_failed_try_is_logged_with_its_line(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    @endpoint(retries=1)
    async def handler(request: Request) -> Response:
        def work() -> None:
            raise ConnectionError("no route")

        await step.run("work", work)
        raise AssertionError("unreachable")

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        await follow(engine, client, response.headers["location"], "5s")
    told = [record.getMessage() for record in caplog.records if "no route" in record.getMessage()]
    assert "step 'work': ConnectionError: no route (at " in told[0]
    assert [line.rpartition("; ")[2] for line in told] == ["try 1 of 2", "try 2 of 2"]


async def test_backoff_is_exponential(engine: VirtualEngine) -> None:
    engine = VirtualEngine(retry_base="10s", retry_factor=2)
    times: list[int] = []

    @endpoint(retries=3)
    async def handler(request: Request) -> Response:
        def fail() -> None:
            times.append(engine.clock.now())
            raise ValueError

        try:
            await step.run("fail", fail)
        except StepError as error:
            return JSONResponse(error.attempts)
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "5m")
        assert answer.json() == 4
    gaps = [b - a for a, b in pairwise(times)]
    for gap, base in zip(gaps, (10_000, 20_000, 40_000), strict=True):
        assert 0.8 * base <= gap <= 1.2 * base


async def test_the_last_failure_raises_with_its_cause_first_time_and_in_replay(
    engine: VirtualEngine,
) -> None:
    seen: list[BaseException | None] = []

    class Special(Exception):
        pass

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        def fail(kind: type[Exception]) -> None:
            raise kind("broken")

        for name, kind in (("builtin", ValueError), ("own", Special)):
            try:
                await step.run(name, fail, kind)
            except StepError as error:
                assert (error.step, error.message) == (name, "broken")
                assert error.name == kind.__name__
                seen.append(error.__cause__)
        await step.sleep("nap", "1s")
        return PlainTextResponse("survived")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "2s")
        assert answer.text == "survived"
    assert [type(error).__name__ for error in seen] == [
        "ValueError",
        "Special",
        "ValueError",
        "RememberedError",
    ]
    assert [str(error) for error in seen] == ["broken"] * 4


async def test_an_exception_that_is_named_like_one_of_ours_is_a_step_error_in_a_replay_too(
    engine: VirtualEngine,
) -> None:
    seen: list[str] = []

    class LimitError(Exception):
        """The provider's own."""

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise LimitError("quota")

        try:
            await step.run("ask", fail)
        except Exception as error:
            seen.append(f"{type(error).__name__}: {error}")
        await step.sleep("nap", "1s")
        return PlainTextResponse("survived")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "2s")
    assert seen == ["StepError: step 'ask' failed once: LimitError: quota"] * 2


async def test_a_mistake_is_one_in_a_replay_too(engine: VirtualEngine) -> None:
    seen: list[tuple[type, str]] = []

    class OwnMistake(UsageError):
        """The application's own kind of ours."""

    @endpoint
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise OwnMistake("wrong")

        for name, body in (("own", fail), ("value", object)):
            try:
                await step.run(name, body)
            except UsageError as error:
                seen.append((type(error), error.explanation))
        await step.sleep("nap", "1s")
        return PlainTextResponse("survived")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "2s")
    first, again = seen[:2], seen[2:]
    assert [kind for kind, _ in first] == [OwnMistake, StepValueError]
    assert [kind for kind, _ in again] == [UsageError, StepValueError]
    assert [text for _, text in again] == [text for _, text in first]


async def test_a_final_failure_stays_in_process(engine: VirtualEngine) -> None:
    @endpoint(retries=5)
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise NonRetriableError("never")

        try:
            await step.run("fail", fail)
        except StepError as error:
            assert isinstance(error.__cause__, NonRetriableError)
            return PlainTextResponse("caught", 418)
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (418, "caught")


@pytest.mark.parametrize("retry_after", ["90s", 90, timedelta(seconds=90)])
async def test_retry_after_is_honoured(engine: VirtualEngine, retry_after: Any) -> None:
    times: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        def limited() -> int:
            times.append(engine.clock.now())
            if len(times) == 1:
                raise RetryAfterError("slow down", retry_after)
            return 1

        return JSONResponse(await step.run("limited", limited))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "2m")
        assert answer.json() == 1
    assert times[1] - times[0] == 90_000


async def test_step_options(engine: VirtualEngine) -> None:
    @endpoint(retries=5)
    async def handler(request: Request) -> Response:
        async def slow() -> None:
            await asyncio.sleep(30)

        try:
            await step.options(retries=0, timeout="20ms").run("slow", slow)
        except StepError as error:
            return JSONResponse([error.name, error.message])
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.json() == ["TimeoutError", "step 'slow' took longer than 0.02 s"]


async def test_repeated_names_are_counted(engine: VirtualEngine) -> None:
    calls: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def item(n: int) -> int:
            calls.append(n)
            return n

        values = [await step.run("item", item, n) for n in range(3)]
        await step.sleep("nap", "1s")
        return JSONResponse(values)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1s")
        assert answer.json() == [0, 1, 2]
        assert calls == [0, 1, 2]
        names = list(await engine.memo(run_id_of(response)))
        assert names == ["item", "item:1", "item:2", "nap"]


async def test_a_run_knows_its_id_in_handlers_steps_and_threads(engine: VirtualEngine) -> None:
    seen: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        async def work() -> None:
            seen.append(step.run_id)

        def plain_work() -> None:
            seen.append(step.run_id)

        seen.append(step.run_id)
        await step.run("work", work)
        await step.run("plain work", plain_work)
        await step.sleep("nap", "1h")
        return Response(step.run_id)

    async with engine.client(one(engine, handler)) as client:
        response = await client.post("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
    assert set(seen) == {answer.text} == {run_id_of(response)}
    with pytest.raises(NotInRunError, match="there is no request"):
        _ = step.run_id


async def test_the_first_execution_sees_what_a_replay_sees(engine: VirtualEngine) -> None:
    seen: list[Any] = []

    @endpoint
    async def handler(request: Request) -> Response:
        seen.append(await step.run("pair", lambda: (1, {"a": (2,)})))
        await step.sleep("nap", "1s")
        return JSONResponse(None)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await follow(engine, client, response.headers["location"], "1s")
    assert seen == [[1, {"a": [2]}]] * 2


async def test_a_lambda_that_gives_a_coroutine_is_awaited(engine: VirtualEngine) -> None:
    async def fetch(n: int) -> int:
        return n

    @endpoint
    async def handler(request: Request) -> Response:
        return JSONResponse(await step.run("fetch", lambda: fetch(7)))

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).json() == 7


async def test_plain_functions_run_in_a_worker_thread(engine: VirtualEngine) -> None:
    import threading

    @endpoint
    async def handler(request: Request) -> Response:
        return JSONResponse(await step.run("where", lambda: threading.current_thread().name))

    async with engine.client(one(engine, handler)) as client:
        assert (await client.get("/")).json() != threading.main_thread().name


async def test_an_escaping_exception_is_retried_with_the_memo_kept(engine: VirtualEngine) -> None:
    calls: Counter[str] = Counter()

    @endpoint(retries=2)
    async def handler(request: Request) -> Response:
        async def work() -> int:
            calls["step"] += 1
            return 1

        await step.run("work", work)
        calls["handler"] += 1
        if calls["handler"] < 3:
            raise RuntimeError("handler")
        return PlainTextResponse("at last")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert (answer.status_code, answer.text) == (200, "at last")
    assert calls == {"step": 1, "handler": 3}


async def test_a_handler_that_always_raises_has_as_many_tries_as_its_endpoint_allows(
    engine: VirtualEngine,
) -> None:
    tries: list[int] = []

    @endpoint(retries=2)
    async def handler(request: Request) -> Response:
        tries.append(len(tries))
        raise RuntimeError("handler")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.status_code == 500
    assert len(tries) == 3


async def test_an_exhausted_step_error_that_escapes_is_not_retried(engine: VirtualEngine) -> None:
    passes: list[int] = []

    @endpoint(retries=1)
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise ValueError("broken")

        passes.append(1)
        await step.run("fail", fail)
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "10m")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        run = await engine.run(run_id_of(response))
        assert (run.status, run.reason) == (Status.FAILED, "exception")
    # The request, then the retry, in which the error escapes.
    assert len(passes) == 2


async def test_sleep_until(engine: VirtualEngine) -> None:
    from datetime import UTC, datetime

    @endpoint
    async def handler(request: Request) -> Response:
        when = datetime.fromtimestamp(engine.clock.now() / 1_000 + 60, UTC)
        await step.sleep_until("nap", await step.run("when", lambda: when.isoformat()))
        return PlainTextResponse("awake")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        run_id = run_id_of(response)
        await engine.advance("59s")
        assert (await engine.run(run_id)).status is Status.WAITING
        answer = await follow(engine, client, response.headers["location"], "1s")
        assert answer.text == "awake"


async def test_a_sleep_in_the_past_does_not_suspend(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("no", 0)
        await step.sleep_until("past", "2001-01-01T00:00:00Z")
        return PlainTextResponse("at once")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert (response.status_code, response.text) == (200, "at once")


async def test_handlers_may_be_plain_functions(engine: VirtualEngine) -> None:
    import threading

    app = fast(engine)
    threads: set[str] = set()
    calls: Counter[str] = Counter()

    @app.get("/sync/{n}")
    @endpoint
    def handler(n: int) -> dict[str, int]:
        def work(x: int) -> int:
            threads.add(threading.current_thread().name)
            calls["work"] += 1
            return x + 1

        threads.add(threading.current_thread().name)
        value = step.sync.run("work", work, n)
        step.sync.sleep("nap", "1h")
        return {"value": step.sync.run("again", work, value)}

    async with engine.client(app) as client:
        response = await client.get("/sync/1")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == {"value": 3}
    assert calls == {"work": 2}
    assert threading.main_thread().name not in threads


async def test_a_plain_handler_retries_its_steps(engine: VirtualEngine) -> None:
    @endpoint(retries=2)
    def handler(request: Request) -> Response:
        return JSONResponse(step.sync.run("flaky", lambda: "done"))

    engine.fail("flaky", times=2)
    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 303
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.json() == "done"
    assert len(await engine.attempts("flaky")) == 3


async def test_configure_changes_options_for_this_run(engine: VirtualEngine) -> None:
    @endpoint(retries=5)
    async def handler(request: Request) -> Response:
        def fail() -> None:
            raise ValueError

        configure(retries=0, async_response="token")
        try:
            await step.run("fail", fail)
        except StepError:
            await step.sleep("nap", "1s")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        assert response.status_code == 200
        assert response.json()["run_id"] == run_id_of(response)
        answer = await follow(engine, client, response.json()["url"], "1s")
        assert answer.text == "done"


async def test_background_checkpoints_are_all_there_before_the_answer(
    engine: VirtualEngine,
) -> None:
    @endpoint(checkpoint="background")
    async def handler(request: Request) -> Response:
        for n in range(5):
            await step.run(f"s{n}", lambda n=n: n)
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        memo = await engine.memo(run_id_of(response))
        assert [record.state for record in memo.values()] == [StepState.DONE] * 5


async def test_a_run_times_out_asleep(engine: VirtualEngine) -> None:
    @endpoint(max_runtime="1h")
    async def handler(request: Request) -> Response:
        await step.sleep("long", "2h")
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.status_code == 504
        assert answer.json()["error"] == "timed_out"
        assert answer.headers["durable-run-status"] == "failed"
        await engine.advance("2h")
        assert (await engine.run(run_id_of(response))).reason == "timed_out"


async def test_a_run_times_out_while_it_runs(engine: VirtualEngine) -> None:
    cancelled: list[bool] = []

    @endpoint(max_runtime="1h")
    async def handler(request: Request) -> Response:
        async def stuck() -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        await step.run("stuck", stuck)
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler, respond_within="2h")) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 3_600_000)
        response = await asyncio.wait_for(asking, 5)
        assert (response.status_code, response.json()["error"]) == (504, "timed_out")
    assert cancelled == [True]


async def test_respond_within_redirects_while_the_execution_goes_on(engine: VirtualEngine) -> None:
    gate = asyncio.Event()
    passes: list[int] = []

    @endpoint(respond_within="5s")
    async def handler(request: Request) -> Response:
        passes.append(1)
        await step.run("slow", gate.wait)
        return PlainTextResponse("slow but sure")

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 5_000)
        response = await asyncio.wait_for(asking, 5)
        assert response.status_code == 303
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        await asyncio.sleep(0.02)
        gate.set()
        answer = await asyncio.wait_for(waiting, 5)
        assert answer.text == "slow but sure"
    assert passes == [1]


async def test_a_timeout_bounds_each_try(engine: VirtualEngine) -> None:
    tries: list[int] = []

    async def hang() -> None:
        tries.append(1)
        await asyncio.sleep(30)

    @endpoint
    async def handler(request: Request) -> Response:
        try:
            await step.options(timeout="20ms", retries=1).run("hang", hang)
        except StepError as error:
            return PlainTextResponse(error.message)
        return PlainTextResponse("never")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "10s")
        assert "took longer than 0.02 s" in answer.text
    assert len(tries) == 2
