"""An application whose runs a companion server keeps."""

from __future__ import annotations

import asyncio

import pytest

from durable_endpoints import endpoint, send_event, send_signal, step, stream
from durable_endpoints.events import new_event
from tests.durable_endpoints.remote.served import Companion, process

pytestmark = pytest.mark.anyio


async def test_a_run_of_steps_and_a_sleep_goes_to_its_end() -> None:
    companion = Companion()
    await companion.start()
    async with process(companion) as (app, client, _):

        @app.post("/{n}")
        @endpoint
        async def handle(n: int) -> int:
            twice = await step.run("twice", lambda: n * 2)
            await step.sleep("a while", "100ms")
            return await step.run("more", lambda: twice + 1)

        response = await client.post("/4", follow_redirects=False)
        assert response.status_code == 303
        assert (await client.get(response.headers["location"])).json() == 9
    await companion.stop()


async def test_an_event_and_a_signal_end_waits() -> None:
    companion = Companion()
    await companion.start()
    async with process(companion) as (app, client, _):

        @app.post("/")
        @endpoint
        async def handle() -> list[object]:
            event = await step.wait_for_event("paid", event="paid", timeout="1h")
            assert event is not None
            signal = await step.wait_for_signal("wait", signal="go", timeout="1h")
            assert signal is not None
            return [event.data, signal.data]

        @app.post("/send")
        async def send(what: str) -> bool:
            if what == "event":
                return bool(await send_event("paid", 5))
            return await send_signal("go", "now")

        where = (await client.post("/", follow_redirects=False)).headers["location"]
        asking = asyncio.create_task(client.get(where))
        assert (await client.post("/send?what=event")).json()
        while not (await client.post("/send?what=signal")).json():
            await asyncio.sleep(0.02)
        assert (await asking).json() == [5, "now"]
    await companion.stop()


async def test_a_failed_step_is_tried_again() -> None:
    companion = Companion()
    await companion.start()
    async with process(companion, retry_base="50ms") as (app, client, _):
        tries = []

        @app.post("/")
        @endpoint
        async def handle() -> int:
            def body() -> int:
                tries.append(1)
                if len(tries) < 3:
                    raise ValueError("not yet")
                return len(tries)

            return await step.run("try", body)

        response = await client.post("/", follow_redirects=True)
        assert response.json() == 3
    await companion.stop()


async def test_a_stream_reaches_its_client_with_commit_and_response() -> None:
    companion = Companion()
    await companion.start()
    async with process(companion) as (app, client, _):

        @app.post("/")
        @endpoint
        async def handle() -> str:
            async def write() -> str:
                for word in ("a", "b"):
                    stream.push(word)
                    await asyncio.sleep(0)
                return "done"

            return await step.run("write", write)

        response = await client.post("/", headers={"accept": "text/event-stream"})
        events = [line[7:] for line in response.text.splitlines() if line.startswith("event: ")]
        assert events[0] == "inngest.metadata"
        assert events[1:4] == ["inngest.stream", "inngest.stream", "inngest.commit"]
        assert events[-1] == "inngest.response"
    await companion.stop()


async def test_a_server_that_is_killed_in_the_middle_goes_on_with_everything() -> None:
    companion = Companion()
    await companion.start()
    async with process(companion) as (app, client, _):
        ran: list[int] = []

        @app.post("/")
        @endpoint
        async def handle() -> list[int]:
            for n in range(6):
                await step.run(f"step {n}", lambda n=n: ran.append(n))
                if n in (1, 3):
                    await companion.stop()
                    await companion.start()
            return ran

        assert (await client.post("/")).json() == [0, 1, 2, 3, 4, 5]
    await companion.stop()


async def test_a_process_that_ends_hands_over_and_the_other_goes_on() -> None:
    companion = Companion()
    await companion.start()
    ran: list[str] = []

    async def handle() -> list[str]:
        await step.run("a", lambda: ran.append("a"))
        await step.wait_for_event("go", event="go", timeout="1h")
        await step.run("b", lambda: ran.append("b"))
        return ran

    async with process(companion) as (app, client, _):
        app.post("/")(endpoint(handle))
        where = (await client.post("/", follow_redirects=False)).headers["location"]
    async with process(companion) as (app, client, engine):
        app.post("/")(endpoint(handle))
        await client.get("/")  # so that the application is known
        await engine.send_event(new_event("go", None, None, None))
        assert (await client.get(where)).json() == ["a", "b"]
    await companion.stop()
