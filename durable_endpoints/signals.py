"""Signals: what one run waits for under a name of its own, and what is sent to that run alone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, get_args

from durable_endpoints.bodies import begin, recall
from durable_endpoints.engines.base import Engine
from durable_endpoints.engines.select import leave_signal
from durable_endpoints.errors import StepValueError, UsageError
from durable_endpoints.execution import Execution
from durable_endpoints.memo import rebuild
from durable_endpoints.protocol.events import SIGNAL, check_signal
from durable_endpoints.protocol.failures import Failure
from durable_endpoints.protocol.ops import (
    Alternative,
    SignalTaken,
    StepFailed,
    StepKind,
    WaitForEvent,
)
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.protocol.values import NotJsonError, decode, encode
from durable_endpoints.sending import engine_here
from durable_endpoints.settings import Settings

OnConflict = Literal["fail", "replace"]
"""What a wait for a signal does if another run waits for it already."""


@dataclass(frozen=True)
class Signal:
    """A signal as the waiting handler gets it."""

    name: str
    data: Any
    ts: int
    """When it was received, on the engine's clock: UTC epoch milliseconds. 0 where that does not
    tell, which is Inngest's."""


async def send_signal(signal: str, data: Any = None) -> bool:
    """Send a signal to the run that waits for it now, and return whether there was one.

    True: the run has it, and that is on disk. False: no run waits for it, and nothing is kept. So
    an answer to a person who clicks can be definite, which that of `send_event` cannot be. `data`
    is a JSON value.

    It is for code in the process that runs the application: a handler, a background task. Where
    `DURABLE_ENDPOINTS_SERVER_URL` names a server, any process may send one. Inside a handler,
    `step.send_signal` does it once, and not again in a replay.

    Raises `StepValueError` for what cannot be a signal, `UsageError` where no application runs, and
    `StorageError` if it cannot be said whether a run has it.
    """
    encoded = encoded_signal(signal, data)
    engine = await engine_here()
    if engine is None:
        taken = await asyncio.to_thread(leave_signal, Settings.load({}), signal, encoded)
        if taken is not None:
            return taken
        raise UsageError(
            f"send_signal({signal!r}) in a process that runs no application with the middleware: "
            "only the application knows who waits. Send an event from here, with send_event, and "
            "wait for it with step.wait_for_event"
        )
    return await engine.send_signal(signal, encoded)


def encoded_signal(signal: str, data: Any) -> bytes:
    """The data of a signal as JSON text. Raises `StepValueError`."""
    try:
        encoded = encode(data)
    except NotJsonError as error:
        raise StepValueError(f"the data of signal {signal!r} is not JSON: {error}") from None
    try:
        check_signal(signal, encoded)
    except ValueError as error:
        raise StepValueError(str(error)) from None
    return encoded


async def send_encoded(engine: Engine, signal: str, data: bytes) -> bool:
    """The body of `step.send_signal`."""
    return await engine.send_signal(signal, data)


def check_wait(id: str, signal: str, on_conflict: str) -> None:
    """Raise `UsageError` for what the step `id` cannot wait for."""
    try:
        check_signal(signal)
    except ValueError as error:
        raise StepValueError(str(error)) from None
    if on_conflict not in get_args(OnConflict):
        raise UsageError(
            f'step {id!r}: on_conflict={on_conflict!r}: give "fail", or "replace" to end the wait '
            "of another run"
        )


async def wait(
    execution: Execution, step: StepId, signal: str, timeout: int, on_conflict: OnConflict
) -> Signal | None:
    """Return the signal, or None after the timeout, or when another run has replaced this one.

    Raises `StepError` if another run waits for it, and shall not be replaced.
    """
    record = recall(execution, step, StepKind.SIGNAL)
    if record is not None and record.is_final:
        return _from_value(await execution.take(record))
    await begin(execution, step)
    try:
        if record is None:
            only = Alternative("", SIGNAL + signal)
            op = WaitForEvent(step, StepKind.SIGNAL, (only,), timeout)
            opened = await execution.open_signal(op, replace=on_conflict == "replace")
            if isinstance(opened, SignalTaken):
                error = _conflict(execution, signal, opened).encode()
                failed = execution.record(StepFailed(step, StepKind.SIGNAL, error, attempt=1))
                raise rebuild(failed, execution.calls.where(step))
            if opened.is_final:
                return _from_value(await execution.take(opened))
            record = opened
        else:
            execution.session.watch(record)
        record = await execution.park(record)
        return _from_value(decode(record.value or b"null"))
    finally:
        execution.in_use.discard(step.name)


def _conflict(execution: Execution, signal: str, taken: SignalTaken) -> Failure:
    is_own = taken.run_id == execution.info.run_id
    who = "another step of this run" if is_own else f"run {taken.run_id}"
    return Failure(
        "SignalConflictError",
        f"{who} waits for signal {signal!r} already, and a signal is for one: give each run a "
        "signal of its own, with its id in the name for instance, or end the other wait with "
        'on_conflict="replace"',
    )


def _from_value(value: Any) -> Signal | None:
    if value is None:
        return None
    if "signal" in value:  # as Inngest's engine has it
        return Signal(value["signal"], value.get("data"), 0)
    return Signal(value["name"], value["data"], value["ts"])
