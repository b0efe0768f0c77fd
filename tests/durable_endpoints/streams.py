"""Reading streams in tests: frames, and what a reader holds after them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import httpx

SSE = {"accept": "text/event-stream"}


class Frame(NamedTuple):
    id: str | None
    event: str
    data: Any


def frames_of(text: str | bytes) -> list[Frame]:
    """The frames of a stream. Heartbeats are passed over; anything that no parser of Inngest's
    would take is an error."""
    if isinstance(text, bytes):
        text = text.decode()
    assert "\r" not in text
    blocks = text.split("\n\n")
    assert blocks.pop() == "", "the last frame is not whole"
    frames = []
    for block in blocks:
        if block.startswith(":"):
            continue
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        assert set(fields) <= {"id", "event", "data"}, block
        assert len(fields) == block.count("\n") + 1, block
        frames.append(Frame(fields.get("id"), fields["event"], json.loads(fields["data"])))
    return frames


class Held:
    """What a reader holds: it applies commits and rollbacks, and remembers what came where."""

    def __init__(self) -> None:
        self.chunks: list[tuple[str | None, Any, bool]] = []
        self.seen: dict[str, Frame] = {}
        self.last_id: str | None = None
        self.response: Any = None

    def take(self, frames: Iterable[Frame]) -> Held:
        for frame in frames:
            step = frame.data.get("hashedStepId")
            if frame.event == "inngest.stream":
                self.chunks.append((step, frame.data["data"], False))
            elif frame.event == "inngest.commit":
                self.chunks = [(s, d, c or s == step) for s, d, c in self.chunks]
            elif frame.event == "inngest.rollback":
                self.chunks = [chunk for chunk in self.chunks if chunk[2] or chunk[0] != step]
            elif frame.event == "inngest.response":
                self.response = frame.data
            if frame.id is not None:
                if frame.event != "inngest.metadata":
                    assert frame.id not in self.seen, f"{frame} came twice"
                    self.seen[frame.id] = frame
                self.last_id = frame.id
        return self

    @property
    def data(self) -> list[Any]:
        return [data for _, data, _ in self.chunks]

    @property
    def committed(self) -> list[Any]:
        return [data for _, data, committed in self.chunks if committed]

    @property
    def text(self) -> str:
        return "".join(self.data)


def events_of(frames: Iterable[Frame]) -> list[str]:
    """The frames' kinds, without the common prefix."""
    return [frame.event.removeprefix("inngest.") for frame in frames]


async def read(client: httpx.AsyncClient, url: str, **headers: str) -> list[Frame]:
    """A whole stream, which must be one."""
    response = await client.get(url, headers={**SSE, **headers})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream"
    return frames_of(response.content)
