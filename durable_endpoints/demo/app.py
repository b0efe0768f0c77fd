"""The demo's application: ordinary Starlette, made durable by a middleware and a decorator.

`DURABLE_DEMO_FOLDER` is where it writes its digests and its journal.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from durable_endpoints import (
    DurableEndpointsMiddleware,
    endpoint,
    endpoint_proxy,
    send_event,
    step,
)
from durable_endpoints.demo.digest import compose, count_words, pick_key_sentences
from durable_endpoints.demo.journal import JournalHook

FOLDER = Path(os.environ["DURABLE_DEMO_FOLDER"])
PAUSE = 0.5
"""Seconds that the work pretends to take, so that eyes can follow."""
NAP = "1s"


@endpoint
async def digest(request: Request) -> Response:
    """Digest the text of the request's body, and publish the digest when it has been approved."""
    document = request.path_params["document"]
    text = (await request.body()).decode("utf-8", "replace")

    counts, sentences = await asyncio.gather(
        step.run("count words", slowly_count, text),
        step.run("pick key sentences", slowly_pick, text),
    )
    file = await step.run("write digest", write_digest, document, compose(counts, sentences))
    await step.sleep("let it rest", NAP)
    approval = await step.wait_for_event(
        "approval", event="digest/approved", match="data.document", timeout="1h"
    )
    if approval is None:
        return JSONResponse({"error": "nobody approved"}, 409)
    published = await step.run("publish", publish, file)
    return JSONResponse(answer(counts, published, approval.data["by"]))


def answer(counts: dict[str, Any], published: str, by: str) -> dict[str, Any]:
    """What the endpoint answers."""
    return {"counts": counts, "published": published, "approved_by": by}


async def slowly_count(text: str) -> dict[str, Any]:
    await asyncio.sleep(PAUSE)
    return count_words(text)


def slowly_pick(text: str) -> list[str]:
    time.sleep(PAUSE)
    return pick_key_sentences(text)


async def write_digest(document: str, text: str) -> str:
    """Write the file; the first try of each document finds the disk "busy"."""
    await asyncio.sleep(PAUSE)
    file = FOLDER / f"{document}.digest"
    marker = file.with_suffix(".tried")
    if not marker.exists():
        marker.touch()
        raise OSError("the disk is busy (a failure the demo made up)")
    file.write_text(text, "utf-8")
    return file.name


async def publish(file: str) -> str:
    return await asyncio.to_thread((FOLDER / file).read_text, "utf-8")


async def approve(request: Request) -> Response:
    """Send the event that a run of `digest` waits for."""
    approval = {"document": request.path_params["document"], **await request.json()}
    event_id = await send_event("digest/approved", approval)
    return JSONResponse({"event": event_id}, 202)


async def alive(request: Request) -> Response:
    return PlainTextResponse("alive")


app = Starlette(
    routes=[
        Route("/digests/{document}", digest, methods=["POST"]),
        Route("/approvals/{document}", approve, methods=["POST"]),
        Route("/alive", alive),
        Mount("/wait", endpoint_proxy()),
    ],
    middleware=[
        Middleware(DurableEndpointsMiddleware, hooks=[JournalHook(FOLDER / "journal")]),
    ],
)
