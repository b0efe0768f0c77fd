"""The application whose streams Inngest's client reads.

What a test must decide while a handler runs, it decides at a gate: `GET /open/{name}` opens it.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from typing import Any

import httpx
from fastapi import Body, FastAPI, HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from durable_endpoints import (
    DurableEndpointsMiddleware,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
    stream,
)

gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
tries: Counter[str] = Counter()


class CrossOrigin(CORSMiddleware):
    """CORS for everything except `/wait`, which must do without help."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/wait"):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class SlowConnection:
    """Holds what follows the chunk "held" on its way to the client of `/behind/{name}`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        folder, _, name = scope.get("path", "").removeprefix("/").partition("/")

        async def send_slowly(message: Message) -> None:
            await send(message)
            if b'"held' in message.get("body", b""):
                await gates[name].wait()

        await self.app(scope, receive, send_slowly if folder == "behind" else send)


app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.add_middleware(
    CrossOrigin,
    allow_origins=["*"],
    allow_methods=["*"],
    allow_headers=["*"],
    expose_headers=["*"],
)
app.add_middleware(SlowConnection)
app.mount("/wait", endpoint_proxy())


async def spell(*chunks: str) -> AsyncIterator[str]:
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(0)


async def say(*chunks: str) -> str:
    return await stream.pipe(spell(*chunks))


async def say_only(*chunks: str) -> None:
    """Remembers nothing of what it says."""
    await say(*chunks)


async def say_and_wait(name: str, *chunks: str) -> str:
    """Say, and wait until it was heard."""
    said = await say(*chunks)
    await gates[name].wait()
    return said


@app.get("/open/{name}")
async def open_gate(name: str) -> None:
    gates[name].set()


@app.get("/tries/{name}")
async def count_tries(name: str) -> int:
    return tries[name]


@app.get("/two-steps/{name}")
@endpoint
async def two_steps(name: str) -> Response:
    """Ends in the client's own request. The first step waits until its first chunk was seen."""

    async def greet() -> str:
        stream.push("Hel")
        await gates[name].wait()
        stream.push("lo")
        return "Hello"

    greeting = await step.run("greet", greet)
    rest = await step.run("rest", say, ", ", "world")
    return PlainTextResponse(greeting + rest + " ✓", 201, headers={"x-name": name})


@app.get("/across/{name}")
@endpoint
async def across(name: str) -> Response:
    """Streams before and after a sleep."""
    before = await step.run("before", say, "one ", "two ")
    await step.sleep("nap", "200ms")
    after = await step.run("after", say, "three ", "four")
    return PlainTextResponse(before + after, 202, headers={"x-name": name})


@app.get("/hops/{name}")
@endpoint
async def hops(name: str, count: int, chunks: int, width: int = 1) -> int:
    """Streams numbers, `width` characters wide, without a break from one execution to the next."""
    for hop in range(count):
        first = hop * chunks
        numbers = (f"{number:{width}}" for number in range(first, first + chunks))
        await step.run(f"hop-{hop}", say_only, *numbers)
        await step.sleep(f"nap-{hop}", "1ms")
    return count * chunks


@app.get("/behind/{name}")
@endpoint
async def behind(name: str) -> str:
    """Its first execution is still on its way to the client when its last one opens the gate."""

    async def hold() -> None:
        stream.push("held ")
        await asyncio.sleep(0.05)
        stream.push("back ")

    await step.run("first", say, "first ")
    await step.run("held", hold)
    await step.sleep("nap", "20ms")
    await step.run("behind", say, "behind ")
    await step.sleep("nap again", "20ms")
    gates[name].set()
    return await step.run("last", say, "last")


@app.get("/stumbles/{name}")
@endpoint
async def stumbles(name: str) -> str:
    """Its second step breaks off once."""

    async def write() -> str:
        tries[name] += 1
        if tries[name] == 1:
            await say("once ", "upon ", "a tim")
            raise ConnectionError("the model hung up")
        return await say("once ", "upon ", "a time")

    title = await step.run("title", say_and_wait, name, "A tale: ")
    return title + await step.run("write", write)


@app.get("/stumbles-outside/{name}")
@endpoint
async def stumbles_outside(name: str) -> str:
    """Raises twice outside its steps: before anything is remembered, and after."""
    stream.push("draft ")
    await gates[name].wait()
    tries[name] += 1
    if tries[name] == 1:
        raise ConnectionError("not yet")
    text = await step.run("write", say, "kept")
    if tries[name] == 2:
        raise ConnectionError("still not")
    return text


async def break_off(name: str) -> None:
    await say_and_wait(name, "lost")
    raise ValueError("never")


