"""The demo's application: ordinary Starlette, made durable by a middleware and a decorator.

`DURABLE_DEMO_FOLDER` is where it writes its digests and its journal. With `DURABLE_DEMO_LLM_URL`
and `DURABLE_DEMO_LLM_MODEL` a language model writes the digest.
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
    stream,
)
from durable_endpoints.demo.digest import (
    compose,
    compose_prompt,
    count_words,
    pick_key_sentences,
)
from durable_endpoints.demo.journal import JournalHook
from durable_endpoints.demo.llm import Llm
from durable_endpoints.demo.writing import MadeUpFailure, count, whole, word_by_word
from durable_endpoints.errors import StepError

FOLDER = Path(os.environ["DURABLE_DEMO_FOLDER"])
PAUSE = 0.5
"""Seconds that the work pretends to take, so that eyes can follow."""
WRITING = 1.0
"""Seconds that it takes to write the digest …"""
FILING = 0.3
"""… and to put it into its file."""
LLM_PAUSE = 0.01
"""Seconds after each piece of a language model's text …"""
LLM_FAILS_AFTER = 12
"""… and the piece behind which the first try fails: how many will come is not known."""
NAP = "1s"

LLM = (
    Llm(
        os.environ["DURABLE_DEMO_LLM_URL"],
        os.environ["DURABLE_DEMO_LLM_MODEL"],
        os.environ.get("OPENAI_API_KEY", "").strip(),
    )
    if "DURABLE_DEMO_LLM_URL" in os.environ
    else None
)


@endpoint
async def digest(request: Request) -> Response:
    """Digest the text of the request's body, and publish the digest when it has been approved."""
    document = request.path_params["document"]
    text = (await request.body()).decode("utf-8", "replace")

    counts, sentences = await asyncio.gather(
        step.run("count words", slowly_count, text),
        step.run("pick key sentences", slowly_pick, text),
    )
    try:
        file = await step.run("write digest", write_digest, document, counts, sentences, text)
    except StepError as error:
        return JSONResponse({"error": error.message}, 502)
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


async def write_digest(
    document: str, counts: dict[str, Any], sentences: list[str], text: str
) -> str:
    """Write the digest as a stream, and then the file; the first try of each document fails in the
    middle of the stream."""
    file = FOLDER / f"{document}.digest"
    marker = file.with_suffix(".tried")
    if LLM is None:
        ready = compose(counts, sentences)
        pieces, pause, middle = whole(ready), WRITING / count(ready), count(ready) // 2
    else:
        prompt = compose_prompt(counts, sentences, text)
        pieces, pause, middle = LLM.write(prompt), LLM_PAUSE, LLM_FAILS_AFTER
    fails_after = None if marker.exists() else middle
    try:
        written = await stream.pipe(word_by_word(pieces, pause, fails_after))
    except MadeUpFailure:
        marker.touch()
        raise
    await asyncio.sleep(FILING)
    file.write_text(written, "utf-8")
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
