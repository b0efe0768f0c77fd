"""While a run may have been given to another process, the server is asked before a body begins."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import Any

import pytest

from durable_endpoints import endpoint, step
from durable_endpoints.engines.remote import lease
from durable_endpoints.engines.remote.lease import Lease
from durable_endpoints_server.remote import questions
from tests.durable_endpoints.remote.served import Companion, process

pytestmark = pytest.mark.anyio


class Watch:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.real = lease.now

    def __call__(self) -> float:
        return self.real() + self.ahead


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(lease, "now", watch)
    return watch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What the server has answered."""
    answers: list[bool] = []
    holds = questions._ANSWERS["holds"]

    async def noted(*args: Any) -> bool:
        answers.append(await holds(*args))
        return answers[-1]

    monkeypatch.setitem(questions._ANSWERS, "holds", noted)
    return answers


def test_a_lease_covers_what_was_held_without_a_gap(watch: Watch) -> None:
    held = Lease()
    watch.real = lambda: 100.0
    assert not held.covers(held.since)
    held.begin(100.0, 10.0)
    since = held.since
    assert held.covers(since)
    watch.ahead = 8.0
    held.renew(105.0)
    held.renew(103.0)  # which is heard later than what was said after it
    watch.ahead = 13.9
    assert held.covers(since)
    watch.ahead = 14.1
    assert not held.covers(since)
    held.renew(114.1)
    assert not held.covers(since)  # somebody else may have had it meanwhile
    assert held.covers(held.since)


def test_a_server_that_tells_nothing_of_what_it_hears_is_believed(watch: Watch) -> None:
    held = Lease()
    held.begin(lease.now(), math.inf)
    watch.ahead = 1e6
    assert held.covers(held.since)
    held.begin(lease.now(), 10.0)  # the next version
    assert held.covers(held.since)
    watch.ahead = 2e6
    assert not held.covers(held.since)


async def test_a_body_waits_for_the_servers_word_when_the_lease_may_be_over(
    watch: Watch, asked: list[bool]
) -> None:
    companion, bodies = Companion(), list[str]()
    await companion.start()
    async with process(companion) as (app, client, _):

        @app.post("/")
        @endpoint
        async def handle() -> str:
            await step.run("first", bodies.append, "first")
            watch.ahead = 1_000
            await step.run("second", bodies.append, "second")
            await step.run("third", bodies.append, "third")
            return "done"

        assert (await client.post("/")).json() == "done"
    await companion.stop()
    assert bodies == ["first", "second", "third"]
    assert asked == [True]


async def test_a_body_that_was_given_to_another_execution_does_not_begin(
    watch: Watch,
) -> None:
    companion, bodies, entered = Companion(), list[str](), list[bool]()
    await companion.start()
    async with process(companion) as (app, client, _):

        @app.post("/")
        @endpoint
        async def handle() -> str:
            await step.run("first", bodies.append, "first")
            await asyncio.sleep(0.05)  # it is on disk
            entered.append(True)
            if len(entered) == 1:
                watch.ahead = 1_000
                for name in list(companion.hub._processes):
                    companion.hub._silent(name)
            await step.run("second", second)
            return "done"

        async def second() -> None:
            bodies.append(f"second, in execution {len(entered)}")

        response = await client.post("/")
        while response.status_code == 303:
            response = await client.get(response.headers["location"])
        assert response.json() == "done"
    await companion.stop()
    assert bodies == ["first", "second, in execution 2"]


async def test_a_plain_body_looks_once_more_when_its_thread_begins(
    watch: Watch, asked: list[bool]
) -> None:
    companion, bodies = Companion(), list[str]()
    await companion.start()
    loop_thread = threading.get_ident()

    def late() -> float:
        if threading.get_ident() != loop_thread:
            watch.ahead = 1_000  # so long it waited for its thread
        return watch.real() + watch.ahead

    async with process(companion) as (app, client, _):

        @app.post("/")
        @endpoint
        async def handle() -> str:
            lease.now = late
            await step.run("plain", bodies.append, "plain")
            return "done"

        @app.post("/plain")
        @endpoint
        def handle_plainly() -> str:
            step.sync.run("plain", bodies.append, "plain")
            return "done"

        assert (await client.post("/")).json() == "done"
        assert asked == [True]
        watch.ahead = 0
        assert (await client.post("/plain")).json() == "done"
    await companion.stop()
    assert bodies == ["plain", "plain"]
