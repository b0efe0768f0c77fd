"""An application that streams what language models say, through the clients people use for them.

`GET /endings/{model}` tells how each try ended that asked the model of this name.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from durable_endpoints import (
    DurableEndpointsMiddleware,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
    stream,
)

PATIENCE = 10.0
"""Seconds without a byte after which a client gives up, unless a request says otherwise."""

endings: defaultdict[str, list[str]] = defaultdict(list)

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


@app.get("/endings/{model}")
async def endings_of(model: str) -> list[str]:
    return endings[model]


@contextmanager
def noted(model: str) -> Iterator[None]:
    """Note how a try ends: the name of its exception, or an empty one."""
    try:
        yield
    except BaseException as error:
        endings[model].append(type(error).__name__)
        raise
    endings[model].append("")


@cache
def http() -> httpx.AsyncClient:
    return httpx.AsyncClient()


@cache
def blocking_http() -> httpx.Client:
    return httpx.Client()


@cache
def awaited(llm: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{llm}/v1", api_key="none", max_retries=0)


@cache
def blocking(llm: str) -> OpenAI:
    return OpenAI(base_url=f"{llm}/v1", api_key="none", max_retries=0)


def chat_request(model: str, timeout: float) -> dict[str, Any]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me about whales."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "timeout": timeout,
    }


def responses_request(model: str, timeout: float) -> dict[str, Any]:
    return {"model": model, "input": "Tell me about whales.", "stream": True, "timeout": timeout}


async def chat(llm: str, model: str, timeout: float) -> Any:
    return await awaited(llm).chat.completions.create(**chat_request(model, timeout))


async def chat_in_threads(llm: str, model: str, timeout: float) -> Any:
    """The blocking client's stream, which `stream.pipe` has to read elsewhere."""
    create = blocking(llm).chat.completions.create
    return await asyncio.to_thread(create, **chat_request(model, timeout))


async def responses(llm: str, model: str, timeout: float) -> Any:
    return await awaited(llm).responses.create(**responses_request(model, timeout))


async def messages(llm: str, model: str, timeout: float) -> AsyncIterator[SimpleNamespace]:
    """Anthropic's events as objects, which is what its client makes of them."""
    request = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me about whales."}],
        "max_tokens": 1_000,
        "stream": True,
    }
    url = f"{llm}/anthropic/v1/messages"
    async with http().stream("POST", url, json=request, timeout=timeout) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                yield json.loads(line[6:], object_hook=lambda fields: SimpleNamespace(**fields))


def chat_blocking(llm: str, model: str, timeout: float) -> Any:
    return blocking(llm).chat.completions.create(**chat_request(model, timeout))


def responses_blocking(llm: str, model: str, timeout: float) -> Any:
    return blocking(llm).responses.create(**responses_request(model, timeout))


AWAITED: dict[str, Callable[..., Any]] = {
    "chat": chat,
    "chat_in_threads": chat_in_threads,
    "responses": responses,
    "messages": messages,
}
BLOCKING: dict[str, Callable[..., Any]] = {
    "chat_blocking": chat_blocking,
    "responses_blocking": responses_blocking,
}


async def ask(api: str, llm: str, model: str, timeout: float = PATIENCE) -> str:
    with noted(model):
        return await stream.pipe(lambda: AWAITED[api](llm, model, timeout))


def ask_blocking(api: str, llm: str, model: str, timeout: float = PATIENCE) -> str:
    with noted(model):
        return stream.sync.pipe(BLOCKING[api](llm, model, timeout))


@app.get("/awaited/{api}/{model}")
@endpoint
async def write(
    api: str,
    model: str,
    llm: str,
    retries: int = 3,
    patience: float = PATIENCE,
    timeout: str = "1m",
) -> str:
    """`patience` is the provider's client's, `timeout` the step's."""
    tries = step.options(retries=retries, timeout=timeout)
    return await tries.run("write", ask, api, llm, model, patience)


@app.get("/blocking/{api}/{model}")
@endpoint
def write_blocking(
    api: str,
    model: str,
    llm: str,
    retries: int = 3,
    patience: float = PATIENCE,
    timeout: str = "1m",
) -> str:
    tries = step.sync.options(retries=retries, timeout=timeout)
    return tries.run("write", ask_blocking, api, llm, model, patience)


@app.get("/fallback/{model}")
@endpoint
async def fallback(model: str, first: str, second: str, retries: int = 0) -> dict[str, str]:
    """Asks another provider when the first has failed for good."""
    title = await step.run("title", stream.pipe, ["A tale: ", "whales. "])
    try:
        text = await step.options(retries=retries).run("first", ask, "chat", first, model)
    except StepError as error:
        text = await step.run("second", ask, "responses", second, model)
        return {"text": title + text, "because": error.name}
    return {"text": title + text, "because": ""}


@app.get("/fallback-blocking/{model}")
@endpoint
def fallback_blocking(model: str, first: str, second: str, timeout: str) -> dict[str, str]:
    tries = step.sync.options(retries=0, timeout=timeout)
    try:
        text = tries.run("first", ask_blocking, "chat_blocking", first, model)
    except StepError as error:
        text = step.sync.run("second", ask_blocking, "responses_blocking", second, model)
        return {"text": text, "because": error.name}
    return {"text": text, "because": ""}


@app.get("/text/{way}/{model}")
@endpoint
async def text(way: str, model: str, url: str) -> str:
    """Streams the body of a plain HTTP response."""

    async def read() -> str:
        with noted(model):
            return await TEXT_READERS[way](url)

    return await step.run("write", read)


async def read_response(url: str) -> str:
    async with http().stream("GET", url) as response:
        return await stream.pipe(response)


async def read_bytes(url: str) -> str:
    async with http().stream("GET", url) as response:
        return await stream.pipe(response.aiter_bytes)


async def read_blocking_response(url: str) -> str:
    """A response that only threads can read."""
    request = blocking_http().build_request("GET", url)
    return await stream.pipe(await asyncio.to_thread(blocking_http().send, request, stream=True))


async def read_in_thread(url: str) -> str:
    def read() -> str:
        with blocking_http().stream("GET", url) as response:
            return stream.sync.pipe(response)

    return await asyncio.to_thread(read)


TEXT_READERS: dict[str, Callable[[str], Coroutine[Any, Any, str]]] = {
    "response": read_response,
    "bytes": read_bytes,
    "blocking_response": read_blocking_response,
    "in_thread": read_in_thread,
}
