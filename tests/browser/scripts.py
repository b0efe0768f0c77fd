"""The endpoints of the browser tests: what their runs stream, and when."""

from __future__ import annotations

import gzip

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.browser.scripted import Frame, Run


async def story(run: Run) -> None:
    """Two parallel steps and text outside them; one step fails once."""
    run.push("Once ")
    run.push("AA ", "a")
    run.push("b1 ", "b")
    run.push("A2 ", "a")
    run.rollback("a")
    run.push("b2 ", "b")
    run.push("a ", "a")
    run.commit("b")
    run.commit("a")
    run.push("end 🦊")
    run.commit()
    run.respond("told")


async def events(run: Run) -> None:
    run.push({"token": 7}, "a")
    run.push(None, "a")
    run.report("progress", {"current": 1, "total": 2, "message": "half"}, "a")
    run.report("log", {"level": "info", "message": "odd", "data": {"n": 1}, "time": 5})
    run.cut()
    await run.reader()
    run.send(Frame(None, "durable.later", {"version": 2}))
    run.send(Frame(None, "unheard.of", {}))
    run.commit("a")
    run.respond("{}")


async def torn(run: Run) -> None:
    """Every way in which a connection ends, and chunks on both sides of each."""
    run.cut()  # after the headers and metadata at most
    await run.reader()
    run.push("1", "a")
    run.push("2", "a", cut=0)
    await run.reader()
    run.push("3ü", "a", cut=len('id: 3\nevent: inngest.stream\ndata: {"data":"3') + 1)
    await run.reader()
    run.leave()
    await run.reader()
    run.leave()
    await run.reader()
    run.rollback("a", cut=9)
    await run.reader()
    run.push("one ", "a")
    run.cut()
    run.push("two", "a")
    run.commit("a", cut=30)
    await run.reader()
    run.leave()
    run.respond("whole")


async def paused(run: Run) -> None:
    """Text, some of which is withdrawn while the test waits at a gate, and more text."""
    run.push("Kept, ", "a")
    run.commit("a")
    run.push("wrong", "b")
    await run.gate("fail")
    run.rollback("b")
    run.push("rig", "b")
    await run.gate("finish")
    run.push("ht", "b")
    run.commit("b")
    run.respond("done")


async def silent(run: Run) -> None:
    run.push("said ", "a")
    await run.gate("beat")
    run.beat()
    run.send(Frame(None, "durable.beat", {}))
    await run.gate("speak")
    run.push("more", "a")
    run.commit("a")
    run.respond("done")


async def cut_early(run: Run) -> None:
    """Cut before a step has ended, when no redirect was told yet."""
    run.push("x", "a")
    await run.gate("cut")
    run.push("y", "a", cut=20)
    await run.reader()
    run.commit("a")
    run.respond("done")


async def cut_late(run: Run) -> None:
    run.push("x", "a")
    run.commit("a")
    run.push("-", "b")
    await run.gate("cut")
    run.push("y", "b", cut=20)
    await run.reader()
    run.commit("b")
    run.respond("done")


async def no_content(run: Run) -> None:
    run.respond("", 200, headers={"durable-status": "204", "x-own": "yes"})


async def not_modified(run: Run) -> None:
    run.respond("", 304, headers={"etag": '"1"'})


async def binary(run: Run) -> None:
    headers = {"content-type": "application/octet-stream", "x-many": "2"}
    pairs = [["content-type", "application/octet-stream"], ["x-many", "1"], ["x-many", "2"]]
    run.respond(bytes(range(256)), 201, headers=headers, headerList=pairs)


async def packed(run: Run) -> None:
    run.respond(gzip.compress(b"unpacked"), headers={"content-encoding": "gzip"})


async def failed(run: Run) -> None:
    run.respond('{"error":"parked"}', 503, headers={"content-type": "application/json"})


SCRIPTS = {
    script.__name__: script
    for script in (
        story,
        events,
        torn,
        paused,
        silent,
        cut_early,
        cut_late,
        no_content,
        not_modified,
        binary,
        packed,
        failed,
    )
}


def refused(request: Request, turn: int) -> Response:
    return JSONResponse({"error": "who are you"}, 401, {"www-authenticate": "Bearer"})


def own_stream(request: Request, turn: int) -> Response:
    return Response("data: mine\n\n", media_type="text/event-stream")


def parked(request: Request, turn: int) -> Response:
    headers = {"durable-run-id": "01J", "durable-run-status": "parked"}
    return Response("parked", 503, headers)


def executed(request: Request, turn: int) -> Response:
    headers = {"durable-run-id": "01J", "durable-run-status": "unavailable", "retry-after": "0"}
    return Response("not again", 503, {**headers, "durable-step-executed": "charge"})


def own_failure(request: Request, turn: int) -> Response:
    return Response("mine", 503, {"durable-run-id": "01J"})


def busy(request: Request, turn: int) -> Response | None:
    """An engine that is not there at once, then a gateway, then the story."""
    if turn == 1:
        headers = {"durable-run-id": "01J", "durable-run-status": "unavailable", "retry-after": "0"}
        return Response("later", 503, headers)
    return Response("later", 502) if turn == 2 else None


def always_busy(request: Request, turn: int) -> Response:
    return Response("later", 429, {"retry-after": "3600"})


ANSWERS = {
    answer.__name__: answer
    for answer in (refused, own_stream, parked, executed, own_failure, busy, always_busy)
}
SCRIPTS["busy"] = story
