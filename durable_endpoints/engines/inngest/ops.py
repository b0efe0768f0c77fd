"""Steps as Inngest's opcodes, and what its server remembers of them as steps again.

The server keeps a result under the hash of its step alone, without name or kind, so a remembered
step has no name here until the handler asks for it (`coding.named`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson

from durable_endpoints.errors import ConfigurationError
from durable_endpoints.protocol.events import SIGNAL
from durable_endpoints.protocol.failures import decode
from durable_endpoints.protocol.ops import (
    Alternative,
    NewEvent,
    Sleep,
    StepKind,
    StepRecord,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, hash_name

WireOp = dict[str, Any]

_EVENT = re.compile(r"""\"(?:\\.|[^"\\])*\"|'(?:\\.|[^'\\])*'|\.(?P<name>\w*event)\.""")
"""Strings in CEL, and fields whose name ends in `event`."""
_TYPES = {StepKind.SEND: "step.sendEvent", StepKind.REMEMBER: "remember"}
_ORIGINAL = "durable"
"""Under which a failure as this SDK knows it rides in an error object …"""
_ATTEMPTS = "attempts"
"""… and how many tries there were."""


def done(step: StepRecord) -> WireOp:
    """A step that has its result."""
    op = _op("StepRun", step.id, orjson.Fragment(step.value or b"null"))
    if step.kind in _TYPES:
        op["opts"] = {"type": _TYPES[step.kind]}
    return {**op, "timing": _timing(step)}


def memo_entry(name: str, value: bytes) -> WireOp:
    """Something of this engine's own, kept as the result of a step."""
    return _op("StepRun", StepId(hash_name(name), name, 0), orjson.Fragment(value))


def failed(step: StepRecord, is_final: bool) -> WireOp:
    """A step that failed, for good or to be tried again."""
    error = error_of(step.error or b"{}", step.attempt)
    shown = {name: error[name] for name in ("__serialized", "name", "message")}
    op = _op("StepFailed" if is_final else "StepError", step.id, {**shown, "stack": ""})
    return {**op, "error": error, "timing": _timing(step)}


def planned(step: StepId) -> WireOp:
    """A step whose body shall run in an execution of its own."""
    return {**_op("StepPlanned", step), "name": step.name}


def sleep(step: StepId, milliseconds: int) -> WireOp:
    """A sleep, from now on. Whole seconds, rounded up, one at least."""
    return {**_op("Sleep", step), "name": duration(milliseconds)}


def opened(op: Sleep | WaitForEvent, due: int | None, now: int) -> WireOp:
    """A sleep or a wait that is open at `now`, until `due`."""
    if isinstance(op, Sleep):
        # A point in time would be rounded to the nearest second, and so might be too early.
        return sleep(op.step, (due or now) - now)
    timeout = duration((due or now) - now)
    event = op.alternatives[0].event
    if op.kind is StepKind.SIGNAL:
        signal = event.removeprefix(SIGNAL)
        opts = {"signal": signal, "timeout": timeout, "conflict": "fail"}
        return {**_op("WaitForSignal", op.step), "name": signal, "opts": opts}
    opts = {"event": event, "timeout": timeout}
    if condition := _any_of(op.alternatives):
        opts["if"] = condition
    return {**_op("WaitForEvent", op.step), "name": event, "opts": opts}


def replacing(op: WireOp) -> WireOp:
    """A wait for a signal that ends another one."""
    return {**op, "opts": {**op["opts"], "conflict": "replace"}}


def in_group(ops: list[WireOp]) -> list[WireOp]:
    """Operations that go side by side. Where some of them wait, each one that ends shall wake the
    run: else all branches would stand still until the last of them may go on."""
    if len(ops) < 2 or all(op["op"] == "StepPlanned" for op in ops):
        return ops
    return [{**op, "opts": {**op["opts"], "parallelMode": "race"}} for op in ops]


def duration(milliseconds: int) -> str:
    """As Inngest's server reads it: whole seconds, one at least."""
    return f"{max(1, math.ceil(milliseconds / 1_000))}s"


def error_of(text: bytes, attempts: int = 1) -> dict[str, Any]:
    """A failure as an error object; `text` is what this SDK keeps, which a hook may have coded."""
    failure = decode(text)
    form = failure.as_dict()
    shown = {name: form[name] for name in ("name", "message", "stack", "__serialized")}
    if "cause" in form:
        shown["cause"] = form["cause"]
    return {**shown, "data": {_ORIGINAL: orjson.Fragment(text), _ATTEMPTS: attempts}}


