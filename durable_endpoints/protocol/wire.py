"""The wire between the SDK and a companion server: frames over one WebSocket per process.

A message is a JSON array of frames, a frame a JSON array whose first item is its name. What one
turn of an event loop has to say travels in one message, so that it can share one commit at the
other end. JSON texts (results, errors, event data) travel as strings, and so arrive byte for byte;
sealed bytes travel as base64.

This module knows how values become parts of frames and back. Everything that arrives is checked
here: what is not as it should be raises `WireError`.

A session is one execution of one run. Those of its frames that have a number `n` count from 1, are
taken in order, and are kept by the process until `ack`: after a break it says them again.

    process -> server
    hello {process, app, sdk, draining}          first on each connection; answered by welcome
    resume run generation acked {open, base,     a session that goes on after a break; what of it is
           follows, leaving, only?}              not acknowledged follows
    resumed                                      that was all: what else the server has is released
    executors {root_paths, default, capacity}    what may be sent here from now on
    register run n new-run                       begin a run that this process executes; n = 1
    begin run generation                         begin what `execute` has handed over
    record run n op                              a step
    signal run n op replace                      wait for a signal; answered by signal
    push run step attempt kind ordinal [json]    chunks; `ordinal` counts those of their kind before
    withdraw run n step                          a try was given up: its chunks are withdrawn
    follow run, watch run step                   keep a stream log; resolve a step of the memo here
    leave run n how …                            suspend seen | release why | park why | end how |
                                                 abandon; the session is over once that is ack'ed
    ask q what {…}, forget q                     a question; answered by answer or failed
    read r run start limited, next r patience    a reader of a stream; each next is answered by
        stops stays, poke r, close r             frames, silence or failed
    beat time, drain, bye                        it lives, answered by heard; begin nothing here; it
                                                 ends

    server -> process
    welcome {now, lease, heartbeat, policy, …}   first
    ack run n                                    everything up to n is on disk; 0: the claim
    written run position [[step, attempt, kind,  so much of the stream is written; comes before the
            count]]                              ack of what was said after it
    resolved run step n                          an open step is now this, after frame n
    signal run n step|null taken-by|null         the run waits now, or another one does
    stopped run reason, refused run n reason     the session is over: cancelled, timed_out, lost,
            message                              storage, limit
    execute {run, generation, memo, request, …}  a run to execute; its bodies wait for ack 0
    hold flag                                    begin no new runs for a while
    heard time                                   the beat that said so was heard
    answer q value, failed q|r code message      what came of a question
    frames r text position id stops,             what a reader gets, and why it gets nothing
        silence r why position id stops
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import orjson

from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    SendEvent,
    Sleep,
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.streams import StreamStart

PATH: Final = "/v1/durable/connect"
"""Where a server takes connections."""
HEARTBEAT_PATH: Final = "/v1/durable/heartbeat"
"""Where a thread of a process says that the process lives: POST `{"process": …}`."""
CONFIRMS: Final = "lease"
"""The capability of a server that answers beats, and the question whether a run is still held."""
SUBPROTOCOL: Final = "durable-endpoints.v1"
MAX_MESSAGE: Final = 128 * 1024 * 1024
"""Bytes of one message: more than the largest memo and response together."""

Frame = list[Any]

_T = TypeVar("_T")


class WireError(ValueError):
    """A message, or a part of it, is not what the wire allows."""


def encode(frames: Sequence[Frame]) -> bytes:
    """One message."""
    return orjson.dumps(frames)


def encode_frame(frame: Frame) -> bytes:
    """A part of a message, to be put together with `join`."""
    return orjson.dumps(frame)


def join(frames: Sequence[bytes]) -> bytes:
    """One message, of frames that are encoded."""
    return b"[" + b",".join(frames) + b"]"


def decode(message: bytes | str) -> list[Frame]:
    """The frames of a message, each with a name. Raises `WireError`."""
    try:
        frames = orjson.loads(message)
    except ValueError:
        raise WireError("the message is not JSON") from None
    if not isinstance(frames, list):
        raise WireError("the message is not an array of frames")
    for frame in frames:
        if not isinstance(frame, list) or not frame or not isinstance(frame[0], str):
            raise WireError("a frame is not an array that begins with its name")
    return frames


# Parts of frames


def text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise WireError("a string was expected")
    return value


def whole(value: Any) -> int:
    """A whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError("a whole number was expected")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise WireError("true or false was expected")
    return value


def json_text(value: Any) -> bytes:
    """JSON, as it was written: a result, an error, the data of an event."""
    encoded = text(value).encode()
    try:
        orjson.loads(encoded)
    except ValueError:
        raise WireError("JSON was expected") from None
    return encoded


