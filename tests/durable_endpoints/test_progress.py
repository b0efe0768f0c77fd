"""`step.progress` and `step.log`: what readers get, once, of work that is under way."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from durable_endpoints import (
    NotInRunError,
    StepValueError,
    UsageError,
    endpoint,
    step,
    stream,
)
from durable_endpoints.client import Log, Progress, StreamEvent, Transcript, open_stream
from durable_endpoints.testing import VirtualEngine
from tests.durable_endpoints.helpers import one, run_id_of
from tests.durable_endpoints.sources import A, seen, url_of
from tests.durable_endpoints.streams import Frame, events_of, read

pytestmark = pytest.mark.anyio


def body_of(frames: list[Frame]) -> list[Frame]:
    """What stands between the frames of every stream."""
    ours = ("inngest.metadata", "inngest.redirect_info", "inngest.response")
    return [frame for frame in frames if frame.event not in ours]


async def test_progress_and_log_lines_are_frames_of_the_stream(engine: VirtualEngine) -> None:
    def work() -> None:
        step.progress(1)
        step.progress(2.5, 10, "reading")
        stream.push("x")
        step.log.info("read")
        step.log("warning", "odd line", line=7, text="naïve")

    @endpoint
    async def handler(request: Request) -> Response:
        step.progress(0, 2)
        await step.run("a", work)
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        frames = await read(client, "/")
    now = engine.clock.now()
    assert body_of(frames) == [
        Frame("1", "durable.progress", {"data": {"current": 0, "total": 2}}),
        Frame("2", "durable.progress", {"data": {"current": 1}, "hashedStepId": A}),
        Frame(
            "3",
            "durable.progress",
            {"data": {"current": 2.5, "total": 10, "message": "reading"}, "hashedStepId": A},
        ),
        Frame("4", "inngest.stream", {"data": "x", "hashedStepId": A}),
        Frame(
            "5",
            "durable.log",
            {"data": {"level": "info", "message": "read", "time": now}, "hashedStepId": A},
        ),
        Frame(
            "6",
            "durable.log",
            {
                "data": {
                    "level": "warning",
                    "message": "odd line",
                    "data": {"line": 7, "text": "naïve"},
                    "time": now,
                },
                "hashedStepId": A,
            },
        ),
        Frame("7", "inngest.commit", {"hashedStepId": None}),
        Frame("8", "inngest.commit", {"hashedStepId": A}),
    ]


async def test_what_a_failed_try_reported_is_withdrawn_and_who_comes_later_is_spared_it(
    engine: VirtualEngine,
) -> None:
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        step.progress(len(tries), 2)
        step.log.info(f"try {len(tries)}")
        if len(tries) == 1:
            await seen()
            raise ConnectionError

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("a", work)
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        first = await read(client, "/")
        assert events_of(body_of(first)) == ["durable.progress", "durable.log", "rollback"]
        whole = url_of(first).removesuffix("&after=sync")
        await engine.advance("1m")
        later = body_of(await read(client, whole))
        assert events_of(later) == ["durable.progress", "durable.log", "commit"]
        assert later[0].data["data"]["current"] == 2
        committed = body_of(await read(client, f"{whole}&view=committed"))
        assert [(f.event, f.data) for f in committed] == [(f.event, f.data) for f in later]
        assert [frame.id for frame in committed] == ["6.1", "6.2", "6"]


async def test_a_replay_reports_nothing_again(
    engine: VirtualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "durable_endpoints.run")

    @endpoint
    async def handler(request: Request) -> Response:
        for n in range(3):
            step.progress(n, 3)
            step.log.info("round", n=n)
            await step.run(f"s{n}", step.log.error, "inside")
            await step.sleep(f"nap {n}", "1m")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        response = await client.get("/")
        await engine.advance("10m")
        frames = await read(client, response.headers["location"])
    told = [frame.data["data"] for frame in frames if frame.event == "durable.progress"]
    assert [data["current"] for data in told] == [0, 1, 2]
    run_id = run_id_of(response)
    assert [record.getMessage() for record in caplog.records] == [
        line
        for n in range(3)
        for line in (
            f'run {run_id}: round {{"n":{n}}}',
            f"run {run_id}, step 's{n}': inside",
        )
    ]
    first, second = caplog.records[:2]
    assert (first.levelname, first.filename) == ("INFO", "test_progress.py")
    assert vars(first).keys() >= {"run_id", "step", "data"}
    assert (vars(second)["step"], vars(second)["run_id"]) == ("s0", run_id)


async def test_a_crash_keeps_what_was_reported(engine: VirtualEngine) -> None:
    reported = asyncio.Event()
    tries: list[int] = []

    async def work() -> None:
        tries.append(1)
        step.progress(len(tries), 9)
        if len(tries) == 1:
            await asyncio.sleep(0.02)
            reported.set()
            await asyncio.sleep(60)  # until the process dies

    @endpoint
    async def handler(request: Request) -> Response:
        step.log.info("begins")
        await step.run("before", lambda: None)
        await step.run("a", work)
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        key = {"idempotency-key": "k"}
        request = asyncio.create_task(client.get("/", headers=key))
        await reported.wait()
        await engine.crash()
        request.cancel()
        assert (await client.get("/", headers=key)).text == "done"
        frames = body_of(await read(client, "/", **key))
    assert [frame.event for frame in frames].count("durable.log") == 1
    told = [frame.data["data"] for frame in frames if frame.event == "durable.progress"]
    assert told == [{"current": 2, "total": 9}]


async def test_plain_handlers_and_threads_report_too(engine: VirtualEngine) -> None:
    @endpoint
    def handler(request: Request) -> Response:
        step.progress(1, 2)

        def work() -> None:
            step.progress(2, 2)
            bare = threading.Thread(target=step.progress, args=(3,))  # without the context
            bare.start()
            bare.join()

        step.sync.run("a", work)
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        frames = await read(client, "/")
    told = [frame.data["data"]["current"] for frame in frames if frame.event == "durable.progress"]
    assert told == [1, 2]


async def test_a_step_may_report_without_end_and_loses_nothing_but_old_progress(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = VirtualEngine(max_stream=50_000)

    async def work() -> int:
        for n in range(5_000):
            step.progress(n, 5_000)
        for _ in range(1_000):
            step.log.debug("a line of some length, which goes on")
        return 7

    @endpoint
    async def handler(request: Request) -> Response:
        return PlainTextResponse(str(await step.run("a", work)))

    async with engine.client(one(engine, handler)) as client:
        frames = await read(client, "/")
    assert frames[-1].data["response"]["body"] == "7"
    progress = [frame for frame in frames if frame.event == "durable.progress"]
    assert len(progress) == 100
    assert progress[-1].data["data"]["current"] == 4_999
    assert 10 < events_of(frames).count("durable.log") < 1_000
    [warning] = [r for r in caplog.records if "miss progress or log lines" in r.getMessage()]
    assert "max_stream" in warning.getMessage()


async def test_the_client_yields_them_beside_the_text(engine: VirtualEngine) -> None:
    async def work() -> None:
        step.progress(1, 2, "half")
        stream.push("text")
        step.log.error("no", why={"code": 1})

    @endpoint
    async def handler(request: Request) -> Response:
        await step.run("a", work)
        return PlainTextResponse("done")

    transcript, events = Transcript(), list[StreamEvent]()
    async with (
        engine.client(one(engine, handler)) as client,
        open_stream("/", client=client) as reading,
    ):
        async for event in reading:
            transcript.feed(event)
            events.append(event)
    assert events[1] == Progress(1, 2, "half", A, "1")
    assert events[3] == Log("error", "no", {"why": {"code": 1}}, engine.clock.now(), A, "3")
    assert transcript.text == "text"
    assert len(transcript.chunks) == 1


async def test_mistakes_are_told(engine: VirtualEngine) -> None:
    for current, total in ((-1, None), (float("nan"), 1), (True, 1), ("3", 1), (1, -2), (1, [])):
        with pytest.raises(UsageError, match="give a number from 0 on"):
            step.progress(current, total)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"step\.progress: the message is a text"):
        step.progress(1, 2, 3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"data goes beside it, by name"):
        step.log.info({"n": 1})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one of debug, info, warning, error"):
        step.log("fatal", "oh")  # type: ignore[arg-type]
    step.progress(1)  # outside any request: nothing
    step.log.info("nothing")

    @endpoint(retries=0)
    async def handler(request: Request) -> Response:
        with pytest.raises(StepValueError, match=r"at \$\.data\.when: .* is not a JSON value"):
            step.log.info("x", when=object())
        return PlainTextResponse("told")

    async def undecorated(request: Request) -> Response:
        with pytest.raises(NotInRunError, match=r"step\.progress is called outside a run"):
            step.progress(1)
        with pytest.raises(NotInRunError, match=r"step\.log\.info is called outside a run"):
            step.log.info("x")
        return PlainTextResponse("told")

    for each in (handler, undecorated):
        async with engine.client(one(engine, each)) as client:
            assert (await client.get("/")).text == "told"


async def test_both_stand_under_step_sync_as_well(engine: VirtualEngine) -> None:
    @endpoint
    def handler(request: Request) -> Response:
        step.sync.progress(1, 2)
        step.sync.log.info("half")
        return PlainTextResponse("done")

    async with engine.client(one(engine, handler)) as client:
        answer = await client.get("/", headers={"accept": "text/event-stream"})
    assert "durable.progress" in answer.text
    assert "durable.log" in answer.text
