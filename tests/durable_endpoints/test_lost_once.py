"""Moments at which a run, an event or a waiter was lost once."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from fastapi import Depends
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from durable_endpoints import RetryAfterError, endpoint, remember, step
from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.ops import Alternative, NewEvent, StepKind, WaitForEvent
from durable_endpoints.protocol.runs import Complete
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints.testing import VirtualClock, VirtualEngine
from durable_endpoints_server.clock import SystemClock
from durable_endpoints_server.engine.facts import RunCreated
from durable_endpoints_server.engine.model import Event, Match, Status
from durable_endpoints_server.engine.transitions import decide, register
from durable_endpoints_server.store.base import Arrival, Ticket
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.waiters import Waiters
from tests.durable_endpoints.helpers import fast, one, run_id_of, star
from tests.durable_endpoints.test_cancellation import Handler, Impatient, application, only_run
from tests.durable_endpoints_server.helpers import (
    POLICY,
    FlakyStore,
    an_end,
    anything,
    new_run,
    serving,
    until,
)

pytestmark = pytest.mark.anyio


@endpoint
async def hears(request: Request) -> Response:
    """Whether an event came within an hour."""
    event = await step.wait_for_event("hear", event="said", timeout="1h")
    return PlainTextResponse(str(event is not None))


async def final(engine: VirtualEngine, run_id: str, patience: float = 2) -> Status:
    async with asyncio.timeout(patience):
        while not (status := (await engine.run(run_id)).status).is_final:
            await asyncio.sleep(0.005)
    return status


async def test_a_stream_whose_completion_fails_goes_on_when_the_store_works() -> None:
    engine = VirtualEngine()
    engine.store = store = FlakyStore()

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("first", lambda: 1)

        async def numbers() -> AsyncIterator[bytes]:
            for n in range(3):
                yield b"%d" % n

        return StreamingResponse(numbers())

    store.fails = an_end
    async with engine.client(one(engine, handler)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/")
        store.fails = None
        assert await final(engine, await only_run(engine)) is Status.COMPLETED


async def test_a_registration_that_failed_holds_no_lease() -> None:
    engine = VirtualEngine()
    engine.store = store = FlakyStore()

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse("x")

    async with engine.client(one(engine, handler)) as client:
        store.fails = anything
        assert (await client.get("/", headers={"idempotency-key": "k"})).status_code == 503
        store.fails = None
        await asyncio.sleep(0.3)
        assert engine.host.live == {}
        assert engine.host.is_quiet


async def test_a_remembered_value_over_the_limit_fails_its_run() -> None:
    engine = VirtualEngine(max_result=1_000)
    app = fast(engine)

    @app.get("/")
    @endpoint
    async def handler(value: str = Depends(remember(lambda: "x" * 2_000))) -> int:
        return 1

    async with engine.client(app) as client:
        assert (await client.get("/")).status_code in (413, 500)
        assert engine.host.live == {}
        runs = (await engine.store.list_runs(list(Status), None, 10)).lines
        assert all(line.run.status.is_final for line in runs)


class Slow(MemoryStore):
    """A store whose registrations take a while to be acknowledged."""

    def submit(self, change: Any, lane: Any = None) -> Ticket:
        ticket = super().submit(change, lane)
        if not isinstance(change.facts[0], RunCreated):
            return ticket

        class Late:
            async def wait(self) -> None:
                await asyncio.sleep(0.6)
                await ticket.wait()

            def then(self, callback: Any) -> None:
                ticket.then(callback)

        return Late()


async def test_a_cancellation_while_a_run_is_registered_loses_no_run() -> None:
    engine = VirtualEngine()
    engine.store = Slow()
    handler = Handler("nowhere")
    app = application(engine, handler, outside=Impatient)
    async with engine.client(app) as client:
        response = await client.get("/", headers={"idempotency-key": "k"})
        assert response.status_code in (303, 504)
        assert await final(engine, await only_run(engine)) is Status.COMPLETED
    assert handler.began == ["first", "second"]


async def test_an_event_that_meets_a_run_as_it_suspends_is_not_lost() -> None:
    """The event's look at the store still says RUNNING when the execution has left the run."""

    class SlowReader(MemoryStore):
        """Its answer about an event is on its way for as long as `gate` is closed."""

        gate = asyncio.Event()
        looks = 0

        async def arrival(self, event: Event) -> Arrival:
            arrival = await super().arrival(event)
            self.looks += 1
            if self.looks == 2:
                await self.gate.wait()
            return arrival

    store = SlowReader()
    async with serving(store, VirtualClock()) as host:
        live = host.register(new_run("r"))
        step_id = StepId(hash_name("hear"), "hear", 0)
        live.record(WaitForEvent(step_id, StepKind.WAIT, (Alternative("", "said"),), 60_000))
        await live.acknowledge()
        await until(lambda: not live._tasks)

        await host.events.publish(NewEvent("e", "said", b"{}"))
        await until(lambda: store.looks == 2)
        await live.suspend()
        store.gate.set()
        await until(lambda: not host.events.is_busy)
        entry = await store.entry("r")
        assert entry is not None
        assert entry.run.status is Status.READY
        assert entry.memo[0].is_final


