"""This SDK on an Inngest server: a double of it and an application, each behind a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response

from durable_endpoints import (
    DurableEndpointsMiddleware,
    NonRetriableError,
    RetryAfterError,
    StepEncryption,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
)
from durable_endpoints.engines.inngest import engine
from tests.interop.inngest_server import InngestServer, serving

pytestmark = pytest.mark.anyio

SIGNING = "signkey-test-" + "ab" * 32


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
async def inngest() -> AsyncIterator[InngestServer]:
    server = InngestServer()
    server.clock = 20
    async with server.serving():
        yield server


def application(inngest: InngestServer, **settings: Any) -> FastAPI:
    app = FastAPI()
    app.add_middleware(DurableEndpointsMiddleware, server_url=inngest.url, **settings)
    app.mount("/wait", endpoint_proxy())
    return app


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False, verify=False) as client,
    ):
        yield client


Body = Callable[[], Any]


def counting(times: list[str], name: str, value: Any = None) -> Body:
    async def body() -> Any:
        times.append(name)
        return name if value is None else value

    return body


async def test_a_run_without_waits_is_told_step_by_step_and_answered_at_once(
    inngest: InngestServer,
) -> None:
    app, done = application(inngest), []

    @app.get("/sum/{n}")
    @endpoint
    async def sum_up(n: int) -> dict[str, Any]:
        a = await step.run("a", counting(done, "a", n))
        b = await step.run("b", counting(done, "b", 2))
        return {"sum": a + b}

    async with client_of(app) as client:
        answer = await client.get("/sum/1")
        assert (answer.status_code, answer.json()) == (200, {"sum": 3})
        run = await inngest.ended(answer.headers["durable-run-id"])
    assert run.status == "COMPLETED"
    assert run.event["data"]["fn"] == "GET /sum/{n}"
    assert run.output["status"] == 200
    assert run.output["body"] == '{"sum":3}'
    assert done == ["a", "b"]
    assert not inngest.calls


async def test_a_run_without_steps_is_told_once_before_its_client_has_the_answer(
    inngest: InngestServer,
) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint
    async def hello() -> str:
        return "hello"

    async with client_of(app) as client:
        answer = await client.get("/")
        assert inngest.runs[answer.headers["durable-run-id"]].status == "COMPLETED"
    assert [path for method, path, _ in inngest.requests if method == "POST"] == ["/v1/checkpoint"]


async def test_a_sleep_is_driven_by_the_server_and_the_answer_is_the_handlers_own(
    inngest: InngestServer,
) -> None:
    app, done = application(inngest), []

    @app.post("/report")
    @endpoint
    async def report(request: Request) -> Response:
        topic = (await request.json())["topic"]
        await step.run("gather", counting(done, "gather"))
        await step.sleep("rest", "250ms")
        user = request.cookies["user"]
        text = await step.run("write", counting(done, "write", f"{topic} for {user}"))
        response = Response(text, 201, {"x-topic": topic})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async with client_of(app) as client:
        first = await client.post(
            "/report",
            json={"topic": "whales"},
            headers={"authorization": "Bearer secret", "cookie": "user=ada"},
        )
        assert first.status_code == 303
        answer = await client.get(first.headers["location"])
    assert (answer.status_code, answer.text) == (201, "whales for ada")
    assert answer.headers["x-topic"] == "whales"
    assert len(answer.headers.get_list("set-cookie")) == 2
    assert done == ["gather", "write"]
    assert [reply.status_code for reply in inngest.replies] == [206, 206]
    assert [call.method for call in inngest.calls] == ["POST", "POST"]
    told = str(inngest.requests)
    assert "secret" not in told
    assert "ada" not in told.replace("whales for ada", "")


async def follow(client: httpx.AsyncClient, *args: Any, **options: Any) -> httpx.Response:
    """Ask, and wait for the answer wherever it is."""
    return await client.request(*args, follow_redirects=True, **options)


async def test_a_step_that_fails_is_tried_again_by_the_server(inngest: InngestServer) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint(retries=2)
    async def handler() -> str:
        await step.run("before", counting(tries, "before"))

        async def flaky() -> str:
            tries.append("flaky")
            if tries.count("flaky") < 3:
                raise ValueError("not yet")
            return "at last"

        return await step.run("flaky", flaky)

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.json() == "at last"
    assert tries == ["before", "flaky", "flaky", "flaky"]
    failed = [op for _, _, body in inngest.requests for op in (body or {}).get("steps", [])][-1]
    assert (failed["op"], failed["error"]["name"]) == ("StepError", "ValueError")
    assert failed["error"]["message"] == "not yet"


async def test_a_step_whose_tries_are_used_up_can_be_caught_by_the_handler(
    inngest: InngestServer,
) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint(retries=1)
    async def handler() -> dict[str, Any]:
        async def broken() -> None:
            tries.append("broken")
            raise ValueError("never")

        try:
            await step.run("broken", broken)
        except StepError as error:
            return {"caught": str(error.__cause__), "by": await step.run("b", counting(tries, "b"))}
        return {}

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.json() == {"caught": "never", "by": "b"}
    assert tries == ["broken", "broken", "b"]


@pytest.mark.parametrize("after", ["at once", "a sleep"])
async def test_a_failure_that_is_not_to_be_retried_reaches_the_handler_once(
    inngest: InngestServer, after: str
) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> str:
        if after == "a sleep":
            await step.sleep("rest", 0.1)

        async def broken() -> None:
            tries.append("broken")
            raise NonRetriableError("no")

        try:
            await step.run("broken", broken)
        except StepError as error:
            return f"caught {error.__cause__}"
        return "nothing"

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.json() == "caught no"
    assert tries == ["broken"]


async def test_a_handler_that_fails_is_tried_again_and_its_own_failure_is_the_answer(
    inngest: InngestServer,
) -> None:
    app, tries = application(inngest), []

    @app.exception_handler(500)
    async def on_error(request: Request, error: Exception) -> Response:
        return Response(f"sorry: {error}", 500, {"x-own": "1"})

    @app.get("/")
    @endpoint(retries=1)
    async def handler() -> None:
        tries.append("handler")
        raise ValueError("broken")

    async with client_of(app) as client:
        first = await client.get("/")
        answer = await client.get(first.headers["location"])
        run = await inngest.ended(first.headers["durable-run-id"])
    assert (answer.status_code, answer.text, answer.headers["x-own"]) == (500, "sorry: broken", "1")
    assert tries == ["handler", "handler"]
    assert run.status == "FAILED"
    assert run.output["error"]["message"] == "broken"


async def test_a_handler_that_fails_for_good_at_once_fails_its_run(
    inngest: InngestServer,
) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> None:
        await step.run("a", counting(tries, "a"))
        raise NonRetriableError("no use")

    async with client_of(app) as client:
        answer = await client.get("/")
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")
        assert "stack" not in answer.text
        run = await inngest.ended(next(iter(inngest.runs)))
    assert run.status == "FAILED"
    assert run.output["error"]["name"] == "NonRetriableError"
    assert tries == ["a"]


async def test_a_wait_is_resolved_by_an_event_that_matches(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.post("/orders/{order_id}")
    @endpoint
    async def handler(order_id: int) -> dict[str, Any]:
        paid = await step.wait_for_event(
            "paid", event="order/paid", match="data.order_id", timeout="24h"
        )
        late = await step.wait_for_event("late", event="never", timeout="1s")
        return {"paid": paid.data if paid else None, "late": late}

    async with client_of(app) as client:
        first = await client.post("/orders/7")
        waiting = asyncio.create_task(client.get(first.headers["location"]))
        async with httpx.AsyncClient(base_url=inngest.url, trust_env=False, verify=False) as other:
            await other.post("/e/key", json={"name": "order/paid", "data": {"order_id": 8}})
            await other.post("/e/key", json={"name": "order/paid", "data": {"order_id": 7}})
        answer = await waiting
    assert answer.json() == {"paid": {"order_id": 7}, "late": None}


async def test_a_condition_may_speak_of_what_the_server_takes_for_the_runs_own_event(
    inngest: InngestServer,
) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint
    async def handler() -> Any:
        found = await step.wait_for_event(
            "it",
            event="it",
            timeout="24h",
            match={"data.event.id": 7, "data.text": "an event. Or two"},
            if_exp='async.data.my_event.ok && async.data.text != "event.x"',
        )
        return found.data["n"] if found else None

    async with client_of(app) as client:
        first = await client.get("/")
        async with httpx.AsyncClient(base_url=inngest.url, trust_env=False, verify=False) as other:
            for n, ok in ((1, False), (2, True)):
                data = {
                    "n": n,
                    "event": {"id": 7},
                    "my_event": {"ok": ok},
                    "text": "an event. Or two",
                }
                await other.post("/e/key", json={"name": "it", "data": data})
        assert (await client.get(first.headers["location"])).json() == 2


async def test_alternatives_of_one_event_are_waited_for_together_and_of_several_refused(
    inngest: InngestServer,
) -> None:
    app = application(inngest)

    @app.get("/one")
    @endpoint
    async def one() -> Any:
        found = await step.wait_for_any(
            "decision",
            {
                "yes": {"event": "decided", "match": {"data.ok": True}},
                "no": {"event": "decided", "match": {"data.ok": False}},
            },
            timeout="24h",
        )
        return found[0] if found else None

    @app.get("/two")
    @endpoint
    async def two() -> Any:
        return await step.wait_for_any("decision", ["approved", "rejected"], timeout="24h")

    async with client_of(app) as client:
        first = await client.get("/one")
        async with httpx.AsyncClient(base_url=inngest.url, trust_env=False, verify=False) as other:
            await other.post("/e/key", json={"name": "decided", "data": {"ok": False}})
        assert (await client.get(first.headers["location"])).json() == "no"
        assert (await client.get("/two")).status_code == 500


async def test_steps_side_by_side_run_in_process_at_first_and_by_their_names_later(
    inngest: InngestServer,
) -> None:
    app, done = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> list[str]:
        first = await asyncio.gather(*[step.run(n, counting(done, n)) for n in ("a", "b")])
        await step.sleep("rest", 0.1)
        second = await asyncio.gather(*[step.run(n, counting(done, n)) for n in ("c", "d", "e")])
        last = await step.run("f", counting(done, "f"))
        return [*first, *second, last]

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.json() == ["a", "b", "c", "d", "e", "f"]
    assert sorted(done) == ["a", "b", "c", "d", "e", "f"]
    replies = [reply.json() for reply in inngest.replies]
    assert [op["op"] for op in replies[0]] == ["StepPlanned"] * 3
    assert all(len(ops) == 1 for ops in replies[1:] if isinstance(ops, list))


async def test_a_branch_goes_on_while_another_one_sleeps(inngest: InngestServer) -> None:
    app, done = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> str:
        async def branch() -> None:
            await step.sleep("short", 0.2)
            for name in ("a", "b"):
                await step.run(name, counting(done, name))

        async def sleeper() -> None:
            await step.sleep("long", "20s")
            done.append("awake")

        await asyncio.gather(branch(), sleeper())
        return "done"

    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
    assert answer.json() == "done"
    assert [name for name in done if name != "awake"] == ["a", "b"]
    assert done.index("b") < done.index("awake")


async def test_a_lost_acknowledgement_repeats_nothing(inngest: InngestServer) -> None:
    app, done = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await step.run("a", counting(done, "a"))
        await step.run("b", counting(done, "b"))
        await step.sleep("rest", 0.1)
        return await step.run("c", counting(done, "c"))

    @app.get("/short")
    @endpoint
    async def short() -> str:
        return "short"

    lost: set[str] = set()

    def lose(path: str, body: Any) -> bool:
        kinds = [op["op"] for op in (body or {}).get("steps", [])]
        if path.startswith("/v1/checkpoint") and str(kinds) not in lost:
            lost.add(str(kinds))
            return True
        return False

    inngest.lose = lose
    async with client_of(app) as client:
        answer = await follow(client, "GET", "/")
        assert answer.json() == "c"
        assert done == ["a", "b", "c"]
        assert (await client.get("/short")).json() == "short"
    assert len(lost) == 3


async def test_a_server_that_is_away_for_good_is_said_so(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.get("/")
    @endpoint
    async def handler() -> str:
        await step.run("a", counting([], "a"))
        return await step.run("b", counting([], "b"))

    inngest.refuse = lambda path: path.startswith("/v1/checkpoint")
    async with client_of(app) as client:
        answer = await client.get("/")
    assert answer.status_code == 503
    assert answer.headers["durable-step-executed"] == "a"


async def test_another_process_of_the_application_goes_on_with_a_run(
    inngest: InngestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def new_app() -> FastAPI:
        monkeypatch.setattr(engine, "_shared", {})  # as in a process of its own
        app = application(inngest)

        @app.get("/")
        @endpoint
        async def handler() -> str:
            await step.run("a", counting(done, "a"))
            await step.wait_for_event("go", event="go", timeout="24h")
            return await step.run("b", counting(done, "b"))

        return app

    async with client_of(new_app()) as client:
        first = await client.get("/")
    async with client_of(new_app()) as client:
        run = inngest.runs[first.headers["durable-run-id"]]
        run.event["data"]["domain"] = str(client.base_url).rstrip("/")  # it has another port now
        async with httpx.AsyncClient(base_url=inngest.url, trust_env=False, verify=False) as other:
            await other.post("/e/key", json={"name": "go", "data": {}})
        answer = await client.get(first.headers["location"])
    assert answer.json() == "b"
    assert done == ["a", "b"]


async def test_plain_handlers_events_and_signals_work(inngest: InngestServer) -> None:
    app, done = application(inngest), []

    @app.get("/plain")
    @endpoint
    def plain() -> str:
        step.sync.run("a", lambda: done.append("a"))
        step.sync.sleep("rest", 0.1)
        step.sync.send_event("tell", "told", {"x": 1})
        return "plain"

    @app.get("/signal")
    @endpoint
    async def signal() -> Any:
        found = await step.wait_for_signal("ready", signal="ready-7", timeout="1h")
        return found.data if found else None

    @app.get("/send")
    @endpoint
    async def send() -> list[bool]:
        return [
            await step.send_signal("first", "ready-7", {"ok": 1}),
            await step.send_signal("second", "nobody"),
        ]

    async with client_of(app) as client:
        assert (await follow(client, "GET", "/plain")).json() == "plain"
        assert done == ["a"]
        assert [event["name"] for event in inngest.events] == ["told"]
        first = await client.get("/signal")
        assert (await client.get("/send")).json() == [True, False]
        assert (await client.get(first.headers["location"])).json() == {"ok": 1}


async def test_what_the_server_cannot_do_is_an_error_at_the_call(inngest: InngestServer) -> None:
    app = application(inngest)

    @app.get("/child")
    @endpoint
    async def child() -> str:
        return "child"

    @app.get("/")
    @endpoint
    async def parent() -> str:
        return await step.invoke("child", child)

    async with client_of(app) as client:
        assert (await client.get("/")).status_code == 500


async def test_a_retry_comes_when_the_step_wants_it(inngest: InngestServer) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint(retries=1)
    async def handler() -> str:
        await step.sleep("rest", 0.1)

        async def busy() -> str:
            tries.append("busy")
            if len(tries) < 2:
                raise RetryAfterError("busy", "7s")
            return "done"

        return await step.run("busy", busy)

    async with client_of(app) as client:
        assert (await follow(client, "GET", "/")).json() == "done"
    assert [reply.headers.get("retry-after") for reply in inngest.replies] == ["7", None, None]
    assert len(tries) == 2


async def test_the_tries_of_a_step_are_its_own(inngest: InngestServer) -> None:
    app, tries = application(inngest), []

    @app.get("/")
    @endpoint(retries=5)
    async def handler() -> str:
        async def broken() -> None:
            tries.append("broken")
            raise ValueError("never")

        try:
            await step.options(retries=1).run("broken", broken)
        except StepError as error:
            return f"{error.attempts} tries"
        return ""

    async with client_of(app) as client:
        assert (await follow(client, "GET", "/")).json() == "2 tries"
    assert tries == ["broken", "broken"]


async def test_a_shutdown_hands_the_run_to_the_server(inngest: InngestServer) -> None:
    done: list[str] = []
    app = application(inngest)
    began = asyncio.Event()

    @app.get("/")
    @endpoint
    async def handler() -> str:
        async def slow() -> str:
            began.set()
            await asyncio.sleep(0.2)
            done.append("slow")
            return "slow"

        await step.run("slow", slow)
        return await step.run("next", counting(done, "next"))

    async with client_of(app) as client:
        asking = asyncio.create_task(client.get("/"))
        await began.wait()
        middleware(app).begin_drain()
        answer = await asking
        assert answer.status_code == 303
        assert done == ["slow"]
    told = [op["displayName"] for _, _, body in inngest.requests if body for op in body["steps"]]
    assert told[:2] == ["slow", "durable:request"]
    assert told[2].startswith("durable:handover")


def middleware(app: FastAPI) -> Any:
    """What the middleware of a running application knows."""
    layer: Any = app.middleware_stack
    while not isinstance(layer, DurableEndpointsMiddleware):
        layer = layer.app
    return layer._application


async def test_a_step_that_fails_for_good_waits_for_its_siblings(inngest: InngestServer) -> None:
    app, done = application(inngest), []

    @app.get("/")
    @endpoint
    async def handler() -> list[str]:
        async def broken() -> None:
            done.append("broken")
            raise NonRetriableError("no")

        async def slow() -> str:
            await asyncio.sleep(0.1)
            done.append("slow")
            return "slow"

        found = await asyncio.gather(
            step.run("broken", broken), step.run("slow", slow), return_exceptions=True
        )
        return [str(one) if isinstance(one, str) else type(one).__name__ for one in found]

    async with client_of(app) as client:
        assert (await follow(client, "GET", "/")).json() == ["StepError", "slow"]
    assert done == ["broken", "slow"]


async def test_step_data_can_be_encrypted(inngest: InngestServer) -> None:
    app = FastAPI()
    app.add_middleware(
        DurableEndpointsMiddleware, server_url=inngest.url, hooks=[StepEncryption("k" * 32)]
    )

    @app.get("/")
    @endpoint
    async def handler() -> Response:
        text = await step.run("a", counting([], "a", "a secret"))
        await step.sleep("rest", 0.1)

        async def broken() -> None:
            raise NonRetriableError("another secret")

        try:
            await step.run("b", broken)
        except StepError as error:
            return Response(f"{len(text)} {len(str(error.__cause__))}")
        return Response("")

    async with client_of(app) as client:
        assert (await follow(client, "GET", "/")).text == "8 14"
    assert "secret" not in str(inngest.requests)
    assert "secret" not in str([reply.text for reply in inngest.replies])


async def test_the_server_calls_where_the_public_url_says(inngest: InngestServer) -> None:
    app = application(inngest, public_url="https://api.example.com/shop")

    @app.get("/{item}")
    @endpoint
    async def handler(item: str) -> None:
        await step.wait_for_event("never", event="never", timeout="24h")

    async with client_of(app) as client:
        await client.get("/a%20b?x=1", headers={"host": "evil.example.com"})
    (run,) = inngest.runs.values()
    shown = {name: run.event["data"][name] for name in ("domain", "path", "query_params")}
    assert shown == {
        "domain": "https://api.example.com",
        "path": "/shop/a%20b",
        "query_params": "x=1",
    }
