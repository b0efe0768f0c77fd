"""The frames of a run's stream: server-sent events (WHATWG HTML §9.2).

They are those of Inngest's durable endpoints, byte for byte, with ids added; `durable.progress` and
`durable.log` are our own, and no other client minds them.
"""

from __future__ import annotations

from base64 import b64encode
from itertools import chain
from typing import Any

import orjson

from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.streams import RecordKind, StreamRecord

CONTENT_TYPE = "text/event-stream"
HEARTBEAT = b": keep-alive\n\n"
_EVENTS = {
    RecordKind.DATA: b"inngest.stream",
    RecordKind.PROGRESS: b"durable.progress",
    RecordKind.LOG: b"durable.log",
}
_NO_BODY = (204, 205, 304)
"""Statuses with which a browser makes no `Response` that has a body, not even an empty one."""


def frame(event: str, data: bytes, id: str = "") -> bytes:
    """One frame. `data` is JSON on one line."""
    head = f"id: {id}\nevent: {event}\ndata: " if id else f"event: {event}\ndata: "
    return head.encode() + data + b"\n\n"


def record_frames(record: StreamRecord, after: int = 0) -> bytes:
    """The frames of what a record says beyond the position `after`."""
    position, kind, step = record.position, record.kind, record.step
    if kind.is_end:
        event = "inngest.commit" if kind is RecordKind.COMMIT else "inngest.rollback"
        return frame(event, orjson.dumps({"hashedStepId": step or None}), str(position))
    chunks = record.chunks()
    if after >= position:
        chunks = chunks[after - position + 1 :]
        position = after + 1
    if kind is RecordKind.VERBATIM:
        return b"".join(_verbatim(chunk, number) for number, chunk in enumerate(chunks, position))
    # One format for all of them, because there may be hundreds of thousands.
    form = b"id: %d\n" + _chunk_head(kind) + b"%b" + _chunk_tail(step)
    return form * len(chunks) % tuple(chain.from_iterable(enumerate(chunks, position)))


def committed_frames(record: StreamRecord, commit: int, index: int, after: int) -> bytes:
    """The frames of a record's chunks in the view that has committed chunks only, where they stand
    at their commit: number `index` of its chunks is the record's first one, and those up to number
    `after` are passed over."""
    head, tail = _chunk_head(record.kind), _chunk_tail(record.step)
    return b"".join(
        [
            b"id: %d.%d\n%b%b%b" % (commit, n, head, chunk, tail)
            for n, chunk in enumerate(record.chunks(), index)
            if n > after
        ]
    )


def metadata_frame(run_id: str, position: str) -> bytes:
    """The first frame of every stream. Its id is where the stream begins, if that is known."""
    return frame("inngest.metadata", orjson.dumps({"runId": run_id}), position)


def redirect_frame(run_id: str, url: str) -> bytes:
    """Where the stream goes on after its end, for a client that does not know that yet."""
    return frame("inngest.redirect_info", orjson.dumps({"runId": run_id, "url": url}))


def response_frame(
    response: StoredResponse, succeeded: bool, position: int | None, for_us: bool = False
) -> bytes:
    """The end: the run's response. `position` is None for an end that may not be the last word;
    `for_us` says that the client is one of ours, which takes every status as it is."""
    status, headers = response.status, list(response.headers)
    if status in _NO_BODY and not for_us:
        headers.append((b"durable-status", str(status).encode()))
        status = 200
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    by_name: dict[str, str] = {}
    for name, value in pairs:
        by_name[name] = f"{by_name[name]}, {value}" if name in by_name else value
    answer: dict[str, Any] = {
        "body": response.body.decode("utf-8", "replace"),
        "statusCode": status,
        "headers": by_name,
    }
    if answer["body"].encode() != response.body:
        answer["bodyBase64"] = b64encode(response.body).decode()
    if len(by_name) < len(pairs):
        answer["headerList"] = pairs
    status_word = "succeeded" if succeeded else "failed"
    data = orjson.dumps({"status": status_word, "response": answer})
    return frame("inngest.response", data, "" if position is None else str(position))


def verbatim_chunk(event: str, data: bytes) -> bytes:
    """A frame of another SDK as a chunk. `event` has no comma, `data` is JSON on one line."""
    return b"[%b,%b]" % (orjson.dumps(event), data)


def _verbatim(chunk: bytes, position: int) -> bytes:
    event, _, data = chunk[1:-1].partition(b",")
    return frame(orjson.loads(event), data, str(position))


def _chunk_head(kind: RecordKind) -> bytes:
    return b'event: %b\ndata: {"data":' % _EVENTS[kind]


def _chunk_tail(step: str) -> bytes:
    return f',"hashedStepId":"{step}"}}\n\n'.encode() if step else b"}\n\n"
