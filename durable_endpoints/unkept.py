"""Going on without a run, where the endpoint wants that rather than a 503: steps just run, once.

Nothing of it is kept. What would have to wait, for a time, an event or another try, cannot: the
client gets a 503 then, as it would have got one before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.types import Message, Send

from durable_endpoints.engines.base import StreamReader
from durable_endpoints.errors import StorageError
from durable_endpoints.protocol.ops import (
    SignalTaken,
    StepDone,
    StepFailed,
    StepOp,
    StepRecord,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import Complete, Fail, Listener
from durable_endpoints.protocol.streams import RecordKind

logger = logging.getLogger("durable_endpoints")

DEGRADED = b"durable-degraded"
_RUN_ID = b"durable-run-id"


class UnkeptSession:
    """A `Session` that keeps nothing."""

    generation = 1
    memo: Sequence[StepRecord] = ()
    stop_reason = ""
    is_full = is_raced = False
    is_sure = True
    stream_tail = stream_written = 0

    def __init__(self, run_id: str, now: int, reason: str) -> None:
        """`reason` says why there is no run."""
        self.id = run_id
        self.began_at = now
        self.listener: Listener | None = None
        self.reason = reason

    def record(self, op: StepOp) -> StepRecord:
        now = round(time.time() * 1_000)
        if isinstance(op, StepDone):
            return StepRecord(
                op.step, op.kind, StepState.DONE, op.attempt, 1, op.value, None, None, now, now
            )
        if isinstance(op, StepFailed):
            return StepRecord(
                op.step, op.kind, StepState.FAILED, op.attempt, 1, None, op.error, None, now, now
            )
        raise self._cannot_wait(f"step {str(op.step)!r} needs it")

    async def open_signal(self, op: WaitForEvent, replace: bool) -> StepRecord | SignalTaken:
        raise self._cannot_wait(f"step {str(op.step)!r} needs it")

    def _cannot_wait(self, why: str) -> StorageError:
        return StorageError(f"this request goes on without a run, and {why}: {self.reason}")

    def watch(self, step: StepRecord) -> None:
        """Nothing is open."""

    async def in_order(self) -> None:
        """Nothing else ends."""

    async def make_sure(self) -> None:
        """Nobody else has it."""

    async def acknowledge(self) -> None:
        """Nothing is on its way."""

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        """Nobody reads it."""
        return True

    def withdraw(self, step: str) -> None:
        """Nothing was streamed."""

    async def room(self) -> None:
        """There always is."""

    def read_stream(self) -> StreamReader:
        raise self._cannot_wait("there is no stream")

    async def suspend(self) -> None:
        raise self._cannot_wait("it would have to wait")

    async def release(self, reason: str) -> None:
        raise self._cannot_wait("this process ends")

    async def park(self, reason: str) -> None:
        raise self._cannot_wait("it cannot go on")

    async def end(self, command: Complete | Fail) -> None:
        """The answer goes out."""

    async def abandon(self) -> None:
        """There is nothing to give up."""


def telling(send: Send, reason: str) -> Send:
    """A `send` whose response says that it is not durable, and why."""
    told = "".join(letter if " " <= letter <= "~" else "?" for letter in reason).encode()

    async def send_and_tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0] != _RUN_ID]
            message = {**message, "headers": [*headers, (DEGRADED, told)]}
        await send(message)

    return send_and_tell


class _Once:
    """Tells of the first request only, until a run can be begun again."""

    def __init__(self) -> None:
        self._is_told = False

    def tell(self, function_id: str, reason: str) -> None:
        if not self._is_told:
            self._is_told = True
            logger.error(
                "requests go on without runs, and are not durable, from one for %s on: %s",
                function_id,
                reason,
            )

    def reset(self) -> None:
        if self._is_told:
            self._is_told = False
            logger.warning("requests have runs again")


degradation = _Once()
