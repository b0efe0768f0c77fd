"""Who may listen to what: tokens of streams, and topics that messages are published to (Inngest
realtime API).

A run's stream is in its log. A message of a topic is for whoever listens at that moment, as with
Inngest's server, and is kept nowhere.
"""

from __future__ import annotations

import asyncio
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import deque
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple

import orjson

from durable_endpoints.protocol import failures
from durable_endpoints.protocol.frames import response_frame
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints_server.auth import Keys
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import Ended

RUN_STREAM: Final = "$stream"
"""The topic of a run's stream, in the channel that is the run's id."""
MAX_TOPICS: Final = 100
"""Topics that one token opens."""
_MOST_WAITING: Final = 1_000
"""Messages that wait for a listener; one that is further behind is let go."""
_MOST_BYTES: Final = 8 * 1024 * 1024
"""The same, in bytes."""
_MAX_TOKEN: Final = 64 * 1024


class Topic(NamedTuple):
    """What messages are about."""

    channel: str
    name: str


def run_token(keys: Keys, run_id: str) -> str:
    """The token that opens a run's stream, as long as its record is kept."""
    return f"{run_id}.{keys.sign_run('realtime', run_id)}"


def topics_token(keys: Keys, topics: Iterable[Topic], until: int) -> str:
    """The token that opens topics for whoever connects until then (epoch ms)."""
    text = orjson.dumps([until, *map(list, topics)])
    signed = f"~{urlsafe_b64encode(text).decode().rstrip('=')}"
    return f"{signed}.{keys.sign_run('realtime', signed)}"


def opened_by(keys: Keys, token: str, now: int) -> str | list[Topic] | None:
    """What a token opens now: the run with this id, or topics, or nothing."""
    signed, _, signature = token.rpartition(".")
    if len(token) > _MAX_TOKEN or not keys.opens_run("realtime", signed, signature):
        return None
    if not signed.startswith("~"):
        return signed
    padding = "=" * (-(len(signed) - 1) % 4)
    until, *topics = orjson.loads(urlsafe_b64decode(signed[1:] + padding))
    return [Topic(*topic) for topic in topics] if now < until else None


def final_frame(ended: Ended) -> bytes:
    """The last frame of the stream of a run whose application has not streamed its response: it
    answered elsewhere, or died (Inngest streaming, `inngest.response`)."""
    if ended.run.status is Status.COMPLETED and ended.response is not None:
        return response_frame(StoredResponse.unpack(ended.response), True, None)
    status, message = _failure(ended)
    body = orjson.dumps(message)
    answer = StoredResponse(status, [(b"content-type", b"application/json")], body)
    return response_frame(answer, False, None)


def _failure(ended: Ended) -> tuple[int, str]:
    """A status as `/wait` would answer it, and what happened."""
    run = ended.run
    if run.status is Status.CANCELLED:
        return 409, "The run was cancelled."
    if run.status is Status.PARKED:
        return 503, f"The run is parked: {run.reason}."
    if run.status is Status.COMPLETED:
        return 410, "The run has completed, and its response is not kept."
    if run.reason == "timed_out":
        return 504, "The run took too long."
    return 500, failures.decode(ended.error).message if ended.error else run.reason


class Topics:
    """Messages on their way to those who listen in this process."""

    def __init__(self) -> None:
        self._listeners: dict[Topic, set[Listener]] = {}

    def publish(self, topic: Topic, message: bytes) -> int:
        """Give a message to all who listen. Returns how many they are."""
        listeners = list(self._listeners.get(topic, ()))
        for listener in listeners:
            listener.add(message)
        return len(listeners)

    def listen(self, topics: Collection[Topic]) -> Listener:
        """Begin to listen. To be given back to `leave`."""
        listener = Listener()
        for topic in topics:
            self._listeners.setdefault(topic, set()).add(listener)
        return listener

    def leave(self, topics: Collection[Topic], listener: Listener) -> None:
        for topic in topics:
            others = self._listeners.get(topic, set())
            others.discard(listener)
            if not others:
                self._listeners.pop(topic, None)

    def release_all(self) -> None:
        """Let everybody go: this process is about to end."""
        for listeners in self._listeners.values():
            for listener in listeners:
                listener.release()


class Listener:
    """One who listens."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._size = 0
        self._news = asyncio.Event()
        self.is_released = False
        """Whether it gets nothing any more: it was too slow, or the process is about to end."""

    def add(self, message: bytes) -> None:
        self._messages.append(message)
        self._size += len(message)
        if len(self._messages) > _MOST_WAITING or self._size > _MOST_BYTES:
            self._messages.clear()
            self.release()
        self._news.set()

    def release(self) -> None:
        self.is_released = True
        self._news.set()

    async def next(self, patience: float) -> list[bytes]:
        """The next messages, or none after `patience` seconds."""
        try:
            await asyncio.wait_for(self._news.wait(), patience)
        except TimeoutError:
            return []
        self._news.clear()
        messages = list(self._messages)
        self._messages.clear()
        self._size = 0
        return messages
