"""`examples/chat.py`, with other people's models in place of the made-up ones."""

from __future__ import annotations

from pathlib import Path

import httpx

from durable_endpoints.client import Rollback, Transcript, fetch_with_stream_sync
from tests.chaos.process import Server
from tests.llm.models import Llmock
from tests.llm.texts import WHALES


def test_the_fallback_answers_when_the_first_model_breaks_off(
    provider: Llmock, other_provider: Llmock, model: str, tmp_path: Path
) -> None:
    provider.says(model, "Whales are fish, I think, or is it that they are mammals?")
    provider.breaks(model, "truncate", 6)
    other_provider.says(model, WHALES)
    conversation = [{"role": "user", "content": "Tell me about whales."}]
    transcript, withdrawn = Transcript(), []

    def roll_back(event: Rollback) -> None:
        withdrawn.append(transcript.text)
        transcript.feed(event)

    with Server(
        tmp_path,
        app="examples.chat:app",
        alive="/docs",
        CHAT_URL=f"{provider.url}/v1",
        CHAT_MODEL=model,
        CHAT_FALLBACK_URL=f"{other_provider.url}/v1",
        CHAT_FALLBACK_MODEL=model,
    ) as server:
        response = fetch_with_stream_sync(
            f"{server.url}/chat",
            method="POST",
            json=conversation,
            on_data=transcript.feed,
            on_commit=transcript.feed,
            on_rollback=roll_back,
        )
        again = httpx.post(f"{server.url}/chat", json=conversation, timeout=10)
    assert response.json() == {"text": WHALES, "by": "fallback"}
    assert transcript.text == transcript.committed_text == WHALES
    assert withdrawn == ["Whales are fish, I think, "]
    assert again.json()["by"] == "first", "which breaks off once"