def failure_of(error: Any) -> bytes:
    """The failure that an error object is about, as this SDK keeps it."""
    data = error.get("data") if isinstance(error, Mapping) else None
    if isinstance(data, Mapping) and _ORIGINAL in data:
        return orjson.dumps(data[_ORIGINAL])
    return orjson.dumps(error)


def remembered(actions: Mapping[str, Any]) -> list[StepRecord]:
    """What the server remembers of a run, in the order in which it tells."""
    records = (_record(key, value, n) for n, (key, value) in enumerate(actions.items(), 1))
    return [record for record in records if record is not None]


def _record(key: str, value: Any, order: int) -> StepRecord | None:
    step = HANDLER_STEP if key == HANDLER_STEP.hash else StepId(key, "", 0)
    kind = StepKind.HANDLER if step is HANDLER_STEP else StepKind.RUN
    shape = value.keys() - {"type"} if isinstance(value, dict) else set()
    if shape == {"error"}:
        error = failure_of(value["error"])
        attempts = _attempts(value["error"])
        return StepRecord(step, kind, StepState.FAILED, attempts, order, error=error)
    if shape == {"input"}:
        return None  # somebody wants it to run again; with other arguments it cannot
    result = value["data"] if shape == {"data"} else value
    return StepRecord(step, kind, StepState.DONE, 1, order, orjson.dumps(result))


def _attempts(error: Any) -> int:
    data = error.get("data") if isinstance(error, Mapping) else None
    attempts = data.get(_ATTEMPTS) if isinstance(data, Mapping) else None
    return attempts if isinstance(attempts, int) else 1


def event_of(event: NewEvent) -> dict[str, Any]:
    """An event as it is sent: once, under its id."""
    ts = {} if event.ts is None else {"ts": event.ts}
    return {"id": event.id, "name": event.name, "data": orjson.Fragment(event.data), **ts}


def check_wait(op: WaitForEvent) -> None:
    """Raise `ConfigurationError` for a wait that an Inngest server cannot keep."""
    names = list(dict.fromkeys(wanted.event for wanted in op.alternatives))
    if len(names) > 1:
        raise ConfigurationError(
            f"step {str(op.step)!r} waits for any of the events {', '.join(names)}, and an Inngest "
            "server waits for one name at a time: send one event with the kinds in its data, and "
            "give alternatives of that name with match= or if_exp="
        )


def _any_of(alternatives: tuple[Alternative, ...]) -> str:
    """The condition in CEL that an event of one of the alternatives meets; empty for any event."""
    conditions = [_condition(wanted) for wanted in alternatives]
    if not all(conditions):
        return ""
    if len(conditions) > 1:
        conditions = [f"({condition})" for condition in conditions]
    return _without_trigger(" || ".join(conditions))


def _without_trigger(condition: str) -> str:
    """The same condition without the letters `event.`, wherever they stand: an Inngest server takes
    them for the event that the run began with, and fails if a checkpoint has such a wait."""

    def spelled(found: re.Match[str]) -> str:
        if found["name"] is not None:
            return f'["{found["name"]}"].'
        return found[0].replace("event.", "event\\u002e")

    return _EVENT.sub(spelled, condition) if "event." in condition else condition


def _condition(wanted: Alternative) -> str:
    parts = [_equals(path, text) for path, text in wanted.pairs]
    if wanted.expression:
        parts.append(f"({wanted.expression})" if parts else wanted.expression)
    return " && ".join(parts)


def _equals(path: str, text: str) -> str:
    """An equality with the value written in. Values are compared by their JSON text, so what looks
    like a number may be one, or a string."""
    place = "async" + "".join(_key(name) for name in path.split("."))
    as_text = f"{place} == {orjson.dumps(text).decode()}"
    try:
        value = orjson.loads(text)
    except ValueError:
        return as_text
    if isinstance(value, bool | int | float) and orjson.dumps(value).decode() == text:
        return f"({as_text} || {place} == {text})"
    return as_text


def _key(name: str) -> str:
    if name.isdigit():
        return f"[{name}]"
    return f".{name}" if name.isidentifier() else f"[{orjson.dumps(name).decode()}]"


def _op(kind: str, step: StepId, data: Any = None) -> WireOp:
    userland: dict[str, Any] = {"id": step.name}
    if step.repeat:
        userland["index"] = step.repeat
    return {
        "op": kind,
        "id": step.hash,
        "name": step.name,
        "displayName": step.name,
        "opts": {},
        "data": data,
        "userland": userland,
    }


def _timing(step: StepRecord) -> dict[str, int]:
    """Start and length, in nanoseconds."""
    length = max(1, (step.ended_at or step.began_at) - step.began_at)
    return {"a": step.began_at * 1_000_000, "b": length * 1_000_000}
