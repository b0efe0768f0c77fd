"""What a session knows of its run, in either phase: the rules are ours, though the engine is not.

An execution's record is decided here, by the same rules as in an engine of ours, so that limits
hold and a step is what it is at once; what was decided is then told to the server.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Protocol

from durable_endpoints.engines.inngest.log import StreamLog
from durable_endpoints.engines.inngest.ops import check_wait
from durable_endpoints.errors import ConfigurationError, LostRunError
from durable_endpoints.protocol.ops import Invoke, StepRecord, WaitForEvent
from durable_endpoints.protocol.runs import Listener
from durable_endpoints.protocol.streams import RecordKind
from durable_endpoints_server.engine.facts import StepResolved, StepWritten
from durable_endpoints_server.engine.model import Policy, Run
from durable_endpoints_server.engine.transitions import Command, decide


class Clock(Protocol):
    """What a session needs of its engine."""

    @property
    def policy(self) -> Policy: ...
    def now(self) -> int: ...


class Mirror:
    """The part of a `Session` that needs no server."""

    def __init__(self, clock: Clock, run: Run, memo: Sequence[StepRecord]) -> None:
        self.id = run.id
        self.generation = run.generation
        self.began_at = run.began_at
        self.memo = memo
        self.listener: Listener | None = None
        self.stop_reason = ""
        self.log = StreamLog(clock.policy)
        self._clock = clock
        self._run = run
        self._has_left = False

    is_raced = False
    """What is resolved elsewhere is seen in another execution."""

    async def in_order(self) -> None:
        """As `Session.in_order`."""

    is_sure = True
    """An Inngest server has no leases."""

    async def make_sure(self) -> None:
        """As `Session.make_sure`."""

    def decided(self, command: Command) -> StepRecord:
        """The step as a command makes it. Raises as `Session.record` does."""
        if self._has_left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        if isinstance(command, Invoke):
            raise ConfigurationError(
                f"step {str(command.step)!r} invokes another endpoint, which an Inngest server "
                "cannot do: ask its URL with step.fetch, or use the companion server or the "
                "embedded engine"
            )
        if isinstance(command, WaitForEvent):
            check_wait(command)
        decision = decide(
            self._run, command, self._clock.now(), self._clock.policy, random.random()
        )
        self._run = decision.run
        fact = decision.change.facts[0]
        assert isinstance(fact, StepWritten | StepResolved)
        self.log.follow(decision.change.facts)
        return fact.step

    # What it streams

    def push(
        self, step: str, attempt: int, values: list[bytes], kind: RecordKind = RecordKind.DATA
    ) -> bool:
        """As `Session.push`."""
        if self._has_left:
            raise LostRunError(f"run {self.id} is no longer this execution's")
        return self.log.push(step, attempt, values, kind)

    def withdraw(self, step: str) -> None:
        """As `Session.withdraw`."""
        if not self._has_left:
            self.log.withdraw(step)

    @property
    def is_full(self) -> bool:
        """As `Session.is_full`: memory takes what the limits allow."""
        return False

    async def room(self) -> None:
        """As `Session.room`."""

    @property
    def stream_tail(self) -> int:
        """The last position that was streamed."""
        return self.log.stream.tail

    @property
    def stream_written(self) -> int:
        """The same: there is nothing to be written to."""
        return self.log.stream.tail

    def read_stream(self) -> Any:
        """As `Session.read_stream`."""
        return self.log.reader()

    def leave(self) -> None:
        """Nothing more is recorded, or streamed."""
        self._has_left = True
        self.listener = None
        self.log.close()
