"""What a run's first execution tells the server: in order, one step per checkpoint.

The first checkpoint makes the run known, and so it carries a step. (Several in one would make the
server plan each of the run's later steps before it is executed.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from durable_endpoints.engines.inngest.ops import WireOp, event_of, memo_entry
from durable_endpoints.errors import EngineError, StorageError
from durable_endpoints.protocol.checkpoints import CheckpointError, CheckpointRun, RunEvent
from durable_endpoints.protocol.ops import SendEvent

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

REQUEST = "durable:request"
"""The name under which the original request is kept beside the steps."""


class _Entry(NamedTuple):
    ops: Sequence[WireOp]
    event: SendEvent | None = None
    """What is sent before."""


class Outbox:
    """One run's way to the server, from the process that its request came to."""

    def __init__(
        self, engine: InngestEngine, run_id: str, event: RunEvent, retries: int, request: bytes
    ) -> None:
        """`request` is the original request as JSON, to be kept with the run."""
        self.run: CheckpointRun | None = None
        """The run as the server knows it."""
        self._engine = engine
        self._run_id = run_id
        self._event = event
        self._retries = retries
        self._request: bytes | None = request
        self._queue: deque[_Entry] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._failure: EngineError | None = None

    def add(self, op: WireOp, event: SendEvent | None = None) -> None:
        """Tell of a step, as soon as everything before it is told. `event` is sent before."""
        self._queue.append(_Entry([op], event))
        # Not at once: what ends the run may come in the same turn, and travel with it.
        asyncio.get_running_loop().call_soon(self._begin)

    async def flush(self) -> None:
        """Return once all of it is told, and the run is known. Raises `StorageError`."""
        if self.run is None and not self._queue and self._sending is None:
            self.keep_request()
        self._begin()
        while self._sending is not None:
            await asyncio.wait([self._sending])  # how it has ended is told by `_failure`
        if self._failure is not None:
            raise self._failure

    def keep_request(self) -> None:
        """Have the original request kept with the run, unless it is."""
        if self._request is not None:
            self._queue.append(_Entry([memo_entry(REQUEST, self._request)]))
            self._request = None

    async def tell(self, ops: Sequence[WireOp]) -> None:
        """Tell of several operations in one checkpoint, after everything else."""
        self._queue.append(_Entry(ops))
        await self.flush()

    async def end(self, op: WireOp) -> None:
        """Tell of the end, together with what is not under way yet."""
        if any(entry.event is not None for entry in self._queue):
            await self.flush()
        waiting = [op for entry in self._queue for op in entry.ops]
        self._queue.clear()
        await self.tell([*waiting, op])

    def _begin(self) -> None:
        if self._queue and self._sending is None and self._failure is None:
            self._sending = self._engine.spawn(self._send(), f"checkpoints of {self._run_id}")

    async def _send(self) -> None:
        try:
            while self._queue:
                ops, event = self._queue.popleft()
                if event is not None:
                    await self._engine.server.send(event_of(event.event))
                await self._checkpoint(ops)
        except EngineError as error:
            self._failure = error
        except CheckpointError as error:
            self._failure = self._engine.server.failed(error)
        except BaseException as error:
            self._failure = StorageError(f"a checkpoint was given up: {error!r}", where="")
            raise
        finally:
            self._sending = None

    async def _checkpoint(self, ops: Sequence[WireOp]) -> None:
        server = self._engine.server
        if self.run is not None:
            await server.in_time(server.checkpoints.steps(self.run, ops))
            return
        self.run = await server.in_time(
            server.checkpoints.new_run(self._run_id, self._event, ops, retries=self._retries)
        )
        self._engine.tokens.keep(self.run)
