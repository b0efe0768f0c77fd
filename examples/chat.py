"""A chat whose answer is written live, by a second model when the first one breaks off.

    uvicorn examples.chat:app
    open http://localhost:8000

Two made-up models answer, and the first one always breaks off: watch what it wrote disappear, and
the second one write. Reload the page, or kill the server and start it again, while it writes.

Any OpenAI-compatible server does in their place: set CHAT_URL (http://localhost:11434/v1, say) and
CHAT_MODEL, and CHAT_KEY if it wants one; and CHAT_FALLBACK_URL … for the second.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

from fastapi import FastAPI, HTTPException
from openai import AsyncOpenAI
from pydantic import BaseModel
from starlette.responses import FileResponse

from durable_endpoints import (
    DurableEndpointsMiddleware,
    StepError,
    endpoint,
    endpoint_proxy,
    step,
    stream,
)

app = FastAPI()
app.add_middleware(DurableEndpointsMiddleware)
app.mount("/wait", endpoint_proxy())


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str


class Answer(BaseModel):
    text: str
    by: str


Model = Callable[[list[Message]], Any]
"""Takes a conversation, and gives what `stream.pipe` can read."""


def openai_model(url: str, name: str, key: str) -> Model:
    # The step is what is tried again, so the client does not.
    client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)

    async def ask(conversation: list[Message]) -> Any:
        messages: Any = [message.model_dump() for message in conversation]
        return await client.chat.completions.create(model=name, messages=messages, stream=True)

    return ask


async def made_up_model(conversation: list[Message]) -> AsyncIterator[str]:
    question = conversation[-1].content
    for word in re.findall(r"\S+\s*", f"You said “{question}”, and I have nothing to add."):
        yield word
        await asyncio.sleep(0.1)


async def made_up_model_that_breaks_off(conversation: list[Message]) -> AsyncIterator[str]:
    for word in ["What ", "a ", "good ", "question! ", "Let "]:
        yield word
        await asyncio.sleep(0.1)
    raise ConnectionError("the model broke off (this example made that up)")


def model_of(prefix: str, made_up: Model) -> Model:
    if f"{prefix}_URL" not in os.environ:
        return made_up
    name, key = os.environ[f"{prefix}_MODEL"], os.environ.get(f"{prefix}_KEY", "none")
    return openai_model(os.environ[f"{prefix}_URL"], name, key)


MODELS = {
    "first": model_of("CHAT", made_up_model_that_breaks_off),
    "fallback": model_of("CHAT_FALLBACK", made_up_model),
}


@app.post("/chat")
@endpoint(cancellable=True)
async def chat(conversation: list[Message]) -> Answer:
    for name, model in MODELS.items():
        try:
            # No second try: there is another model. What the first one wrote is withdrawn.
            text = await step.options(retries=0).run(f"ask {name}", answer, model, conversation)
            return Answer(text=text, by=name)
        except StepError as error:
            print(error, flush=True)
    raise HTTPException(502, "No model answered.")


async def answer(model: Model, conversation: list[Message]) -> str:
    return await stream.pipe(model(conversation))


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("chat.html"))
