"""A session whose process goes on with it, and which this server has to find in the store first:
because the server was started anew, or because the run has gone on without that session."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from durable_endpoints.protocol import wire
from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints.protocol.wire import Frame, WireError
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.owner import is_same_boot
from durable_endpoints_server.remote.chunks import ChunkCounts
from durable_endpoints_server.remote.repeats import Repeats, has_left
from durable_endpoints_server.remote.sessions import RemoteSession, number_of
from durable_endpoints_server.store.base import Entry

if TYPE_CHECKING:
    from durable_endpoints_server.remote.process import RemoteProcess

_EVERYTHING = 2**62
"""Bytes: all of what an execution has streamed, which `max_stream` bounds."""


class Resumption:
    """One session that is being looked up. What its process says meanwhile waits."""

    def __init__(
        self,
        process: RemoteProcess,
        run_id: str,
        generation: int,
        acked: int,
        options: Mapping[str, Any],
    ) -> None:
        self.task: asyncio.Task[None] | None = None
        self._process = process
        self._run_id = run_id
        self._generation = generation
        self._acked = acked
        self._options = options
        self._backlog: list[Frame] = []
        self._leave: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def take(self, frame: Frame) -> None:
        self._backlog.append(frame)
        if frame[0] == "leave" and not self._leave.done():
            self._leave.set_result(frame)

    async def ended(self) -> None:
        """Return when its process was told, or is gone."""
        if self.task is not None:
            await asyncio.wait({self.task})

    def cancel(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        process = self._process
        try:
            goes_on = await self._find()
        except EngineError as error:
            self._refuse("storage", error.explanation)
            return
        except WireError as error:
            process.break_off(error)
            return
        finally:
            if process.resuming.get(self._run_id) is self:
                del process.resuming[self._run_id]
            if process.is_ready:
                # A later execution of the run may have been kept for it, of which it never heard.
                process.release_kept()
        try:
            for frame in self._backlog if goes_on else ():
                process.take(frame)
        except WireError as error:
            process.break_off(error)
        process.hub.has_ended(process)

    async def _find(self) -> bool:
        """Whether what the process says of the session is to be taken in."""
        host = self._process.hub.host
        entry = await host.store.entry(self._run_id)
        if entry is None:
            if self._acked == 0 and "only" not in self._options:
                return True  # it never arrived; what follows is its registration
            self._refuse("lost", f"there is no run {self._run_id}")
            return False
        records: list[StreamRecord] = []
        if entry.stream is not None:
            base = wire.whole(self._options.get("base", 0))
            page = await host.store.stream_page(self._run_id, base, _EVERYTHING)
            records = [] if page is None else page.records
        repeats = Repeats(entry.memo, records)
        if self._is_held_for_it(entry.run):
            del self._process.kept[self._run_id]
            self._go_on(entry, repeats)
            return True
        await self._tell_what_became_of(entry, repeats)
        return False

    def _is_held_for_it(self, run: Run) -> bool:
        process = self._process
        return (
            run.id in process.kept
            and run.status is Status.RUNNING
            and run.generation == self._generation
            and run.owner == process.owner
            and is_same_boot(run.owner, process.hub.host.owner)
            and process.hub.host.live_run(run.id) is None
        )

    def _go_on(self, entry: Entry, repeats: Repeats) -> None:
        process = self._process
        live = process.hub.host.resume(entry)
        session = RemoteSession(
            process, live, is_known=True, taken=max(0, self._acked), repeats=repeats
        )
        process.add(session)
        session.resume(self._acked, self._options)
        for step in entry.memo:
            if not step.is_final:
                live.watch(step)

    async def _tell_what_became_of(self, entry: Entry, repeats: Repeats) -> None:
        run = entry.run
        if self._options.get("leaving"):
            frame = await self._last_frame()
            how, last = (*frame[3:5], None, None)[:2]
            detail = wire.unpack_end(last) if how == "end" else last
            if has_left(run, self._generation, wire.text(how), detail):
                if entry.stream is not None:
                    counts = ChunkCounts(repeats.chunks).all_written()
                    self._process.send(["written", run.id, entry.stream.tail, counts])
                self._process.send(["ack", run.id, number_of(frame)])
                return
        if run.status is Status.CANCELLED:
            self._refuse("cancelled", f"run {run.id} was cancelled")
        elif run.status is Status.FAILED and run.reason == "timed_out":
            self._refuse("timed_out", f"run {run.id} has timed out")
        else:
            self._refuse("lost", f"run {run.id} is no longer this execution's")

    async def _last_frame(self) -> Frame:
        """By what its process leaves the run."""
        if (only := self._options.get("only")) is not None:
            return ["leave", self._run_id, self._acked + 1, *wire.array(only)]
        return await self._leave

    def _refuse(self, reason: str, message: str) -> None:
        self._process.send(["refused", self._run_id, self._acked, reason, message])
