"""Waits and events: every one found, none twice, decided by the time of receipt."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from durable_endpoints import endpoint, send_event, step
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints.helpers import fast, follow, one, run_id_of, star

pytestmark = pytest.mark.anyio


def waiter(**wait: Any) -> Any:
    @endpoint
    async def handler(request: Request) -> Response:
        event = await step.wait_for_event("ok", **{"event": "ok", "timeout": "1h", **wait})
        return JSONResponse(None if event is None else [event.name, event.data, event.id, event.ts])

    return handler


async def test_an_event_wakes_a_waiting_run(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, waiter())) as client:
        response = await client.get("/")
        assert response.status_code == 303
        sent = await engine.send_event("ok", {"by": "ü"}, ts=5)
        answer = await client.get(response.headers["location"])
        assert answer.json() == ["ok", {"by": "ü"}, sent, 5]


async def test_a_timeout_gives_none(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, waiter())) as client:
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() is None
        await engine.send_event("ok")


async def test_the_event_wins_before_the_deadline_and_the_timeout_at_it(
    engine: VirtualEngine,
) -> None:
    async with engine.client(one(engine, waiter())) as client:
        early, late = await client.get("/"), await client.get("/")
        await engine.advance("59m59s")
        engine.clock._now += 999  # one millisecond before the deadline
        await engine.send_event(_event("ok", {"n": 1}, "a"))
        engine.clock._now += 1
        await engine.settle()
        for response in (early, late):
            answer = await client.get(response.headers["location"])
            assert answer.json()[1] == {"n": 1}
        missed = await client.get("/")
        await engine.advance("1h")
        await engine.send_event("ok", {"n": 2})
        assert (await client.get(missed.headers["location"])).json() is None


def _event(name: str, data: Any, id: str) -> Any:
    from durable_endpoints.events import new_event

    return new_event(name, data, id, None)


@pytest.mark.parametrize(
    ("match", "data", "hit"),
    [
        ("data.order_id", {"order_id": 7}, True),
        ("data.order_id", {"order_id": "7"}, True),
        ("data.order_id", {"order_id": 8}, False),
        ("data.order_id", {}, False),
        ("data.user.name", {"user": {"name": "Ada"}}, True),
        ({"data.x": 1, "data.y": "b"}, {"x": 1, "y": "b"}, True),
        ({"data.x": 1, "data.y": "b"}, {"x": 1, "y": "c"}, False),
        ({"data.ok": True}, {"ok": True}, True),
    ],
)
async def test_match(engine: VirtualEngine, match: Any, data: Any, hit: bool) -> None:
    app = star(engine, Route("/{order_id}", waiter(match=match), methods=["POST"]))
    async with engine.client(app) as client:
        response = await client.post("/7?q=1", json={"user": {"name": "Ada"}})
        assert response.status_code == 303, response.text
        await engine.send_event("ok", data)
        status = (await engine.run(run_id_of(response))).status
        assert status is (Status.COMPLETED if hit else Status.WAITING)


async def test_match_on_a_form_and_on_the_query(engine: VirtualEngine) -> None:
    async with engine.client(one(engine, waiter(match="data.id"))) as client:
        for request in (
            {"url": "/?id=1&id=9"},
            {"url": "/", "data": {"id": "9"}},
            {"url": "/?id=1", "data": {"id": "9"}},
            {"url": "/?id=1", "data": {"id": "9"}, "files": {"f": ("f", b"x")}},
        ):
            response = await client.post(**request)
            assert response.status_code == 303, response.text
        await engine.send_event("ok", {"id": 9})
        runs = (await engine.store.list_runs([Status.COMPLETED], None, 10)).lines
        assert len(runs) == 4


@pytest.mark.parametrize(
    ("wait", "message"),
    [
        ({"match": "data.nothing"}, "this request has not"),
        ({"match": "nothing"}, 'write "data."'),
        ({"match": {}}, "mapping of paths"),
        ({"match": {"data.x": [1]}}, "cannot be compared"),
        ({"event": ""}, "event name"),
        ({"event": "a\nb"}, "event name"),
        ({"timeout": "soon"}, "not a duration"),
        ({"timeout": "400d"}, "may last"),
        ({"if_exp": "async.data ==="}, "not CEL"),
    ],
)
async def test_a_wait_that_makes_no_sense_is_an_error_at_the_call(
    engine: VirtualEngine, wait: dict[str, Any], message: str
) -> None:
    errors: list[str] = []

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        try:
            await step.wait_for_event("w", **{"event": "ok", "timeout": "1h", **wait})
        except Exception as error:
            errors.append(str(error))
            raise
        raise AssertionError

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/?x=1")
        assert response.status_code == 500
    assert message in errors[0]


async def test_if_exp_with_the_runs_own_input(engine: VirtualEngine) -> None:
    expression = "event.data.id == async.data.id && async.data.note != 'event.data.id'"
    async with engine.client(one(engine, waiter(if_exp=expression))) as client:
        response = await client.post("/", json={"id": "a'b\"c"})
        assert response.status_code == 303, response.text
        await engine.send_event("ok", {"id": "other", "note": ""})
        await engine.send_event("ok", {"id": "a'b\"c", "note": "event.data.id"})
        assert (await engine.run(run_id_of(response))).status is Status.WAITING
        await engine.send_event("ok", {"id": "a'b\"c", "note": ""})
        assert (await engine.run(run_id_of(response))).status is Status.COMPLETED


async def test_an_event_that_came_before_the_wait_is_found(engine: VirtualEngine) -> None:
    sent: list[str] = []

    @endpoint
    async def handler(request: Request) -> Response:
        if not sent:
            sent.append(await send_event("ok", {"n": 1}))
        await step.sleep("nap", "1h")
        event = await step.wait_for_event("w", event="ok", timeout="1h")
        return JSONResponse(event and event.data)

    async with engine.client(one(engine, handler)) as client:
        await engine.send_event(_event("ok", {"n": 0}, "before the request"))
        engine.clock._now += 1_000
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() == {"n": 1}


async def test_an_early_event_is_used_once(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        got = [await step.wait_for_event(f"w{n}", event="ok", timeout="1h") for n in range(3)]
        return JSONResponse([event and event.data for event in got])

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await engine.send_event("ok", 1)
        await engine.send_event("ok", 2)
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.json() == [1, 2, None]


async def test_parallel_waits_share_an_event_that_comes_and_not_one_that_came(
    engine: VirtualEngine,
) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        if "nap" in request.query_params:
            await step.sleep("nap", "1m")
        got = await asyncio.gather(
            *(step.wait_for_event(f"w{n}", event="ok", timeout="1h") for n in range(2))
        )
        return JSONResponse(sorted(event.data if event else -1 for event in got))

    async with engine.client(one(engine, handler)) as client:
        open_at_arrival = await client.get("/")
        opened_later = await client.get("/?nap=1")
        await engine.send_event("ok", 7)
        assert (await client.get(open_at_arrival.headers["location"])).json() == [7, 7]
        answer = await follow(engine, client, opened_later.headers["location"], "2h")
        assert answer.json() == [-1, 7]


async def test_an_event_while_a_sibling_runs_resolves_in_the_live_execution(
    engine: VirtualEngine,
) -> None:
    gate = asyncio.Event()
    passes: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        passes.append(1)
        event, _ = await asyncio.gather(
            step.wait_for_event("w", event="ok", timeout="1h"), step.run("slow", gate.wait)
        )
        return JSONResponse(event and event.data)

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        await engine.send_event(_event("ok", "live", "e"))
        await asyncio.sleep(0.05)
        gate.set()
        response = await asyncio.wait_for(asking, 5)
        assert (response.status_code, response.json()) == (200, "live")
    assert passes == [1]


async def test_a_sleep_that_ends_while_a_sibling_runs(engine: VirtualEngine) -> None:
    gate = asyncio.Event()

    @endpoint
    async def handler(request: Request) -> Response:
        async def nap() -> str:
            await step.sleep("nap", "1m")
            return await step.run("after", lambda: "rested")

        rested, _ = await asyncio.gather(nap(), step.run("slow", gate.wait))
        return JSONResponse(rested)

    async with engine.client(one(engine, handler, respond_within="1h")) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 60_000)
        await asyncio.sleep(0.05)
        gate.set()
        response = await asyncio.wait_for(asking, 5)
        assert (response.status_code, response.json()) == (200, "rested")


async def test_wait_for_any(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        won = await step.wait_for_any(
            "decision",
            {"yes": "approved", "no": {"event": "rejected", "match": {"data.final": True}}},
            timeout="1h",
        )
        return JSONResponse(None if won is None else [won[0], won[1].name, won[1].data])

    async with engine.client(one(engine, handler)) as client:
        for name, data, expected in (
            ("approved", {}, ["yes", "approved", {}]),
            ("rejected", {"final": True}, ["no", "rejected", {"final": True}]),
        ):
            response = await client.get("/")
            await engine.send_event("rejected", {"final": False})
            await engine.send_event(name, data)
            assert (await client.get(response.headers["location"])).json() == expected
            assert await engine.store.waits_of(run_id_of(response)) == []
        response = await client.get("/")
        answer = await follow(engine, client, response.headers["location"], "1h")
        assert answer.json() is None


async def test_wait_for_any_by_names_with_a_common_match(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        won = await step.wait_for_any("d", ["a", "b"], match="data.id", timeout="1h")
        return JSONResponse(won and won[0])

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/?id=5")
        await engine.send_event("a", {"id": 4})
        await engine.send_event("b", {"id": 5})
        assert (await client.get(response.headers["location"])).json() == "b"


async def test_step_send_event_is_sent_once(engine: VirtualEngine) -> None:
    @endpoint
    async def sender(request: Request) -> Response:
        sent = await step.send_event("tell", "told", {"x": 1})
        await step.sleep("nap", "1h")
        return JSONResponse(sent)

    @endpoint
    async def receiver(request: Request) -> Response:
        got = [await step.wait_for_event(f"w{n}", event="told", timeout="3h") for n in range(2)]
        return JSONResponse([event and [event.id, event.data] for event in got])

    app = star(engine, Route("/send", sender), Route("/receive", receiver))
    async with engine.client(app) as client:
        received = await client.get("/receive")
        response = await client.get("/send")
        answer = await follow(engine, client, response.headers["location"], "1h")
        run_id = run_id_of(response)
        assert answer.json().startswith(f"{run_id}:")
        answer = await follow(engine, client, received.headers["location"], "3h")
        assert answer.json() == [[f"{run_id}:{_hash('tell')}", {"x": 1}], None]


def _hash(name: str) -> str:
    from durable_endpoints.protocol.step_ids import hash_name

    return hash_name(name)


async def test_a_run_can_wait_for_its_own_event(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.send_event("tell", "ping", 1)
        event = await step.wait_for_event("hear", event="ping", timeout="1h")
        return JSONResponse(event and event.data)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", follow_redirects=True)
        assert response.json() == 1


async def test_an_event_id_counts_once(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        got = [await step.wait_for_event(f"w{n}", event="ok", timeout="1h") for n in range(2)]
        return JSONResponse([event and event.data for event in got])

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        for data in (1, 2):
            assert await engine.send_event("ok", data, id="same") == "same"
        answer = await follow(engine, client, response.headers["location"], "2h")
        assert answer.json() == [1, None]


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        ("", None, {}),
        ("x" * 513, None, {}),
        ("ok", {1: 2}, {}),
        ("ok", float("nan"), {}),
        ("ok", "x" * (3 * 1024 * 1024), {}),
        ("ok", None, {"id": ""}),
        ("ok", None, {"ts": -1}),
        ("ok", None, {"ts": 1.5}),
    ],
)
async def test_what_is_no_event_is_an_error(
    engine: VirtualEngine, name: str, data: Any, options: dict[str, Any]
) -> None:
    from durable_endpoints import StepValueError

    with pytest.raises(StepValueError):
        await send_event(name, data, **options)


async def test_events_wake_many_runs(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.get("/{n}")
    @endpoint
    async def handler(n: int) -> int:
        await step.wait_for_event("go", event="go", timeout="1h")
        return n

    async with engine.client(app) as client:
        responses = [await client.get(f"/{n}") for n in range(150)]
        await engine.send_event("go")
        for n, response in enumerate(responses):
            assert (await client.get(response.headers["location"])).json() == n


async def test_steps_of_plain_handlers(engine: VirtualEngine) -> None:
    @endpoint
    def handler(request: Request) -> Response:
        step.sync.send_event("tell", "a", 1)
        first = step.sync.wait_for_event("hear", event="a", timeout="1h")
        won = step.sync.wait_for_any("any", ["b", "c"], timeout="1h")
        step.sync.sleep_until("past", "2001-01-01T00:00:00Z")
        return JSONResponse([first and first.data, won and won[0]])

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await engine.send_event("c")
        answer = await follow(engine, client, response.headers["location"], "1m")
        assert answer.json() == [1, "c"]
