"""A document's digest: its chapters are summarized side by side, then one text is written of that.

    uvicorn examples.digest:app
    python examples/watch.py http://localhost:8000/digests README.md

shows progress, then the digest while it is written, then the response. The model is made up, and
overloaded once: that chapter alone is summarized again.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import count
from typing import Annotated

from fastapi import Body, FastAPI
from pydantic import BaseModel

from durable_endpoints import (
    DurableEndpointsMiddleware,
    RetryAfterError,
    endpoint,
    endpoint_proxy,
    step,
    stream,
)

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


class Chapter(BaseModel):
    title: str
    text: str


class Summary(BaseModel):
    title: str
    words: int
    sentence: str


class Digest(BaseModel):
    chapters: int
    words: int
    text: str


@app.post("/digests")
@endpoint
async def digest(document: Annotated[str, Body(media_type="text/markdown")]) -> Digest:
    chapters = chapters_of(document)
    done = 0

    async def summarized(number: int, chapter: Chapter) -> Summary:
        nonlocal done
        summary = await step.run(f"summarize {number}", summarize, chapter)
        done += 1
        step.progress(done, len(chapters), f"{chapter.title} is summarized")
        return summary

    summaries = await asyncio.gather(*map(summarized, range(1, len(chapters) + 1), chapters))
    text = await step.run("write", write, summaries)
    words = sum(summary.words for summary in summaries)
    return Digest(chapters=len(chapters), words=words, text=text)


def chapters_of(document: str) -> list[Chapter]:
    """A Markdown document, cut at its headings."""
    parts = re.split(r"^#+ +(.+)$", document, flags=re.MULTILINE)
    found = [("Preface", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
    return [Chapter(title=title, text=text) for title, text in found if text.strip()]


# From here on: stands for a language model.

requests = count(1)


async def summarize(chapter: Chapter) -> Summary:
    await asyncio.sleep(0.5)
    if next(requests) == 3:
        # Another try, but not at once. The other chapters are not summarized again.
        raise RetryAfterError("the model is overloaded (this example made that up)", "1s")
    words = chapter.text.split()
    return Summary(title=chapter.title, words=len(words), sentence=" ".join(words[:12]))


async def write(summaries: list[Summary]) -> str:
    return await stream.pipe(digest_of(summaries))


async def digest_of(summaries: list[Summary]) -> AsyncIterator[str]:
    for summary in summaries:
        for word in re.findall(r"\S+\s*", f"{summary.title}: {summary.sentence} …\n"):
            yield word
            await asyncio.sleep(0.01)