async def test_what_is_resolved_when_the_handler_is_left_already_is_not_slept_through() -> None:
    store = MemoryStore()
    async with serving(store, VirtualClock()) as host:
        live = host.register(new_run("r"))
        step_id = StepId(hash_name("hear"), "hear", 0)
        live.record(WaitForEvent(step_id, StepKind.WAIT, (Alternative("", "said"),), 60_000))
        await live.acknowledge()
        await host.events.publish(NewEvent("e", "said", b"{}"))  # and nobody listens
        await until(lambda: not host.events.is_busy)
        await live.suspend()
        run = await store.run("r")
        assert run is not None
        assert run.status is Status.READY


def test_waiters_on_other_loops_are_all_told() -> None:
    """A waiter that is woken leaves the list that the teller walks along."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            store = MemoryStore()
            waiters = Waiters(store, SystemClock())
            decision = register(new_run("r"), "me", None, 1)
            store.apply(decision.change)
            threads = [
                threading.Thread(target=lambda w=waiters: asyncio.run(w.wait("r", 3_000)))
                for _ in range(12)
            ]
            for thread in threads:
                thread.start()
            while len(waiters._waiting.get("r", ())) < 12:
                time.sleep(0.001)
            time.sleep(0.05)
            store.apply(decide(decision.run, Complete(200, b"x"), 1, POLICY).change)
            ended = asyncio.run(store.ended("r"))
            assert ended is not None
            began = time.monotonic()
            waiters.tell(ended)
            for thread in threads:
                thread.join()
            assert time.monotonic() - began < 2, "somebody was not told"
    finally:
        sys.setswitchinterval(interval)


async def test_a_run_that_times_out_is_answered_only_when_that_is_on_disk() -> None:
    engine = VirtualEngine()
    engine.store = store = FlakyStore()

    @endpoint(max_runtime="1h")
    async def handler(request: Request) -> Response:
        await step.run("first", lambda: 1)
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        store.fails = an_end
        engine.clock.move_to(engine.clock.now() + 3_600_000)
        response = await asyncio.wait_for(asking, 5)
        assert response.status_code == 303, "the end of the run is not on disk"
        store.fails = None
        assert await final(engine, run_id_of(response)) is Status.FAILED
        assert (await client.get(response.headers["location"])).status_code == 504


async def test_a_sender_that_gives_up_does_not_take_its_event_with_it() -> None:
    class Slow(MemoryStore):
        gate = asyncio.Event()

        async def arrival(self, event: Any) -> Any:
            await self.gate.wait()
            return await super().arrival(event)

    engine = VirtualEngine()
    engine.store = store = Slow()

    async with engine.client(one(engine, hears)) as client:
        response = await client.get("/")
        sending = asyncio.create_task(engine.send_event(NewEvent("e1", "said", b"{}")))
        await asyncio.sleep(0.01)
        sending.cancel()
        store.gate.set()
        assert await engine.send_event(NewEvent("e1", "said", b"{}")) == "e1"
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert answer.text == "True"


async def test_events_that_cannot_be_matched_for_a_while_stop_no_sleep() -> None:
    class Blind(MemoryStore):
        fails = False

        async def unsettled_events(self, limit: int) -> Any:
            if self.fails:
                raise StorageError("the disk reports an error")
            return await super().unsettled_events(limit)

    engine = VirtualEngine()
    engine.store = store = Blind()

    @endpoint
    async def sends(request: Request) -> Response:
        await step.send_event("tell", "said", {})
        return PlainTextResponse("sent")

    @endpoint
    async def sleeps(request: Request) -> Response:
        await step.sleep("nap", "1s")
        return PlainTextResponse("awake")

    @endpoint
    async def waits(request: Request) -> Response:
        event = await step.wait_for_event("hear", event="said", timeout="1s")
        return PlainTextResponse(str(event is not None))

    app = star(engine, Route("/sends", sends), Route("/sleeps", sleeps), Route("/waits", waits))
    async with engine.client(app) as client:
        waiting, sleeping = await client.get("/waits"), await client.get("/sleeps")
        store.fails = True
        assert (await client.get("/sends")).text == "sent"
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 1_500)
        answer = await asyncio.wait_for(client.get(sleeping.headers["location"]), 5)
        assert answer.text == "awake"
        store.fails = False
        asking = asyncio.create_task(client.get(waiting.headers["location"]))
        await asyncio.sleep(0.5)  # real time: how long recovery waits before it looks again
        await engine.advance("5s")
        assert (await asyncio.wait_for(asking, 5)).text == "True"


async def test_a_message_that_makes_no_sense_stops_nobody(caplog: Any) -> None:
    engine = VirtualEngine()
    assert isinstance(engine.store, MemoryStore)

    async with engine.client(one(engine, hears)) as client:
        response = await client.get("/")
        for event in (
            {"id": "e1", "name": "said", "data": {}, "ts": 2**63},
            {"id": None, "name": "said", "data": {}, "ts": None},
            {"id": "e2", "name": "said", "data": {}, "ts": None},
        ):
            engine.store.leave_message(engine.clock.now(), "event", orjson.dumps(event))
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert answer.text == "True"
    assert "makes no sense" in caplog.text


async def test_who_comes_to_wait_while_the_process_ends_is_let_go(engine: VirtualEngine) -> None:
    @endpoint
    async def handler(request: Request) -> Response:
        await step.sleep("nap", "1h")
        return PlainTextResponse("awake")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        engine.begin_drain()
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert answer.status_code == 303


async def test_a_request_that_is_cancelled_while_its_handler_fails_keeps_its_run() -> None:
    engine = VirtualEngine()
    tries: list[int] = []

    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "done"

    @endpoint
    async def handler(request: Request) -> Response:
        tries.append(1)
        if len(tries) == 1:
            beside = asyncio.create_task(step.run("slow", slow))
            await asyncio.sleep(0.01)
            assert not beside.done()
            raise ValueError
        return PlainTextResponse(await step.run("slow", slow))

    app = one(engine, handler)
    app.user_middleware.insert(0, Middleware(Impatient))
    async with engine.client(app) as client:
        await client.get("/")
        await asyncio.sleep(0.4)
        await engine.advance("10s")
        assert await final(engine, await only_run(engine)) is Status.COMPLETED


async def test_two_waits_that_look_back_together_each_get_an_event() -> None:
    engine = VirtualEngine()

    @endpoint
    async def handler(request: Request) -> Response:
        await engine.send_event(NewEvent("e1", "said", b"{}"))
        await engine.send_event(NewEvent("e2", "said", b"{}"))
        _, first, second = await asyncio.gather(
            step.run("busy", asyncio.sleep, 0.2),
            step.wait_for_event("w1", event="said", timeout="1h"),
            step.wait_for_event("w2", event="said", timeout="1h"),
        )
        return JSONResponse(sorted(event.id for event in (first, second) if event))

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", follow_redirects=True)
        assert response.json() == ["e1", "e2"]


async def test_a_wait_without_patience_gets_an_event_that_came_before_it() -> None:
    """Its time is over before the look back at earlier events is."""
    engine = VirtualEngine()
    waits_of = engine.store.waits_of

    async def read_slowly(run_id: str) -> list[Match]:
        await asyncio.sleep(0.1)
        return await waits_of(run_id)

    engine.store.waits_of = read_slowly  # type: ignore[method-assign]

    @endpoint
    async def handler(request: Request) -> Response:
        await engine.send_event(NewEvent("e1", "said", b"{}"))
        engine.clock.move_to(engine.clock.now() + 1)
        event = await step.wait_for_event("w", event="said", timeout=0)
        return JSONResponse(event and event.id)

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/", follow_redirects=True)
        assert response.json() == "e1"


async def test_an_event_from_before_the_request_resolves_nothing_of_it() -> None:
    engine = VirtualEngine()
    assert isinstance(engine.store, MemoryStore)

    async with engine.client(one(engine, hears)) as client:
        left = orjson.dumps({"id": "early", "name": "said", "data": {}, "ts": None})
        engine.store.leave_message(engine.clock.now() - 10_000, "event", left)
        response = await client.get("/")
        await asyncio.sleep(0.4)  # the inbox has been read
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        await engine.advance("1h")
        assert (await asyncio.wait_for(waiting, 5)).text == "False"


async def test_an_event_sent_from_another_event_loop_is_matched() -> None:
    engine = VirtualEngine()

    def send() -> None:
        asyncio.run(engine.send_event(NewEvent("e1", "said", b"{}")))

    async with engine.client(one(engine, hears)) as client:
        response = await client.get("/")
        await asyncio.to_thread(send)
        answer = await asyncio.wait_for(client.get(response.headers["location"]), 5)
        assert answer.text == "True"


async def test_the_time_of_a_handlers_next_try_is_kept_whatever_wakes_the_run() -> None:
    engine = VirtualEngine()
    passes: list[int] = []

    @endpoint
    async def handler(request: Request) -> Response:
        passes.append(engine.clock.now())
        if len(passes) == 1:
            stray = asyncio.create_task(step.sleep("short", "5s"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert not stray.done()
            raise RetryAfterError("busy", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await engine.advance("1m")
        assert len(passes) == 1
        waiting = asyncio.create_task(client.get(response.headers["location"]))
        await engine.advance("1h")
        assert (await asyncio.wait_for(waiting, 5)).text == "ok"
    assert passes[1] - passes[0] >= 3_600_000


async def test_a_client_is_answered_once_however_slow_the_answer_is_made() -> None:
    engine = VirtualEngine()

    async def slowly(run_id: str, token: str) -> str:
        await asyncio.sleep(0.2)
        return f"/elsewhere?{run_id}"

    @endpoint(respond_within="10s", async_redirect_url=slowly)
    async def handler(request: Request) -> Response:
        await step.run("a", asyncio.sleep, 0.1)
        await step.sleep("nap", "1h")
        return PlainTextResponse("ok")

    async with engine.client(one(engine, handler)) as client:
        asking = asyncio.create_task(client.get("/"))
        await asyncio.sleep(0.05)
        engine.clock.move_to(engine.clock.now() + 10_000)
        response = await asyncio.wait_for(asking, 5)
        assert response.status_code == 303
        assert response.headers["location"].startswith("/elsewhere?")
