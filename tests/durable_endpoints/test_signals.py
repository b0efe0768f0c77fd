"""Signals: for one run each, answered definitively, and never lost between two states."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from httpx import AsyncClient

from durable_endpoints import StepError, UsageError, endpoint, send_event, send_signal, step
from durable_endpoints.asgi_transport import AppTransport
from durable_endpoints.engines.embedded import embedded_engine
from durable_endpoints.settings import Settings
from durable_endpoints.testing import VirtualEngine
from durable_endpoints_server.engine.model import Event, Status
from durable_endpoints_server.store.base import Arrival, Lane, Ticket
from durable_endpoints_server.store.memory import MemoryStore
from durable_endpoints_server.store.sqlite import SqliteStore
from tests.durable_endpoints.helpers import fast, follow, run_id_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> VirtualEngine:
    """An engine on each of the stores."""
    engine = VirtualEngine()
    if request.param == "sqlite":
        engine.store = SqliteStore(tmp_path / "runs.db")
    return engine


def make(engine: VirtualEngine) -> FastAPI:
    """`/wait-for/{name}` waits for a signal; `/send/{name}` sends one as a step."""
    app = fast(engine)

    @app.post("/wait-for/{name}")
    @endpoint(retries=0)
    async def waiter(name: str, timeout: str = "1h", on_conflict: Any = "fail") -> Any:
        try:
            signal = await step.wait_for_signal(
                "wait", signal=name, timeout=timeout, on_conflict=on_conflict
            )
        except StepError as error:
            await step.sleep("nap", "1s")  # it is remembered
            return str(error)
        return None if signal is None else [signal.name, signal.data, signal.ts]

    @app.post("/send/{name}")
    @endpoint
    async def sender(name: str, data: str = "d") -> list[bool]:
        sent = [await step.send_signal("one", name, data), await step.send_signal("two", name)]
        await step.sleep("nap", "1s")
        return sent

    return app


async def test_a_signal_reaches_the_run_that_waits_for_it(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        response = await client.post("/wait-for/a")
        other = await client.post("/wait-for/b")
        assert await stored.send_signal("a", b'{"by":"\xc3\xbc"}') is True
        assert (await stored.run(run_id_of(response))).status is not Status.WAITING
        answer = await client.get(response.headers["location"])
        assert answer.json() == ["a", {"by": "ü"}, stored.clock.now()]
        assert (await stored.run(run_id_of(other))).status is Status.WAITING
        assert await stored.send_signal("a", b"1") is False


async def test_a_signal_that_nobody_waits_for_is_not_kept(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        assert await stored.send_signal("a", b"1") is False
        response = await client.post("/wait-for/a")
        answer = await follow(stored, client, response.headers["location"], "1h")
        assert answer.json() is None


@pytest.mark.embedded("counts the turns of the event loop until the signal is there")
async def test_a_signal_before_the_deadline_beats_the_timeout_and_one_at_it_comes_too_late(
    stored: VirtualEngine,
) -> None:
    async with stored.client(make(stored)) as client:
        early, late = await client.post("/wait-for/a"), await client.post("/wait-for/b")
        stored.clock._now += 3_599_999
        sending = asyncio.create_task(stored.send_signal("a", b"1"))
        await asyncio.sleep(0)
        stored.clock.move_to(stored.clock.now() + 1)
        assert await sending is True
        assert await stored.send_signal("b", b"1") is False
        await stored.settle()
        assert (await client.get(early.headers["location"])).json()[1] == 1
        assert (await client.get(late.headers["location"])).json() is None


async def test_of_many_senders_one_is_told_that_its_signal_was_taken(
    stored: VirtualEngine,
) -> None:
    async with stored.client(make(stored)) as client:
        response = await client.post("/wait-for/a")
        sent = await asyncio.gather(*(stored.send_signal("a", str(n).encode()) for n in range(10)))
        assert sum(sent) == 1
        answer = await client.get(response.headers["location"])
        assert answer.json()[1] == sent.index(True)


async def test_of_many_waiters_one_waits_and_the_others_are_told_who(
    stored: VirtualEngine,
) -> None:
    async with stored.client(make(stored)) as client:
        asked = await asyncio.gather(*(client.post("/wait-for/a") for _ in range(6)))
        runs = {run_id_of(response): response for response in asked}
        waits = {run_id: await stored.store.waits_of(run_id) for run_id in runs}
        (holder,) = [run_id for run_id, found in waits.items() if found]
        for run_id, response in runs.items():
            if run_id != holder:
                answer = await follow(stored, client, response.headers["location"], "1s")
                assert "SignalConflictError" in answer.json()
                assert f"run {holder} waits for signal 'a' already" in answer.json()
        assert await stored.send_signal("a", b"1")
        assert (await client.get(runs[holder].headers["location"])).json()[:2] == ["a", 1]


async def test_a_wait_that_replaces_another_one_ends_it_with_none(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        asked = [await client.post("/wait-for/a?on_conflict=replace") for _ in range(3)]
        for response in asked[:2]:
            assert (await client.get(response.headers["location"])).json() is None
        assert await stored.send_signal("a", b"1")
        assert (await client.get(asked[2].headers["location"])).json()[1] == 1


async def test_waits_that_replace_each_other_at_once_leave_one(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        asked = await asyncio.gather(
            *(client.post("/wait-for/a?on_conflict=replace") for _ in range(5))
        )
        late = [response for response in asked if response.is_redirect]
        assert await stored.send_signal("a", b"1")
        assert await stored.send_signal("a", b"1") is False
        await stored.settle()
        answers = [(await client.get(response.headers["location"])).json() for response in late]
        answers += [response.json() for response in asked if not response.is_redirect]
        assert sorted(answers, key=str)[:4] == [None] * 4


async def test_a_name_is_free_again_after_a_timeout(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        await client.post("/wait-for/a?timeout=1s")
        stored.clock._now += 1_000  # it is over, though nobody has looked yet
        response = await client.post("/wait-for/a")
        assert await stored.send_signal("a", b"1")
        assert (await client.get(response.headers["location"])).json()[1] == 1


async def test_a_step_sends_once_and_remembers_what_came_of_it(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        waiting = await client.post("/wait-for/a")
        sending = await client.post("/send/a?data=x")
        again = await client.post("/wait-for/a")
        answer = await follow(stored, client, sending.headers["location"], "1s")
        assert answer.json() == [True, False]
        assert (await client.get(waiting.headers["location"])).json()[1] == "x"
        assert (await stored.run(run_id_of(again))).status is Status.WAITING


async def test_one_run_signals_itself(engine: VirtualEngine) -> None:
    app = fast(engine)

    @app.post("/")
    @endpoint
    async def handler() -> list[Any]:
        async def late() -> bool:
            await step.run("first", lambda: None)
            return await send_signal("me", 5)

        signal, sent = await asyncio.gather(
            step.wait_for_signal("wait", signal="me", timeout="1h"), late()
        )
        return [sent, signal and signal.data]

    async with engine.client(app) as client:
        assert (await client.post("/")).json() == [True, 5]


def _sync_app(engine: VirtualEngine) -> FastAPI:
    app = fast(engine)

    @app.post("/wait-for")
    @endpoint
    def waiter() -> Any:
        signal = step.sync.wait_for_signal("wait", signal="a", timeout="1h")
        return signal and signal.data

    @app.post("/send")
    @endpoint
    def sender() -> bool:
        return step.sync.send_signal("send", "a", 7)

    return app


async def test_plain_handlers_wait_and_send(engine: VirtualEngine) -> None:
    async with engine.client(_sync_app(engine)) as client:
        response = await client.post("/wait-for")
        assert (await client.post("/send")).json() is True
        assert (await client.get(response.headers["location"])).json() == 7
        assert (await client.post("/send")).json() is False


class SlowStore(MemoryStore):
    """A store that takes its time to write."""

    def submit(self, change: Any, lane: Lane | None = None) -> Ticket:
        return _Slow(self, change)


class _Slow:
    def __init__(self, store: MemoryStore, change: Any) -> None:
        loop = asyncio.get_running_loop()
        self._written = loop.create_future()

        def write() -> None:
            self._written.set_result(MemoryStore.submit(store, change))

        loop.call_later(0.02, write)

    async def wait(self) -> None:
        await (await asyncio.shield(self._written)).wait()

    def then(self, callback: Any) -> None:
        self._written.add_done_callback(lambda done: done.result().then(callback))


@pytest.mark.parametrize("turns", range(0, 60, 5))
async def test_a_wait_is_seen_from_the_moment_in_which_it_was_called(
    engine: VirtualEngine, turns: int
) -> None:
    """Recorded but not on disk, on disk, leaving its execution, idle: the signal finds it."""
    engine.store = SlowStore()
    app = fast(engine)
    called = asyncio.Event()

    @app.post("/")
    @endpoint
    async def handler() -> Any:
        waiting = step.wait_for_signal("wait", signal="a", timeout="1h")
        asyncio.get_running_loop().call_later(0.003, called.set)
        signal = await waiting
        return signal and signal.data

    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/", follow_redirects=True))
        await called.wait()
        await asyncio.sleep(turns * 0.001)
        assert await engine.send_signal("a", b"7") is True
        assert (await asyncio.wait_for(asking, 5)).json() == 7


class Thoughtful(MemoryStore):
    """A store that takes its time to say who waits."""

    async def arrival(self, event: Event) -> Arrival:
        await asyncio.sleep(0.02)
        return await super().arrival(event)


@pytest.mark.embedded("counts the turns of the event loop until the signal is there")
@pytest.mark.parametrize("is_live", [True, False], ids=["live", "idle"])
async def test_a_signal_that_was_sent_in_time_is_heard_out(
    engine: VirtualEngine, is_live: bool
) -> None:
    engine.store = Thoughtful()
    app = fast(engine)

    @app.post("/")
    @endpoint
    async def handler() -> Any:
        async def busy() -> None:
            await asyncio.sleep(0.1 if is_live else 0)

        waiting = step.wait_for_signal("wait", signal="a", timeout="1h")
        signal, _ = await asyncio.gather(waiting, step.run("busy", busy))
        return signal and signal.data

    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/", follow_redirects=True))
        await asyncio.sleep(0.06)
        engine.clock._now += 3_599_999
        sending = asyncio.create_task(engine.send_signal("a", b"7"))
        await asyncio.sleep(0)
        engine.clock.move_to(engine.clock.now() + 1)
        assert await sending is True
        assert (await asyncio.wait_for(asking, 5)).json() == 7


async def test_a_name_is_free_once_its_signal_is_on_its_way(engine: VirtualEngine) -> None:
    engine.store = SlowStore()
    app = make(engine)

    @app.post("/busy")
    @endpoint
    async def busy() -> None:
        waiting = step.wait_for_signal("wait", signal="a", timeout="1h")
        await asyncio.gather(waiting, step.run("busy", asyncio.sleep, 0.2))

    async with engine.client(app) as client:
        asking = asyncio.create_task(client.post("/busy"))
        await asyncio.sleep(0.1)
        sending = asyncio.create_task(engine.send_signal("a", b"7"))
        await asyncio.sleep(0.005)
        response = await client.post("/wait-for/a")
        assert await sending is True
        assert await engine.send_signal("a", b"8") is True
        assert (await client.get(response.headers["location"])).json()[1] == 8
        await asking


async def test_a_wait_that_was_refused_keeps_nobody_else_out(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        await client.post("/wait-for/a")
        await client.post("/wait-for/a")  # which fails
        await stored.send_signal("a", b"1")
        await client.post("/wait-for/a")
        assert await stored.send_signal("a", b"2")


async def test_what_was_taken_survives_a_crash(stored: VirtualEngine) -> None:
    async with stored.client(make(stored)) as client:
        response = await client.post("/wait-for/a")
        await stored.settle()
        assert await stored.send_signal("a", b"7")
        await stored.crash()
        await stored.start()
        await stored.settle()
        assert (await client.get(response.headers["location"])).json()[1] == 7


async def test_a_parked_run_takes_its_signal_and_has_it_when_it_is_retried(
    engine: VirtualEngine,
) -> None:
    async with engine.client(make(engine)) as client:
        response = await client.post("/wait-for/a")
        run = await engine.run(run_id_of(response))
        assert isinstance(engine.store, MemoryStore)
        engine.store._rows[run.id].run = run._replace(status=Status.PARKED)
        assert await engine.send_signal("a", b"7")
        assert (await engine.run(run.id)).status is Status.PARKED
        assert await engine.host.retry(run.id)
        await engine.settle()
        assert (await client.get(response.headers["location"])).json()[1] == 7


async def test_mistakes_are_told(engine: VirtualEngine) -> None:
    calls: dict[str, tuple[Any, str]] = {
        "name": (lambda: step.wait_for_signal("x", signal="", timeout=1), "the signal name ''"),
        "conflict": (
            lambda: step.wait_for_signal("x", signal="a", timeout=1, on_conflict="no"),  # type: ignore[arg-type]
            'give "fail"',
        ),
        "data": (lambda: step.send_signal("x", "a", {1}), "data of signal 'a' is not JSON"),
        "long": (lambda: send_signal("a", "x" * 4_000_000), "3,145,728 are allowed"),
        "event": (
            lambda: step.wait_for_event("x", event="signal:a", timeout=1),
            "kept for signals",
        ),
        "sent event": (lambda: step.send_event("x", "signal:a"), "kept for signals"),
    }
    app = fast(engine)

    @app.post("/{name}")
    @endpoint
    async def handler(name: str) -> str:
        try:
            await calls[name][0]()
        except UsageError as error:
            return str(error)
        return "no error"

    async with engine.client(app) as client:
        for name, (_, message) in calls.items():
            response = await client.post(f"/{name}")
            assert message in response.json(), name


async def test_where_no_application_runs_a_signal_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_ENDPOINTS_DATABASE", f"sqlite:///{tmp_path}/runs.db")
    with pytest.raises(UsageError, match="Send an event"):
        await send_signal("a")


@pytest.mark.parametrize("what", ["signal", "event"])
async def test_what_is_sent_before_any_run_has_begun_starts_the_engine(
    tmp_path: Path, what: str
) -> None:
    """The first request that a process without a lifespan gets may be one that sends."""
    engine = embedded_engine(Settings(database=str(tmp_path / "runs.db")))
    app = fast(engine)

    @app.post("/send")
    async def send() -> Any:
        if what == "signal":
            return await send_signal("a")
        return len(await send_event("a"))

    async with AsyncClient(transport=AppTransport(app), base_url="http://app") as client:
        assert (await client.post("/send")).json() == (False if what == "signal" else 26)
    await engine.stop()
