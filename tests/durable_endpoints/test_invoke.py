"""Endpoints that invoke endpoints: each child runs to one end, and its parent sees it once."""

from __future__ import annotations

import asyncio
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, Field
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from starlette.testclient import TestClient

from durable_endpoints import (
    DurableEndpointsMiddleware,
    Hook,
    LimitError,
    StepError,
    UsageError,
    endpoint,
    endpoint_proxy,
    step,
)
from durable_endpoints.engines.embedded import embedded_engine
from durable_endpoints.hooks import StepData
from durable_endpoints.settings import Settings
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.store.base import Lane, Ticket
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints.helpers import fast, follow, run_id_of, star

pytestmark = pytest.mark.anyio

count: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def fresh_count() -> None:
    count.clear()


class OnDisk(VirtualEngine):
    """On a store whose writes take their time, in a thread of their own."""

    async def _settle(self, patience: float = 5.0) -> bool:
        for _ in range(3):
            is_quiet = await super()._settle(patience)
            await asyncio.sleep(0.01)
        return is_quiet


@pytest.fixture(params=["memory", "sqlite"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> VirtualEngine:
    """An engine on each of the stores."""
    if request.param == "memory":
        return VirtualEngine()
    engine = OnDisk()
    engine.store = SqliteStore(tmp_path / "runs.db")
    return engine


def counted(name: str, value: Any = None) -> Any:
    count[name] += 1
    return value


async def all_runs(engine: VirtualEngine) -> list[Run]:
    return [line.run for line in (await engine.store.list_runs(list(Status), None, 1_000)).lines]


async def runs_of(engine: VirtualEngine, function_id: str) -> list[Run]:
    return [run for run in await all_runs(engine) if run.function_id == function_id]


def parent_of(app: FastAPI, child: Any, **arguments: Any) -> None:
    """An endpoint `POST /parent` that invokes `child` and answers with the outcome."""

    @app.post("/parent")
    @endpoint(retries=0)
    async def parent() -> Any:
        counted("parent")
        try:
            value = await step.invoke("child", child, **arguments)
        except StepError as error:
            return {"error": str(error), "cause": type(error.__cause__).__name__}
        return {"value": value.text if isinstance(value, httpx.Response) else value}


# What comes back


class Report(BaseModel):
    topic: str
    words: int = Field(alias="wordCount")


async def test_a_result_is_what_the_endpoint_is_annotated_to_return(engine: VirtualEngine) -> None:
    app = fast(engine)
    seen: list[Any] = []

    @app.post("/model")
    @endpoint
    async def model() -> Report:
        return Report(topic="whales", wordCount=3)

    @app.post("/response")
    @endpoint
    async def response() -> PlainTextResponse:
        return PlainTextResponse("raw", 201, {"x-mark": "m"})

    @app.post("/json")
    @endpoint
    async def bare():  # type: ignore[no-untyped-def]
        return [1, {"a": None}]

    @app.post("/text")
    @endpoint
    async def text():  # type: ignore[no-untyped-def]
        return PlainTextResponse("text")

    @app.post("/nothing", status_code=204)
    @endpoint
    async def nothing() -> None:
        return None

    @app.post("/plain", response_class=PlainTextResponse)
    @endpoint
    def plain() -> str:
        return "plain"

    @app.post("/all")
    @endpoint
    async def everything() -> int:
        for child in (model, response, bare, text, nothing, plain):
            seen.append(await step.invoke(child.__name__, child))
        await step.sleep("again", "1s")
        return len(seen)

    async with engine.client(app) as client:
        location = (await client.post("/all")).headers["location"]
        assert (await follow(engine, client, location, "1s")).json() == 12
    for found in (seen[:6], seen[6:]):
        assert found[0] == Report(topic="whales", wordCount=3)
        assert (found[1].status_code, found[1].text) == (201, "raw")
        assert found[1].headers["x-mark"] == "m"
        assert found[2] == [1, {"a": None}]
        assert found[3].text == "text"
        assert found[4:] == [None, "plain"]


async def test_a_child_is_asked_as_a_client_would(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.put("/echo/{name}/{n:int}/{rest:path}")
    @endpoint
    async def echo(name: str, n: int, rest: str, request: Request) -> dict[str, Any]:
        return {
            "path": [name, n, rest],
            "query": request.query_params.multi_items(),
            "body": (await request.body()).decode(),
            "type": request.headers.get("content-type"),
            "headers": {
                key: request.headers[key]
                for key in ("authorization", "cookie", "x-api-key", "x-own", "host", "accept")
                if key in request.headers
            },
            "raw": request.scope["raw_path"].decode(),
            "origin": str(request.base_url),
            "client": request.client and request.client.host,
        }

    @app.post("/parent")
    @endpoint
    async def parent() -> Any:
        return await step.invoke(
            "echo",
            echo,
            params={
                "name": "a ü?%",
                "n": 7,
                "rest": "x/y z",
                "q": ["1", 2],
                "flag": True,
                "none": None,
            },
            json={"report": Report(topic="t", wordCount=1)},
            headers={"X-Own": "o", "Authorization": "other"},
        )

    async with engine.client(app) as client:
        headers = {"authorization": "mine", "cookie": "c=1", "x-api-key": "k", "x-else": "e"}
        response = await client.post("/parent?q=0", headers=headers)
        assert response.status_code == 200, response.text
    told = response.json()
    assert told["path"] == ["a ü?%", 7, "x/y z"]
    assert told["query"] == [["q", "1"], ["q", "2"], ["flag", "true"]]
    assert told["body"] == '{"report":{"topic":"t","wordCount":1}}'
    assert told["type"] == "application/json"
    assert told["headers"] == {
        "authorization": "other",
        "cookie": "c=1",
        "x-api-key": "k",
        "x-own": "o",
        "host": "testserver",
    }
    assert told["raw"] == "/echo/a%20%C3%BC%3F%25/7/x/y%20z"
    assert told["origin"] == "http://testserver/"
    assert told["client"] == "127.0.0.1"


async def test_a_quick_child_costs_its_client_no_redirect(stored: VirtualEngine) -> None:
    app = fast(stored)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await asyncio.sleep(0.05)
        return await step.run("work", counted, "work", "done")

    parent_of(app, child)
    async with stored.client(app) as client:
        response = await client.post("/parent")
        assert (response.status_code, response.json()) == (200, {"value": "done"})
        parent, child_run = await stored.run(run_id_of(response)), None
        (child_run,) = await runs_of(stored, "GET /child")
        assert (child_run.parent_run, child_run.depth) == (parent.id, 1)
        assert child_run.status is Status.COMPLETED
        assert count == {"parent": 1, "work": 1}


async def test_a_child_that_waits_sends_the_client_to_wait(stored: VirtualEngine) -> None:
    app = fast(stored)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await step.sleep("nap", "1h")
        return await step.run("work", counted, "work", "done")

    parent_of(app, child)
    async with stored.client(app) as client:
        response = await client.post("/parent")
        assert response.status_code == 303
        answer = await follow(stored, client, response.headers["location"], "1h")
        assert answer.json() == {"value": "done"}
        assert count == {"parent": 2, "work": 1}


async def test_a_client_waits_for_a_busy_child_no_longer_than_respond_within(
    engine: VirtualEngine,
) -> None:
    app = fast(engine, respond_within="10s")
    go_on = asyncio.Event()

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await go_on.wait()
        return "done"

    parent_of(app, child)
    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/parent"))
        await asyncio.sleep(0.05)
        assert not asking.done()
        engine.clock.move_to(engine.clock.now() + 10_000)
        response = await asyncio.wait_for(asking, 5)
        assert response.status_code == 303
        await engine.settle(0.1)
        assert (await engine.run(run_id_of(response))).status is Status.WAITING
        go_on.set()
        assert (await client.get(response.headers["location"])).json() == {"value": "done"}


async def test_parents_that_are_re_entered_leave_their_places_to_their_children() -> None:
    engine = VirtualEngine(max_executions=2)
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> int:
        await asyncio.sleep(0.01)
        return 1

    @app.post("/parent")
    @endpoint
    async def parent() -> int:
        await step.sleep("nap", "1s")
        found = await asyncio.gather(*(step.invoke(f"c{n}", child) for n in range(3)))
        return sum(found)

    async with engine.client(app) as client:
        asked = await asyncio.gather(*(client.post("/parent") for _ in range(5)))
        await engine.advance("1s")
        for response in asked:
            answer = await client.get(response.headers["location"])
            assert answer.json() == 3
        assert len(await runs_of(engine, "GET /child")) == 15


async def test_plain_handlers_invoke_and_are_invoked(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/child/{n}")
    @endpoint
    def child(n: int) -> int:
        step.sync.sleep("nap", "1s")
        return n + 1

    @app.post("/parent")
    @endpoint
    def parent() -> int:
        return step.sync.invoke("child", child, params={"n": 1})

    async with engine.client(app) as client:
        response = await client.post("/parent")
        answer = await follow(engine, client, response.headers["location"], "1s")
        assert answer.json() == 2


def test_without_a_lifespan_children_run_too(tmp_path: Path) -> None:
    app, database = FastAPI(), str(tmp_path / "runs.db")
    app.add_middleware(DurableEndpointsMiddleware, database=database)
    app.mount("/wait", endpoint_proxy())

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await step.sleep("nap", "50ms")
        return "done"

    parent_of(app, child)
    answer = TestClient(app).post("/parent")
    assert answer.json() == {"value": "done"}
    asyncio.run(embedded_engine(Settings.load({"database": database})).stop())


# Failures


async def test_the_failures_of_a_child_are_step_errors_that_say_what_happened(
    stored: VirtualEngine,
) -> None:
    app = fast(stored)

    @app.get("/raises")
    @endpoint(retries=0)
    async def raises() -> str:
        raise ValueError("the card reader is offline")

    @app.get("/refuses")
    @endpoint
    async def refuses() -> str:
        raise HTTPException(409, "sold out")

    @app.get("/typed")
    @endpoint
    async def typed(n: int) -> str:
        return "never"

    @app.get("/lies")
    @endpoint
    async def lies() -> Report:
        return JSONResponse({"topic": 3})  # type: ignore[return-value]

    @app.get("/late")
    @endpoint(max_runtime="5s")
    async def late() -> None:
        await step.sleep("nap", "1h")

    def guard(authorization: str = Header()) -> None:
        raise HTTPException(401, "who are you?")

    @app.get("/guarded", dependencies=[Depends(guard)])
    @endpoint
    async def guarded() -> str:
        return "never"

    @app.post("/parent/{name}")
    @endpoint
    async def parent(name: str) -> str:
        counted(name)
        children: dict[str, Any] = {
            "raises": raises,
            "refuses": refuses,
            "typed": typed,
            "lies": lies,
            "late": late,
            "guarded": guarded,
        }
        try:
            await step.invoke("child", children[name], params={"n": "x"})
        except StepError as error:
            await step.sleep("nap", "10s")  # the error is remembered
            return f"{type(error.__cause__).__name__}: {error}"
        return "no error"

    async def outcome(name: str) -> str:
        location = (await client.post(f"/parent/{name}", headers=auth)).headers["location"]
        return str((await follow(stored, client, location, "20s")).json())

    auth = {"authorization": "x"}
    async with stored.client(app) as client:
        assert await outcome("raises") == (
            "RememberedError: step 'child' failed once: InvokeError: GET /raises failed: "
            "ValueError: the card reader is offline"
        )
        assert 'GET /refuses answered 409: {"detail":"sold out"}' in await outcome("refuses")
        assert "GET /typed answered 422: {" in await outcome("typed")
        assert "GET /guarded answered 401: " in await outcome("guarded")
        lied = await outcome("lies")
        assert "GET /lies answered 200, but not with what" in lied
        assert "$.topic" in lied
        late_outcome = await outcome("late")
        assert late_outcome.startswith("TimeoutError: ")
        assert "GET /late took longer than its max_runtime" in late_outcome
        assert count["guarded"] == 2  # no retries on the parent's side


async def test_a_child_that_takes_too_long_is_cancelled(stored: VirtualEngine) -> None:
    app = fast(stored)

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.sleep("nap", "1h")

    parent_of(app, child, timeout="90s")
    async with stored.client(app) as client:
        response = await client.post("/parent")
        await stored.advance("89s")
        assert (await stored.run(run_id_of(response))).status is Status.WAITING
        answer = await follow(stored, client, response.headers["location"], "1s")
        assert answer.json() == {
            "error": "step 'child' failed once: TimeoutError: GET /child took longer than the "
            "timeout of 90 s",
            "cause": "TimeoutError",
        }
        (child_run,) = await runs_of(stored, "GET /child")
        assert (child_run.status, child_run.reason) == (Status.CANCELLED, "invocation_timed_out")


async def test_a_child_has_retries_of_its_own_and_its_parent_none(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/child")
    @endpoint(retries=2)
    async def child() -> None:
        counted("child")
        raise RuntimeError("again and again")

    parent_of(app, child)
    async with engine.client(app) as client:
        response = await client.post("/parent")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert "again and again" in answer.json()["error"]
        assert count["child"] == 3
        assert len(await runs_of(engine, "GET /child")) == 1


async def test_an_answer_larger_than_a_result_may_be_is_remembered_as_a_failure() -> None:
    engine = VirtualEngine(max_result=1_000)
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        return "x" * 2_000

    @app.post("/parent")
    @endpoint
    async def parent() -> str:
        try:
            await step.invoke("child", child)
        except LimitError as error:
            await step.sleep("nap", "1s")
            return str(error)
        return "no error"

    async with engine.client(app) as client:
        location = (await client.post("/parent")).headers["location"]
        assert "max_result" in (await follow(engine, client, location, "1s")).json()


async def test_an_endpoint_that_invokes_itself_without_an_end_is_stopped(
    stored: VirtualEngine,
) -> None:
    app = fast(stored)

    @app.get("/loop/{n}")
    @endpoint
    async def loop(n: int) -> int:
        return await step.invoke("deeper", loop, params={"n": n + 1})

    async with stored.client(app) as client:
        response = await client.get("/loop/0")
        await stored.settle(20)
        answer = (
            await client.get(response.headers["location"]) if response.is_redirect else response
        )
        assert answer.status_code == 500
        runs = await all_runs(stored)
        assert max(run.depth for run in runs) == 32
        assert {run.status for run in runs} == {Status.FAILED}
        deepest = await stored.outcome(runs[-1].id, 0)
        assert deepest is not None
        errors = [await stored.outcome(run.id, 0) for run in runs]
        assert any("invoke itself" in outcome.error for outcome in errors if outcome)


# Cancelling


@pytest.mark.parametrize("parent_runs", [True, False], ids=["live", "idle"])
async def test_a_child_does_not_outlive_its_parent(
    stored: VirtualEngine, parent_runs: bool
) -> None:
    app = fast(stored)

    @app.get("/grandchild")
    @endpoint
    async def grandchild() -> None:
        await step.sleep("nap", "1h")

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.invoke("grandchild", grandchild)

    @app.post("/parent")
    @endpoint
    async def parent() -> None:
        async def busy() -> None:
            if parent_runs:
                await asyncio.Event().wait()

        await asyncio.gather(step.run("busy", busy), step.invoke("child", child))

    async with stored.client(app) as client:
        asking = asyncio.create_task(client.post("/parent"))
        while len(await all_runs(stored)) < 3:
            await asyncio.sleep(0.01)
        if not parent_runs:
            await asking
        await stored.settle(0.2)
        (run,) = await runs_of(stored, "POST /parent")
        assert run.status is (Status.RUNNING if parent_runs else Status.WAITING)
        assert await stored.cancel(run.id, "enough")
        await asking
        await stored.settle()
        assert {run.function_id: run.reason for run in await all_runs(stored)} == {
            "POST /parent": "enough",
            "GET /child": "parent_ended",
            "GET /grandchild": "parent_ended",
        }


async def test_a_parent_that_ends_without_its_child_ends_it(stored: VirtualEngine) -> None:
    app = fast(stored)

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.sleep("nap", "1h")

    @app.post("/parent")
    @endpoint
    async def parent() -> str:
        waiting = asyncio.create_task(step.invoke("child", child))
        await step.sleep("nap", "1s")
        waiting.cancel()
        return "I have waited long enough"

    async with stored.client(app) as client:
        location = (await client.post("/parent")).headers["location"]
        await follow(stored, client, location, "1s")
        (child_run,) = await runs_of(stored, "GET /child")
        assert (child_run.status, child_run.reason) == (Status.CANCELLED, "parent_ended")


async def test_a_child_that_is_cancelled_fails_the_step(stored: VirtualEngine) -> None:
    app = fast(stored)

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.sleep("nap", "1h")

    parent_of(app, child)
    async with stored.client(app) as client:
        response = await client.post("/parent")
        (child_run,) = await runs_of(stored, "GET /child")
        await stored.cancel(child_run.id, "by hand")
        await stored.settle()
        answer = await client.get(response.headers["location"])
        assert "GET /child was cancelled (by hand)" in answer.json()["error"]


# Crashes


class Forgetful(MemoryStore):
    """A store whose process dies as soon as something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_at: Any = None
        self.died = asyncio.Event()

    def submit(self, change: Any, lane: Lane | None = None) -> Ticket:
        ticket = super().submit(change, lane)
        if self.dies_at is not None and self.dies_at(change):
            self.dies_at = None
            self.died.set()
            return _Never()
        return ticket if not self.died.is_set() else _Never()


class _Never:
    """A ticket of a process that is not there any more when the change is on disk."""

    async def wait(self) -> None:
        await asyncio.Event().wait()

    def then(self, callback: Any) -> None:
        pass


def _ends(run_id: str) -> Any:
    def matches(change: Any) -> bool:
        return change.run_id == run_id and any(
            type(fact).__name__ == "RunEnded" for fact in change.facts
        )

    return matches


async def test_a_child_that_ended_as_the_process_died_wakes_its_parent_in_the_next_one(
    engine: VirtualEngine,
) -> None:
    store = engine.store = Forgetful()
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await step.sleep("nap", "1h")
        return await step.run("work", counted, "work", "done")

    parent_of(app, child)
    async with engine.client(app) as client:
        response = await client.post("/parent")
        (child_run,) = await runs_of(engine, "GET /child")
        store.dies_at = _ends(child_run.id)
        engine.clock.move_to(engine.clock.now() + 3_600_000)
        await asyncio.wait_for(store.died.wait(), 5)
        assert (await engine.run(child_run.id)).status is Status.COMPLETED
        assert (await engine.run(run_id_of(response))).status is Status.WAITING
        await engine.crash()
        store.died.clear()
        await engine.start()
        await engine.settle()
        answer = await client.get(response.headers["location"])
        assert answer.json() == {"value": "done"}
        assert count["work"] == 1


async def test_a_parent_that_ended_as_the_process_died_takes_its_children_with_it(
    engine: VirtualEngine,
) -> None:
    store = engine.store = Forgetful()
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.sleep("nap", "1h")

    parent_of(app, child)
    async with engine.client(app) as client:
        response = await client.post("/parent")
        parent = run_id_of(response)
        store.dies_at = _ends(parent)
        cancelling = asyncio.create_task(engine.cancel(parent, "enough"))
        await asyncio.wait_for(store.died.wait(), 5)
        await engine.crash()
        cancelling.cancel()
        (child_run,) = await runs_of(engine, "GET /child")
        assert child_run.status is Status.WAITING
        store.died.clear()
        await engine.start()
        await engine.settle()
        assert (await engine.run(child_run.id)).status is Status.CANCELLED


@pytest.mark.parametrize("turns", range(0, 120, 6))
async def test_a_crash_at_any_moment_changes_nothing_in_the_answer(
    engine: VirtualEngine, turns: int
) -> None:
    app = fast(engine)

    @app.get("/child/{n}")
    @endpoint
    async def child(n: int) -> int:
        return int(await step.run("work", counted, f"work {n}", n))

    @app.post("/parent")
    @endpoint
    async def parent() -> list[int]:
        await step.sleep("nap", "1s")
        found = await asyncio.gather(
            *(step.invoke(f"child {n}", child, params={"n": n}) for n in range(2))
        )
        return [*found, await step.invoke("last", child, params={"n": 7})]

    async with engine.client(app) as client:
        response = await client.post("/parent")
        engine.clock.move_to(engine.clock.now() + 1_000)
        for _ in range(turns):
            await asyncio.sleep(0)
        await engine.crash()
        await engine.start()
        await engine.settle()
        assert (await client.get(response.headers["location"])).json() == [0, 1, 7]
        assert len(await runs_of(engine, "GET /child/{n}")) == 3


async def test_a_parent_does_not_stay_while_another_run_has_to_be_alone(
    engine: VirtualEngine,
) -> None:
    """That one waits until nothing is executed, and no child begins meanwhile."""
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        return "done"

    parent_of(app, child)
    async with engine.client(app) as client:

        async def alone() -> None:
            pass

        await engine.settle()
        engine.host.dispatcher.admit = alone  # type: ignore[method-assign]
        engine.host.dispatcher.alone = True
        response = await asyncio.wait_for(client.post("/parent"), 5)
        assert response.status_code == 303
        engine.host.dispatcher.alone = False
        engine.host.dispatcher.nudge()
        assert (await client.get(response.headers["location"])).json() == {"value": "done"}


async def test_a_child_that_is_parked_is_waited_for(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        await step.sleep("nap", "1h")
        return "done"

    parent_of(app, child)
    async with engine.client(app) as client:
        response = await client.post("/parent")
        (child_run,) = await runs_of(engine, "GET /child")
        store = engine.store
        assert isinstance(store, MemoryStore)
        store._rows[child_run.id].run = child_run._replace(status=Status.PARKED)
        await engine.advance("2h")
        assert (await engine.run(run_id_of(response))).status is Status.WAITING
        await engine.host.retry(child_run.id)
        await engine.settle()
        await engine.advance("1s")
        assert (await client.get(response.headers["location"])).json() == {"value": "done"}


async def test_a_server_that_shuts_down_does_not_wait_for_a_busy_child(
    engine: VirtualEngine,
) -> None:
    app = fast(engine)
    began = asyncio.Event()

    @app.get("/child")
    @endpoint
    async def child() -> None:
        began.set()
        await asyncio.Event().wait()

    parent_of(app, child)
    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/parent"))
        await asyncio.wait_for(began.wait(), 5)
        engine.begin_drain()
        response = await asyncio.wait_for(asking, 5)
        assert response.status_code == 303


# Which endpoint, and by which way


async def test_methods_of_classes_and_mounted_applications_are_found_by_their_routes(
    engine: VirtualEngine,
) -> None:
    class Items(HTTPEndpoint):
        @endpoint
        async def get(self, request: Request) -> JSONResponse:
            return JSONResponse(["get", request.path_params["tenant"]])

        @endpoint
        async def post(self, request: Request) -> JSONResponse:
            return JSONResponse(["post", request.path_params["tenant"]])

    @endpoint
    async def parent(request: Request) -> Response:
        params = {"tenant": "acme"}
        first = await step.invoke("get", Items.get, params=params)
        second = await step.invoke("post", Items.post, params=params)
        return JSONResponse([first.json(), second.json()])

    inner = Starlette(routes=[Route("/items", Items)])
    app = star(engine, Mount("/t/{tenant}", inner), Route("/", parent))
    async with engine.client(app) as client:
        assert (await client.get("/")).json() == [["get", "acme"], ["post", "acme"]]
        ids = {run.function_id for run in await all_runs(engine)}
        assert ids == {"GET /t/{tenant}/items", "POST /t/{tenant}/items", "GET /"}


async def test_a_mounted_application_of_its_own_invokes_below_its_mount(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def child(request: Request) -> Response:
        return JSONResponse([request.url.path, request.path_params])

    @endpoint
    async def parent(request: Request) -> Response:
        return await _passed_on(step.invoke("child", child, params={"n": 5}))

    async def _passed_on(invoking: Any) -> Response:
        answer = await invoking
        return Response(answer.content, media_type="application/json")

    inner = star(engine, Route("/child/{n:int}", child), Route("/parent", parent))
    app = Starlette(routes=[Mount("/tenants/{tenant}", inner)])
    async with engine.client(app) as client:
        answer = (await client.get("/tenants/acme/parent")).json()
        assert answer == ["/tenants/acme/child/5", {"tenant": "acme", "n": 5}]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


async def test_an_enumeration_stands_in_path_and_query_by_its_value(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/child/{colour}")
    @endpoint
    async def child(colour: Colour, others: Annotated[list[Colour], Query()]) -> str:
        return f"{colour.value} {[other.value for other in others]}"

    parent_of(app, child, params={"colour": Colour.RED, "others": list(Colour)})
    async with engine.client(app) as client:
        assert (await client.post("/parent")).json() == {"value": "red ['red', 'blue']"}


async def test_of_several_routes_the_parameters_choose(engine: VirtualEngine) -> None:
    @endpoint
    async def child(request: Request) -> JSONResponse:
        return JSONResponse([request.method, request.url.path])

    @endpoint
    async def parent(request: Request) -> JSONResponse:
        calls: list[dict[str, Any]] = [
            {"method": "get"},
            {"method": "PUT", "params": {"id": "x"}},
        ]
        found = [
            (await step.invoke(f"call {n}", child, **call)).json() for n, call in enumerate(calls)
        ]
        return JSONResponse(found)

    app = star(
        engine,
        Route("/child", child),
        Route("/child/{id}", child, methods=["PUT", "PATCH"]),
        Route("/parent", parent),
    )
    async with engine.client(app) as client:
        answer = (await client.get("/parent")).json()
        assert answer == [["GET", "/child"], ["PUT", "/child/x"]]


def _wrong_calls() -> list[tuple[str, Any, str]]:
    async def plain() -> None: ...

    @endpoint
    async def nowhere() -> None: ...

    return [
        ("plain", lambda r: step.invoke("x", plain), "not decorated with @endpoint"),
        ("nowhere", lambda r: step.invoke("x", nowhere), "on no route of this application"),
        ("method", lambda r: step.invoke("x", r["one"], method="PUT"), "does not answer PUT"),
        ("several", lambda r: step.invoke("x", r["two"]), "GET /two, POST /two): say which"),
        ("missing", lambda r: step.invoke("x", r["one"]), "needs 'n': params={'n': …}"),
        ("unfit", lambda r: step.invoke("x", r["one"], params={"n": "x"}), "'x' cannot be 'n'"),
        ("taken", lambda r: step.invoke("x", r["by_name"], params={"s": "taken"}), "belongs to"),
        (
            "query",
            lambda r: step.invoke("x", r["one"], params={"n": 1, "q": {"a": 1}}),
            "no place in a query",
        ),
        (
            "body",
            lambda r: step.invoke("x", r["one"], params={"n": 1}, json=float("nan")),
            "cannot be sent: at $",
        ),
        (
            "set in the query",
            lambda r: step.invoke("x", r["one"], params={"n": 1, "q": {1, 2}}),
            "no place in a query",
        ),
        (
            "header",
            lambda r: step.invoke("x", r["one"], params={"n": 1}, headers={"Host": "evil"}),
            "'Host' cannot be chosen",
        ),
        (
            "two headers in one",
            lambda r: step.invoke("x", r["one"], params={"n": 1}, headers={"x-a": "1\r\nx-b: 2"}),
            "cannot be a header",
        ),
        (
            "header name",
            lambda r: step.invoke("x", r["one"], params={"n": 1}, headers={"x a:": "1"}),
            "cannot be a header",
        ),
        (
            "timeout",
            lambda r: step.invoke("x", r["one"], params={"n": 1}, timeout="soon"),
            "not a duration",
        ),
    ]


@pytest.mark.parametrize(
    ("call", "message"), [case[1:] for case in _wrong_calls()], ids=[c[0] for c in _wrong_calls()]
)
async def test_mistakes_are_told(engine: VirtualEngine, call: Any, message: str) -> None:
    app = fast(engine)

    @app.get("/one/{n:int}")
    @endpoint
    async def one(n: int) -> int:
        return n

    @app.api_route("/two", methods=["GET", "POST"])
    @endpoint
    async def two() -> int:
        return 2

    @app.get("/s/taken")
    async def taken() -> int:
        return 3

    @app.get("/s/{s}")
    @endpoint
    async def by_name(s: str) -> str:
        return s

    @app.post("/parent")
    @endpoint
    async def parent() -> str:
        try:
            await call({"one": one, "two": two, "by_name": by_name})
        except UsageError as error:
            return str(error)
        return "no error"

    async with engine.client(app) as client:
        assert message in (await client.post("/parent")).json()
        assert len(await all_runs(engine)) == 1


async def test_outside_a_request_there_is_nothing_to_invoke_in() -> None:
    @endpoint
    async def child() -> None: ...

    with pytest.raises(UsageError, match="outside a request"):
        await step.invoke("x", child)


async def test_hooks_encode_what_a_child_answered(engine: VirtualEngine) -> None:
    class Reversing(Hook):
        def encode(self, where: StepData, data: bytes) -> bytes:
            return orjson.dumps({"reversed": data.decode()[::-1]})

        def decode(self, where: StepData, data: bytes) -> bytes:
            return str(orjson.loads(data)["reversed"])[::-1].encode()

    app = fast(engine, hooks=[Reversing()])

    @app.get("/child/{n}")
    @endpoint
    async def child(n: int) -> str:
        if n:
            raise HTTPException(400, "no secret")
        return "a secret"

    @app.post("/parent")
    @endpoint
    async def parent() -> list[str]:
        found = await step.invoke("child", child, params={"n": 0})
        try:
            await step.invoke("failing child", child, params={"n": 1})
        except StepError as error:
            await step.sleep("nap", "1s")
            return [found, str(error)]
        return []

    async with engine.client(app) as client:
        response = await client.post("/parent")
        memo = await engine.memo(run_id_of(response))
        assert b"secret" not in (memo["child"].value or b"")
        assert b"secret" not in (memo["failing child"].error or b"")
        found = (await follow(engine, client, response.headers["location"], "1s")).json()
        assert found[0] == "a secret"
        assert "no secret" in found[1]


# A disk that takes its time


class Sluggish(MemoryStore):
    """A store whose writes take as long as `disk` is held."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = asyncio.Event()
        self.disk.set()

    def submit(self, change: Any, lane: Lane | None = None) -> Ticket:
        return super().submit(change, lane) if self.disk.is_set() else _Late(self, change)


class _Late:
    def __init__(self, store: Sluggish, change: Any) -> None:
        async def write() -> Ticket:
            await store.disk.wait()
            return MemoryStore.submit(store, change)

        self._written = asyncio.ensure_future(write())

    async def wait(self) -> None:
        await (await asyncio.shield(self._written)).wait()

    def then(self, callback: Any) -> None:
        self._written.add_done_callback(lambda done: done.result().then(callback))


async def test_a_child_whose_time_is_over_before_it_is_on_disk_is_cancelled(
    engine: VirtualEngine,
) -> None:
    store = engine.store = Sluggish()
    app = fast(engine)

    @app.get("/child")
    @endpoint
    async def child() -> None:
        await step.sleep("nap", "1h")
        await step.run("work", counted, "work")

    parent_of(app, child, timeout="1ms")
    async with engine.client(app) as client:
        store.disk.clear()
        asking = asyncio.create_task(client.post("/parent", follow_redirects=True))
        while not count["parent"]:
            await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        engine.clock.move_to(engine.clock.now() + 1)
        await asyncio.sleep(0.01)
        store.disk.set()
        answer = (await asyncio.wait_for(asking, 5)).json()
        assert answer["cause"] == "TimeoutError", answer
        await engine.advance("2h")
        assert [run.status for run in await runs_of(engine, "GET /child")] == [Status.CANCELLED]
        assert not count["work"]


async def test_whoever_is_told_that_a_run_is_cancelled_finds_nothing_below_it_alive(
    engine: VirtualEngine,
) -> None:
    app = fast(engine)

    @app.post("/below/{depth}")
    @endpoint
    async def below(depth: int) -> None:
        if depth:
            await asyncio.gather(
                *(step.invoke(f"{n}", below, params={"depth": depth - 1}) for n in range(2))
            )
        await step.sleep("nap", "1h")

    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/below/3"))
        await engine.settle()
        while len(engine.runs()) < 15:
            await asyncio.sleep(0.001)
        assert await engine.cancel(engine.runs()[0].id, "by hand")
        assert {run.status for run in engine.runs()} == {Status.CANCELLED}
        await asking
