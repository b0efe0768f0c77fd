"""What an application is told of its steps when it is entered again (`/v0/runs/{id}/actions`): one
JSON object by step id, in the order in which the steps have ended.

The shapes are strict (Inngest SDK protocol, "memoized state"): `{"data": …}` for a result,
`{"error": …}` for a failure, and for sleeps and waits the bare value.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState


def actions(memo: Iterable[StepRecord]) -> bytes:
    """The JSON object of the steps that have ended."""
    ended = sorted((step for step in memo if step.is_final), key=lambda step: step.order)
    members = (
        orjson.dumps(step.id.hash) + b":" + _value(step)
        for step in ended
        if step.kind is not StepKind.HANDLER
    )
    return b"{" + b",".join(members) + b"}"


def _value(step: StepRecord) -> bytes:
    if step.state is StepState.FAILED:
        return b'{"error":' + (step.error or b"{}") + b"}"
    value = step.value or b"null"
    if step.kind is StepKind.SLEEP:
        return b"null"
    if step.kind is StepKind.SIGNAL and value != b"null":
        signal = orjson.loads(value)
        return orjson.dumps({"data": {"signal": signal["name"], "data": signal["data"]}})
    if step.kind in (StepKind.WAIT, StepKind.SIGNAL):
        return value
    return b'{"data":' + value + b"}"