def pack_bytes(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def unpack_bytes(value: Any) -> bytes:
    try:
        return a2b_base64(text(value), strict_mode=True)
    except ValueError:
        raise WireError("base64 was expected") from None


def _optional(read: Callable[[Any], _T], value: Any) -> _T | None:
    return None if value is None else read(value)


def _as_text(data: bytes | None) -> str | None:
    return None if data is None else data.decode()


def _packed(data: bytes | None) -> str | None:
    return None if data is None else pack_bytes(data)


def array(value: Any) -> list[Any]:
    """An array."""
    if not isinstance(value, list):
        raise WireError("an array was expected")
    return value


def array_of(value: Any, count: int) -> list[Any]:
    """An array, or a frame, of so many parts."""
    if not isinstance(value, list) or len(value) != count:
        raise WireError(f"an array of {count} was expected")
    return value


def array_with(value: Any, *types: type) -> list[Any]:
    """An array, or a frame, of parts that have exactly these types: `bool` is no `int` here.

    For what arrives often: one look at all of them takes a fraction of one look at each."""
    if type(value) is not list or tuple(map(type, value)) != types:
        names = ", ".join(one.__name__ for one in types)
        raise WireError(f"an array with parts of the types {names} was expected")
    return value


_KINDS: Final = {kind.value: kind for kind in StepKind}


def _kind(value: Any) -> StepKind:
    kind = _KINDS.get(text(value))
    if kind is None:
        raise WireError(f"there is no kind of step {value!r}")
    return kind


# Steps


def pack_id(step: StepId) -> Frame:
    return [step.hash, step.name, step.repeat]


def unpack_id(value: Any) -> StepId:
    return StepId(*array_with(value, str, str, int))


def pack_step(step: StepRecord) -> Frame:
    return [
        *step.id,
        step.kind,
        int(step.state),
        step.attempt,
        step.order,
        _as_text(step.value),
        _as_text(step.error),
        step.due,
        step.began_at,
        step.ended_at,
    ]


def unpack_step(value: Any) -> StepRecord:
    parts = array_of(value, 12)
    try:
        state = StepState(whole(parts[4]))
    except ValueError:
        raise WireError("there is no such state of a step") from None
    return StepRecord(
        unpack_id(parts[:3]),
        _kind(parts[3]),
        state,
        whole(parts[5]),
        whole(parts[6]),
        _optional(json_text, parts[7]),
        _optional(json_text, parts[8]),
        _optional(whole, parts[9]),
        whole(parts[10]),
        _optional(whole, parts[11]),
    )


# What an execution records


def pack_op(op: StepOp) -> Frame:
    """What an execution says of a step, as `[name, step, …]`."""
    step = pack_id(op.step)
    match op:
        case StepDone():
            return ["done", step, op.kind, op.value.decode(), op.attempt, op.elapsed]
        case StepFailed():
            return ["failed", step, op.kind, op.error.decode(), op.attempt, op.elapsed]
        case StepRetry():
            return ["retry", step, op.kind, op.error.decode(), op.attempt, op.elapsed, op.delay]
        case Sleep():
            return ["sleep", step, op.duration, op.until]
        case WaitForEvent():
            alternatives = [_pack_alternative(one) for one in op.alternatives]
            return ["wait", step, op.kind, alternatives, op.timeout]
        case SendEvent():
            return ["send", step, pack_event(op.event), op.value.decode(), op.elapsed]
        case Invoke():
            return ["invoke", step, pack_new_run(op.child), op.timeout]


def unpack_op(value: Any) -> StepOp:
    if not isinstance(value, list) or not value:
        raise WireError("an operation was expected")
    read = _OPS.get(text(value[0]))
    if read is None:
        raise WireError(f"there is no operation {value[0]!r}")
    return read(value)


def _done(value: Any) -> StepOp:
    _, step, kind, result, attempt, elapsed = array_with(value, str, list, str, str, int, int)
    return StepDone(unpack_id(step), _kind(kind), json_text(result), attempt, elapsed)


def _failed(value: Any) -> StepOp:
    _, step, kind, error, attempt, elapsed = array_of(value, 6)
    return StepFailed(
        unpack_id(step), _kind(kind), json_text(error), whole(attempt), whole(elapsed)
    )


def _retry(value: Any) -> StepOp:
    _, step, kind, error, attempt, elapsed, delay = array_of(value, 7)
    return StepRetry(
        unpack_id(step),
        _kind(kind),
        json_text(error),
        whole(attempt),
        whole(elapsed),
        _optional(whole, delay),
    )


def _sleep(value: Any) -> StepOp:
    _, step, duration, until = array_of(value, 4)
    return Sleep(unpack_id(step), _optional(whole, duration), _optional(whole, until))


def _wait(value: Any) -> StepOp:
    _, step, kind, alternatives, timeout = array_of(value, 5)
    if not isinstance(alternatives, list):
        raise WireError("the alternatives of a wait are an array")
    return WaitForEvent(
        unpack_id(step),
        _kind(kind),
        tuple(_unpack_alternative(one) for one in alternatives),
        whole(timeout),
    )


def _send(value: Any) -> StepOp:
    _, step, event, result, elapsed = array_of(value, 5)
    return SendEvent(unpack_id(step), unpack_event(event), json_text(result), whole(elapsed))


def _invoke(value: Any) -> StepOp:
    _, step, child, timeout = array_of(value, 4)
    return Invoke(unpack_id(step), unpack_new_run(child), _optional(whole, timeout))


_OPS: Final[dict[str, Callable[[Any], StepOp]]] = {
    "done": _done,
    "failed": _failed,
    "retry": _retry,
    "sleep": _sleep,
    "wait": _wait,
    "send": _send,
    "invoke": _invoke,
}


def _pack_alternative(one: Alternative) -> Frame:
    return [one.label, one.event, [list(pair) for pair in one.pairs], one.expression]


def _unpack_alternative(value: Any) -> Alternative:
    label, event, pairs, expression = array_of(value, 4)
    if not isinstance(pairs, list):
        raise WireError("the equalities of a wait are an array")
    found = [array_of(pair, 2) for pair in pairs]
    return Alternative(
        text(label),
        text(event),
        tuple((text(path), text(expected)) for path, expected in found),
        text(expression),
    )


def pack_event(event: NewEvent) -> Frame:
    return [event.id, event.name, event.data.decode(), event.ts]


def unpack_event(value: Any) -> NewEvent:
    key, name, data, ts = array_of(value, 4)
    return NewEvent(text(key), text(name), json_text(data), _optional(whole, ts))


# How a run begins and ends


def pack_new_run(new: NewRun) -> Frame:
    return [
        new.id,
        new.function_id,
        new.version,
        new.method,
        new.path,
        pack_bytes(new.request),
        new.root_path,
        new.retries,
        new.max_runtime,
        new.omit_request_body,
        new.elapsed,
        new.key,
        new.key_scope,
        new.fingerprint,
        _as_text(new.labels),
    ]


def unpack_new_run(value: Any) -> NewRun:
    """The run, without its `app`: whose it is, a connection says once."""
    parts = array_of(value, 15)
    id, function_id, version, method, path, request, root_path, retries = array_with(
        parts[:8], str, str, str, str, str, str, str, int
    )
    return NewRun(
        id=id,
        function_id=function_id,
        version=version,
        method=method,
        path=path,
        request=unpack_bytes(request),
        root_path=root_path,
        retries=retries,
        max_runtime=_optional(whole, parts[8]),
        omit_request_body=flag(parts[9]),
        elapsed=whole(parts[10]),
        key=_optional(text, parts[11]),
        key_scope=text(parts[12]),
        fingerprint=text(parts[13]),
        labels=_optional(json_text, parts[14]),
    )


def pack_end(command: Complete | Fail) -> Frame:
    if isinstance(command, Complete):
        return [
            "complete",
            command.status_code,
            _packed(command.response),
            command.omitted,
            command.until_delivered,
            command.omit_request_body,
        ]
    return [
        "fail",
        command.reason,
        _as_text(command.error),
        command.status_code,
        _packed(command.response),
        command.until_delivered,
        command.omit_request_body,
    ]


def unpack_end(value: Any) -> Complete | Fail:
    if isinstance(value, list) and value[:1] == ["complete"]:
        _, status, response, omitted, until_delivered, omit_request = array_of(value, 6)
        return Complete(
            whole(status),
            _optional(unpack_bytes, response),
            text(omitted),
            flag(until_delivered),
            flag(omit_request),
        )
    _, reason, error, failed_with, response, until_delivered, omit_request = array_of(value, 7)
    return Fail(
        text(reason),
        _optional(json_text, error),
        _optional(whole, failed_with),
        _optional(unpack_bytes, response),
        flag(until_delivered),
        flag(omit_request),
    )


def pack_start(start: StreamStart) -> Frame:
    return list(start)


def unpack_start(value: Any) -> StreamStart:
    after, passed, committed, skips_sync = array_of(value, 4)
    return StreamStart(whole(after), whole(passed), flag(committed), flag(skips_sync))
