"""Runs that have gone async: the server calls the application until they have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import httpx
import pytest

from durable_endpoints.protocol import signing
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import VirtualClock
from durable_endpoints_server.engine.model import Status
from tests.durable_endpoints_server.helpers import FlakyStore, anything, until
from tests.durable_endpoints_server.inngest.sdk import (
    ORIGIN,
    SDK_HEADERS,
    App,
    NonRetriableError,
    RunStep,
    StepFailedError,
    complete,
    op,
    sleep,
    step_error,
    step_run,
    wait,
    world,
)

pytestmark = pytest.mark.anyio

Steps = Generator[Any, Any, Any]


def failing(app: App, name: str, times: int) -> RunStep:
    """A step whose body fails so many times."""

    def body() -> str:
        if app.bodies.count(name) <= times:
            raise ValueError(f"failure {app.bodies.count(name)}")
        return "works"

    return RunStep(name, body)


async def test_a_sleep_ends_and_the_rest_is_done_by_reentry(
    store: FlakyStore, clock: VirtualClock
) -> None:
    def handler() -> Steps:
        a = yield RunStep("a", lambda: "no")
        yield sleep("nap", "1h")
        b = yield RunStep("b", lambda: 2)
        return [a, b]

    async with world(store, clock) as w:
        w.app.handler = handler
        await w.begin(step_run("a", 1))
        await w.steps(sleep("nap", "1h"))
        assert await w.pass_time(3_599) is Status.WAITING
        assert w.app.requests == []
        assert await w.pass_time(1) is Status.COMPLETED
        assert (await w.output()).json() == [1, 2]
        assert w.app.bodies == ["b"]
        assert list(await w.actions()) == [hash_name(name) for name in ("a", "nap", "b")]


async def test_a_step_is_tried_again_as_often_as_the_request_allows(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:

        def handler() -> Steps:
            try:
                return (yield failing(w.app, "a", 9))
            except StepFailedError as error:
                return f"caught {error}"

        w.app.handler = handler
        await w.begin(step_error("a", "failure 0"), retries=2)
        for done in (1, 2):
            await w.pass_time(1)
            assert len(w.app.bodies) == done
        assert await w.status() is Status.COMPLETED
        assert (await w.output()).json() == "caught failure 2"
        assert [line.attempt for line in await store.attempts(w.run_id)] == [1, 2, 3]


async def test_retry_after_and_inngests_table_say_when(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock, retry_interval=None) as w:
        w.app.handler = lambda: (yield failing(w.app, "a", 2))  # type: ignore[misc]
        later = [step_error("a", "failure 1")]
        w.app.replies = [
            lambda request: httpx.Response(
                206, json=later, headers=SDK_HEADERS | {"retry-after": "7"}
            )
        ]
        await w.begin(step_error("a", "failure 0"))
        assert await store.next_due() == clock.now() + 5_000
        await w.pass_time(5)
        assert await store.next_due() == clock.now() + 7_000
        await w.pass_time(7)
        due = await store.next_due()
        assert due is not None
        assert 60_000 <= due - clock.now() <= 90_000


async def test_the_handler_itself_is_tried_again_and_then_the_run_has_failed(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:

        def handler() -> Steps:
            yield RunStep("a", lambda: 1)
            raise ValueError(f"request {len(w.app.requests)}")

        w.app.handler = handler
        await w.begin(sleep("nap", "0s"), retries=1)
        w.app.handler = handler
        assert await w.settle() is Status.WAITING  # step a, and the first failure
        assert await w.pass_time(1) is Status.FAILED
        assert (await w.output()).json()["error"]["message"] == "request 3"


async def test_an_error_that_is_final_is_the_end_and_a_caught_one_is_not(
    store: FlakyStore, clock: VirtualClock
) -> None:
    def never() -> None:
        raise NonRetriableError("no way")

    def uncaught() -> Steps:
        yield RunStep("a", never)

    def caught() -> Steps:
        try:
            yield RunStep("a", never)
        except StepFailedError as error:
            return str(error)

    for handler, status in ((uncaught, Status.FAILED), (caught, Status.COMPLETED)):
        async with world(store, clock) as w:
            w.app.handler = handler
            await w.begin(sleep("nap", "0s"))
            assert await w.settle() is status
            assert "no way" in (await w.output()).text
            assert w.app.bodies == ["a"]


async def test_a_wait_is_ended_by_an_event_that_fits(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:

        def handler() -> Steps:
            event = yield wait(
                "approval", "approved", **{"if": "event.data.path == async.data.path"}
            )
            more = yield wait(
                "more", "more", **{"if": "event.data.ip == '10.0.0.1' && async.data.n > 1"}
            )
            none = yield wait("none", "none", timeout="1h")
            return [event["data"], more["data"], none]

        w.app.handler = handler
        await w.begin(op("DiscoveryRequest", "go"))
        assert await w.settle() is Status.WAITING
        for name, data in (
            ("approved", {"path": "/other"}),
            ("approved", {"path": "/api/x", "by": "me"}),
            ("more", {"n": 1}),
            ("more", {"n": 2}),
        ):
            await w.client.post("/e/key", json={"name": name, "data": data})
            await w.settle()
        assert await w.pass_time(3_600) is Status.COMPLETED
        assert (await w.output()).json() == [{"path": "/api/x", "by": "me"}, {"n": 2}, None]


async def test_an_event_that_came_before_its_wait_counts(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        await w.begin(step_run("a", 1))
        clock.move_to(clock.now() + 1)
        await w.client.post("/e/key", json={"name": "approved", "data": {"n": 1}})
        w.app.handler = lambda: (yield wait("approval", "approved"))  # type: ignore[misc]
        await w.steps(wait("approval", "approved"))
        assert await w.settle() is Status.COMPLETED
        assert (await w.output()).json()["data"] == {"n": 1}


async def test_a_signal_ends_the_wait_of_one_run(store: FlakyStore, clock: VirtualClock) -> None:
    signal = op("WaitForSignal", "s", opts={"signal": "go", "timeout": "1h", "conflict": "fail"})

    def handler() -> Steps:
        try:
            return (yield signal)
        except StepFailedError as error:
            return str(error)

    async with world(store, clock) as w:
        w.app.handler = handler
        await w.begin(signal)
        first, w.run_id = w.run_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        await w.begin(signal)
        assert await w.settle() is Status.COMPLETED
        assert first in (await w.output()).json()
        w.run_id = first
        assert await w.server.host.signals.send("go", b'{"x":1}')
        assert await w.settle() is Status.COMPLETED
        assert (await w.output()).json() == {"signal": "go", "data": {"x": 1}}


async def test_steps_in_parallel_are_run_beside_each_other_each_once(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        gate = asyncio.Event()

        def handler() -> Steps:
            found = yield [RunStep("a", lambda: 1), RunStep("b", lambda: 2), sleep("nap", "1m")]
            return found

        class Slow(App):
            async def answer(self, request: httpx.Request) -> httpx.Response:
                if "x-inngest-step-id" in request.headers:
                    self.bodies.append("under way")
                    await gate.wait()
                return await App.answer(self, request)

        w.app.__class__ = Slow
        w.app.handler = handler
        await w.begin(op("StepPlanned", "a"), op("StepPlanned", "b"), sleep("nap", "1m"))
        await until(lambda: w.app.bodies == ["under way"] * 2)
        gate.set()
        assert await w.settle() is Status.WAITING
        assert await w.pass_time(60) is Status.COMPLETED
        assert (await w.output()).json() == [1, 2, None]
        assert sorted(w.app.bodies[2:]) == ["a", "b"]


async def test_a_step_that_waits_for_its_next_try_is_not_run_before(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock, retry_interval=60_000) as w:

        def handler() -> Steps:
            found = yield [failing(w.app, "a", 1), RunStep("b", lambda: 2)]
            return found

        w.app.handler = handler
        await w.begin(op("StepPlanned", "a"), op("StepPlanned", "b"))
        assert await w.settle() is Status.WAITING
        assert sorted(w.app.bodies) == ["a", "b"]
        assert w.app.requests[-1].headers["x-inngest-force-step-plan"] == "true"
        assert await w.pass_time(60) is Status.COMPLETED
        assert (await w.output()).json() == ["works", 2]
        assert sorted(w.app.bodies) == ["a", "a", "b"]


@pytest.mark.parametrize("code", ["InvokeFunction", "AIGateway", "Gateway", "StepNotFound", "New"])
async def test_what_is_not_offered_fails_and_never_hangs(
    store: FlakyStore, clock: VirtualClock, code: str
) -> None:
    def handler() -> Steps:
        try:
            yield op(code, "x", opts={"url": "http://10.0.0.1"})
        except StepFailedError as error:
            return str(error)

    async with world(store, clock) as w:
        w.app.handler = handler
        await w.begin(op(code, "x"))
        assert await w.settle() is Status.COMPLETED
        assert "unsupported" in (await w.output()).json()


@pytest.mark.parametrize(
    "one",
    [
        {**op("Sleep", "x"), "name": "soon"},
        sleep("x", "400d"),
        wait("x", "e", timeout="junk"),
        wait("x", "e", **{"if": "this is no CEL"}),
        wait("x", ""),
        {**op("WaitForSignal", "x", opts={"timeout": "1h"}), "name": ""},
    ],
)
async def test_an_op_that_makes_no_sense_fails_its_step_with_the_reason(
    store: FlakyStore, clock: VirtualClock, one: Any
) -> None:
    def handler() -> Steps:
        try:
            yield one
        except StepFailedError as error:
            return str(error)

    async with world(store, clock) as w:
        w.app.handler = handler
        await w.begin(op("DiscoveryRequest", "go"))
        assert await w.settle() is Status.COMPLETED
        assert len((await w.output()).json()) > 10


async def test_an_application_that_is_away_is_asked_again_and_costs_no_try(
    store: FlakyStore, clock: VirtualClock
) -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def broken(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("closed")

    async with world(store, clock) as w:
        w.app.handler = lambda: (yield RunStep("a", lambda: 1))  # type: ignore[misc]
        unwell = [lambda request: httpx.Response(503), lambda request: httpx.Response(401)]
        w.app.replies = [away, broken, *unwell] * 2
        await w.begin(sleep("nap", "0s"), retries=0)
        for _ in range(8):
            assert await w.settle() is Status.WAITING
            await w.pass_time(1)
        assert await w.status() is Status.COMPLETED
        w.run_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        w.app.replies = [broken] * 101
        await w.begin(sleep("nap", "0s"), retries=0)
        for _ in range(101):
            await w.settle()
            await w.pass_time(1)
        assert (await w.output()).json()["reason"] == "unreachable"


@pytest.mark.parametrize(
    "reply",
    [
        httpx.Response(404, text="no such page"),
        httpx.Response(302, headers={"location": "http://10.0.0.1/"}),
        httpx.Response(206, text="{", headers=SDK_HEADERS),
        httpx.Response(206, json=[], headers=SDK_HEADERS),
        httpx.Response(206, json=[{"op": 1}], headers=SDK_HEADERS),
        httpx.Response(206, content=b" " * 9_000_000, headers=SDK_HEADERS),
        httpx.Response(206, content=b"x", headers=SDK_HEADERS | {"content-encoding": "br"}),
        httpx.Response(500, text="not JSON", headers=SDK_HEADERS),
    ],
)
async def test_a_reply_that_cannot_be_understood_is_a_failed_try(
    store: FlakyStore, clock: VirtualClock, reply: httpx.Response
) -> None:
    async with world(store, clock) as w:
        again = httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)
        w.app.replies = [lambda request: reply, lambda request: again]
        await w.begin(sleep("nap", "0s"), retries=1)
        assert await w.settle() is Status.WAITING
        assert await w.pass_time(1) is Status.FAILED
        assert len(w.app.requests) == 2
        assert (await w.output()).status_code == 500


async def test_a_result_beyond_the_limit_fails_its_step(
    store: FlakyStore, clock: VirtualClock
) -> None:
    def handler() -> Steps:
        try:
            yield RunStep("a", lambda: "x" * 5_000_000)
        except StepFailedError as error:
            return str(error)

    async with world(store, clock) as w:
        w.app.handler = handler
        await w.begin(sleep("nap", "0s"))
        assert await w.settle() is Status.COMPLETED
        assert "max_result" in (await w.output()).json()


async def test_a_plain_value_and_both_forms_of_a_result_are_answered(
    store: FlakyStore, clock: VirtualClock
) -> None:
    own = {
        "status_code": 201,
        "headers": {"X-Many": ["a", "b"], "Content-Length": "9"},
        "body": "AP8=",
    }
    forms = [
        (httpx.Response(206, json=complete('"\\"twice\\""', 200)), 200, b'"\\"twice\\""'),
        (httpx.Response(206, json=[complete("x", 204)]), 204, b""),
        (httpx.Response(206, json={**complete(""), "data": own}), 201, b"\x00\xff"),
        (httpx.Response(206, json={**complete(""), "data": [1]}), 200, b'{"data":[1]}'),
        (httpx.Response(203, text="as it is", headers={"x-own": "1"}), 203, b"as it is"),
    ]
    for reply, status, body in forms:
        reply.headers.update(SDK_HEADERS)
        async with world(store, clock) as w:
            w.app.replies = [lambda request, reply=reply: reply]
            await w.begin(sleep("nap", "0s"))
            assert await w.settle() is Status.COMPLETED
            answer = await w.output()
            assert (answer.status_code, answer.content) == (status, body)
            if status == 201:
                assert answer.headers.get_list("x-many") == ["a", "b"]
            if status == 203:
                assert answer.headers["x-own"] == "1"
            assert not any(name.startswith("x-inngest") for name in answer.headers)


async def test_reentries_are_signed_for_the_sdk_and_over_everything(
    store: FlakyStore, clock: VirtualClock
) -> None:
    key = "signkey-prod-1234abcd"
    async with world(
        store, clock, dev=False, signing_keys=(key,), app_origins=("http://localhost:3000",)
    ) as w:
        w.client.headers["authorization"] = f"Bearer {signing.hashed(key)}"
        w.app.client = w.client
        event = w.event(method="POST", body='{"b": 1.0, "a": "\\u00e9"}')
        await w.begin(sleep("nap", "0s"), event=event)
        assert await w.settle() is Status.COMPLETED
        request = w.app.requests[0]
        body, headers = request.content, request.headers
        assert body == b'{"b": 1.0, "a": "\\u00e9"}'
        header = headers["x-inngest-signature"]
        at = int(header[2:].partition("&")[0])
        assert header == signing.sign(key, '{"a":"é","b":1}'.encode(), at)
        strong = headers["x-durable-signature"]
        path = request.url.raw_path.decode()
        assert signing.verify_request([key], strong, "POST", path, w.run_id, body, at)
        assert not signing.verify_request([key], strong, "POST", path, "other", body, at)
        assert not signing.verify_request([key], strong, "POST", path + "&x", w.run_id, body, at)


async def test_a_server_that_ends_hands_over_and_nothing_is_done_twice(
    store: FlakyStore, clock: VirtualClock
) -> None:
    app = App()
    gate = asyncio.Event()

    def handler() -> Steps:
        a = yield RunStep("a", lambda: 1)
        b = yield RunStep("b", lambda: 2)
        return [a, b]

    class Slow(App):
        async def answer(self, request: httpx.Request) -> httpx.Response:
            reply = await App.answer(self, request)
            if len(self.requests) == 1:
                gate.set()
                await asyncio.sleep(0.05)
            return reply

    app.__class__ = Slow
    app.handler = handler
    async with world(store, clock, app) as w:
        await w.begin(sleep("nap", "0s"))
        await gate.wait()
        run_id = w.run_id
    run = await store.run(run_id)
    assert run is not None
    assert (run.status, run.reason) == (Status.READY, "released")
    async with world(store, clock, app) as w:
        w.run_id = run_id
        assert await w.settle() is Status.COMPLETED
        assert (await w.output()).json() == [1, 2]
        assert app.bodies == ["a", "b"]


async def test_a_cancelled_run_is_left_alone(store: FlakyStore, clock: VirtualClock) -> None:
    never = asyncio.Event()

    class Slow(App):
        async def answer(self, request: httpx.Request) -> httpx.Response:
            self.requests.append(request)
            await never.wait()
            raise AssertionError

    async with world(store, clock, Slow()) as w:
        await w.begin(sleep("nap", "0s"))
        await until(lambda: w.app.requests)
        assert await w.server.host.cancel(w.run_id, "")
        assert await w.settle() is Status.CANCELLED
        assert (await w.output()).status_code == 409


async def test_a_store_that_fails_for_a_moment_loses_no_run(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:

        def body() -> int:
            store.fails = anything
            asyncio.get_running_loop().call_later(0.05, setattr, store, "fails", None)
            return 1

        w.app.handler = lambda: (yield RunStep("a", body))  # type: ignore[misc]
        w.app.replies = []
        await w.begin(sleep("nap", "0s"))
        async with asyncio.timeout(5):
            while await w.status() is not Status.COMPLETED:
                w.app.handler = lambda: (yield RunStep("a", lambda: 2))  # type: ignore[misc]
                await asyncio.sleep(0.01)
        assert (await w.output()).json() in (1, 2)


async def test_whoever_asks_too_early_waits_and_is_told_to_ask_again(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        w.app.handler = lambda: (yield sleep("nap", "1h"))  # type: ignore[misc]
        await w.begin(sleep("nap", "1h"))
        asking = asyncio.create_task(w.output(follow_redirects=True))
        for _ in range(15):
            await asyncio.sleep(0.01)
            assert not asking.done()
            clock.move_to(clock.now() + 50_000)
        await asyncio.sleep(0.01)
        clock.move_to(clock.now() + 50_000)
        answer = await asking
        assert (answer.status_code, answer.headers["durable-run-status"]) == (202, "running")
        assert len(answer.history) == 15
        asking = asyncio.create_task(w.output(follow_redirects=True))
        await asyncio.sleep(0.01)
        await w.pass_time(3_600)
        assert (await asking).status_code == 200


async def test_only_the_runs_own_token_opens_its_output(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        begun = (await w.begin(complete("1"))).json()["data"]
        url = f"/v1/checkpoint/{w.run_id}/output"
        assert (await w.client.get(url, params={"token": begun["token"]})).json() == 1
        for token in ("", "x", begun["realtime_token"]):
            assert (await w.client.get(url, params={"token": token})).status_code == 401
        other = url.replace(w.run_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV")
        assert (await w.client.get(other, params={"token": begun["token"]})).status_code == 401
        asked = await w.client.options(url)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (204, "*")


async def test_a_run_whose_application_is_not_trusted_any_more_stands_still_until_it_is(
    store: FlakyStore, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    keys: dict[str, Any] = {"dev": False, "signing_keys": ("abcd",)}
    async with world(store, clock, app_origins=(ORIGIN,), **keys) as w:
        w.client.headers["authorization"] = "Bearer abcd"
        await w.begin(sleep("nap", "1h"))
        run_id = w.run_id
    async with world(store, clock, **keys) as w:
        w.client.headers["authorization"] = "Bearer abcd"
        w.run_id = run_id
        clock.move_to(clock.now() + 3_600_000)
        await until(lambda: f"--app-origin {ORIGIN}" in caplog.text)
        assert await w.status() is Status.READY
        assert w.app.requests == []
        await w.client.put("/v1/durable/apps", json={"origin": ORIGIN})
        assert await w.settle() is Status.COMPLETED


async def test_steps_may_be_told_of_within_a_reentry_that_is_under_way(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:
        url = f"/v1/checkpoint/{w.run_id}/async"

        class Telling(App):
            async def answer(self, request: httpx.Request) -> httpx.Response:
                generation = int(request.headers["x-inngest-generation-id"])
                for number, status in ((generation, 200), (generation - 1, 409)):
                    form = {"generation_id": number, "steps": [step_run("a", 1)]}
                    assert (await w.client.post(url, json=form)).status_code == status
                return await App.answer(self, request)

        w.app.__class__ = Telling
        w.app.handler = lambda: (yield RunStep("a", lambda: 2))  # type: ignore[misc]
        await w.begin(sleep("nap", "0s"))
        assert await w.settle() is Status.COMPLETED
        assert (await w.output()).json() == 1
        assert w.app.bodies == []
        assert (await w.client.post(url, json={"generation_id": 1})).status_code == 409
        assert (await w.client.post(url, json={})).status_code == 400


async def test_steps_told_of_within_a_reentry_that_are_too_many_or_too_late_are_refused(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock, max_steps=3) as w:
        statuses: list[int] = []

        class Telling(App):
            async def answer(self, request: httpx.Request) -> httpx.Response:
                for names in ("abcd", "e"):
                    form = {
                        "generation_id": int(request.headers["x-inngest-generation-id"]),
                        "steps": [step_run(name, 1) for name in names],
                    }
                    told = await w.client.post(f"/v1/checkpoint/{w.run_id}/async", json=form)
                    statuses.append(told.status_code)
                    await w.server.host.cancel(w.run_id, "cancelled")
                return await App.answer(self, request)

        w.app.__class__ = Telling
        await w.begin(sleep("nap", "0s"))
        assert await w.settle() is Status.CANCELLED
        assert statuses == [413, 409]


async def test_one_application_does_not_take_all_executions(
    store: FlakyStore, clock: VirtualClock
) -> None:
    gate = asyncio.Event()

    class Slow(App):
        async def answer(self, request: httpx.Request) -> httpx.Response:
            if request.url.host == "localhost":
                self.bodies.append("held")
                await gate.wait()
            return await App.answer(self, request)

    async with world(store, clock, Slow(), max_executions=4) as w:
        slow = ["01ARZ3NDEKTSV4RRFFQ69G5FA" + last for last in "012345"]
        for w.run_id in slow:
            await w.begin(sleep("nap", "0s"))
        await until(lambda: len(w.app.bodies) == 3)
        w.run_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
        await w.begin(sleep("nap", "0s"), event=w.event(domain="http://127.0.0.1:3001"))
        async with asyncio.timeout(5):
            while await w.status() is not Status.COMPLETED:
                await asyncio.sleep(0.01)
        assert len(w.app.bodies) == 3
        gate.set()
        for w.run_id in slow:
            assert await w.settle() is Status.COMPLETED


async def test_the_tries_of_the_handler_are_counted_since_its_last_step(
    store: FlakyStore, clock: VirtualClock
) -> None:
    async with world(store, clock) as w:

        def handler() -> Steps:
            for name in ("a", "b", "c"):
                if name not in w.app.bodies and len(w.app.requests) % 2:
                    raise ValueError(name)
                yield RunStep(name, lambda: 1)
            return "done"

        w.app.handler = handler
        await w.begin(sleep("nap", "0s"), retries=1)
        for _ in range(4):
            if await w.settle() is Status.WAITING:
                await w.pass_time(1)
        assert await w.status() is Status.COMPLETED
        failed = [line.step for line in await store.attempts(w.run_id)]
        assert failed == ["complete"] * 3
