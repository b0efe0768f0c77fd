"""Steps without a body: sleeps, waits, and events that are sent."""

from __future__ import annotations

from typing import Any

from durable_endpoints.bodies import begin, recall
from durable_endpoints.events import Event, event_from_value
from durable_endpoints.execution import Execution
from durable_endpoints.protocol.matching import suits
from durable_endpoints.protocol.ops import SendEvent, Sleep, StepKind, WaitForEvent
from durable_endpoints.protocol.values import decode


async def sleep(execution: Execution, op: Sleep) -> None:
    """Return when the sleep is over."""
    await _open(execution, op, StepKind.SLEEP)


async def wait(execution: Execution, op: WaitForEvent) -> Event | None:
    """Return the event, or None after the timeout."""
    return event_from_value(await _open(execution, op, op.kind))


async def wait_any(execution: Execution, op: WaitForEvent) -> tuple[str, Event] | None:
    """Return the name of the alternative that came first and its event, or None."""
    value = await _open(execution, op, op.kind)
    if value is None:
        return None
    if "event" not in value:  # an engine that knows no alternatives gives the event alone
        value = {"name": _label(op, value), "event": value}
    event = event_from_value(value["event"])
    assert event is not None
    return value["name"], event


def _label(op: WaitForEvent, event: dict[str, Any]) -> str:
    """The name of the first alternative that an event suits."""
    first = next((wanted for wanted in op.alternatives if suits(wanted, event)), None)
    return (first or op.alternatives[0]).label


async def _open(execution: Execution, op: Sleep | WaitForEvent, kind: StepKind) -> Any:
    """Return what a sleep or a wait was resolved with; open it if that was not done yet."""
    record = recall(execution, op.step, kind)
    if record is not None and record.is_final:
        return await execution.take(record)
    await begin(execution, op.step)
    try:
        if record is None:
            record = execution.record(op)
        else:
            execution.session.watch(record)
        record = await execution.park(record)
        return decode(record.value or b"null")
    finally:
        execution.in_use.discard(op.step.name)


async def send(execution: Execution, op: SendEvent) -> str:
    """Keep the event together with its step, and return its id."""
    record = recall(execution, op.step, StepKind.SEND)
    if record is not None and record.is_final:
        return str(await execution.take(record))
    await begin(execution, op.step)
    try:
        await execution.start_body(op.step)
        try:
            execution.record(op)
        finally:
            execution.end_body()
        if not execution.is_open:
            await execution.refuse(has_run=True)
        return op.event.id
    finally:
        execution.in_use.discard(op.step.name)