@app.get("/step-fails/{name}")
@endpoint
async def step_fails(name: str) -> str:
    await step.run("fine", say_and_wait, name, "kept")
    await step.options(retries=0).run("broken", break_off, name)
    return "unreachable"


@app.get("/failure-caught/{name}")
@endpoint
async def failure_caught(name: str) -> str:
    try:
        await step.options(retries=0).run("broken", break_off, name)
    except StepError as error:
        return await step.run("instead", say, "instead of ", str(error.name))
    return "unreachable"


@app.get("/raises/{name}")
@endpoint(retries=0)
async def raises(name: str) -> str:
    await step.run("fine", say, "kept")
    raise ValueError("a secret")


@app.get("/conflict/{name}")
@endpoint
async def conflict(name: str) -> str:
    await step.run("look", say, "taken")
    raise HTTPException(409, f"{name} is taken", headers={"x-name": name})


@app.get("/no-content/{name}")
@endpoint
async def no_content(name: str) -> Response:
    await step.run("delete", say, "gone")
    return Response(status_code=204)


@app.get("/no-steps/{name}")
@endpoint
async def no_steps(name: str) -> dict[str, str]:
    stream.push("a")
    stream.push({"b": [1, None]})
    return {"name": name}


@app.get("/piped/{name}")
@endpoint
async def piped(name: str) -> str:
    """Pipes in no step of its own."""
    return await stream.pipe(spell("c", "d"))


@app.get("/outside/{name}")
@endpoint
async def outside(name: str) -> str:
    """Streams outside its steps, in three executions of the handler."""
    stream.push("a")
    await step.run("middle", say, "b")
    stream.push("c")
    await step.sleep("nap", "20ms")
    stream.push("d")
    await step.sleep("nap again", "20ms")
    stream.push("e")
    return name


@app.get("/parallel/{name}")
@endpoint
async def parallel(name: str) -> list[str]:
    return list(
        await asyncio.gather(
            step.run("left", say, *(f"l{n} " for n in range(20))),
            step.run("right", say, *(f"r{n} " for n in range(20))),
        )
    )


@app.get("/quiet/{name}")
@endpoint
async def quiet(name: str, nap: float = 0) -> dict[str, str]:
    """Streams nothing, and reports what Inngest's client does not know."""

    async def look() -> str:
        step.progress(1, 2, "looking")
        step.log.info("looked", name=name)
        return name

    found = await step.run("look", look)
    if nap:
        await step.sleep("nap", nap)
    return {"found": found}


@app.get("/not-streamed/{name}")
@endpoint(sse=False)
async def not_streamed(name: str, nap: float = 0) -> dict[str, str]:
    """Has no stream in its first answer, whatever the client accepts."""
    said = await step.run("say", say, "hidden")
    if nap:
        await step.sleep("nap", nap)
    return {"said": said}


@app.get("/number/{number}")
@endpoint
async def number(number: int) -> int:
    return number


@app.post("/echo/{name}")
@endpoint
async def echo(name: str, values: list[Any] = Body()) -> list[Any]:
    """Streams the values it is sent, and answers with them."""

    async def repeat() -> None:
        tries[name] += 1
        for value in values:
            stream.push(value)

    await step.run("repeat", repeat)
    return values


@app.get("/slow/{name}")
@endpoint
async def slow(name: str, nap: float = 0) -> str:
    """Streams two chunks and waits at its gate: in the client's own request, or after a nap."""

    async def dawdle() -> str:
        stream.push("still ")
        stream.push("there")
        await gates[name].wait()
        return await say("?")

    if nap:
        await step.run("before", say, "soon ")
        await step.sleep("nap", nap)
    await step.run("dawdle", dawdle)
    await step.sleep("rest", "50ms")
    return await step.run("finish", say, "finished")


@app.get("/ask/{name}")
@endpoint
async def ask(name: str, llm: str) -> dict[str, str]:
    """Streams what a language model at `llm` says."""

    async def write() -> str:
        return await stream.pipe(tokens(llm, "Tell me about whales."))

    title = await step.run("title", say_and_wait, name, "Whales: ")
    return {"text": title + await step.run("write", write)}


async def tokens(llm: str, prompt: str) -> AsyncIterator[str]:
    """The answer of an API like OpenAI's, as it comes; raises when it breaks off."""
    request = {"model": "any", "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with (
        httpx.AsyncClient(timeout=10) as client,
        client.stream("POST", f"{llm}/v1/chat/completions", json=request) as response,
    ):
        response.raise_for_status()
        async for line in response.aiter_lines():
            data = line.removeprefix("data: ")
            if data == "[DONE]":
                return
            if data:
                for choice in json.loads(data)["choices"]:
                    yield choice["delta"].get("content") or ""
    raise ConnectionError("the model's answer broke off")
