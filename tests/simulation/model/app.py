"""The application in the engine's own process: it takes requests, and executes runs.

Stands for `activation.py`, `reentry.py`, `idempotency.py` and `engines/embedded.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import LostRunError, StorageError
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints_server.store.base import Ended, Entry
from tests.simulation.model.books import label_of
from tests.simulation.model.checker import Checker
from tests.simulation.model.details import ELAPSED, omits_request
from tests.simulation.model.disk import read
from tests.simulation.model.handler import Execution, Reply
from tests.simulation.model.loop import Future, Task
from tests.simulation.programs import Program, Request

if TYPE_CHECKING:
    from tests.simulation.model.engine import Engine
    from tests.simulation.model.live import Live


def answer_of(ended: Ended) -> object:
    """What a client is told of a run that has ended: its response, or how it ended."""
    return ended.response or ended.run.status.label


class App:
    """One incarnation."""

    def __init__(self, engine: Engine, checker: Checker, programs: Mapping[str, Program]) -> None:
        self.engine = engine
        self.loop = engine.loop
        self.checker = checker
        self.is_draining = False
        self.is_broken = False
        """Whether executions find that they cannot go on."""
        self._programs = programs
        self._requests = 0

    def spawn(self, task: Task) -> None:
        self.engine.spawn(task)

    def later(self, delay: int, call: Callable[..., None], *args: object) -> None:
        self.loop.later(self.engine.process, delay, call, *args)

    def say(self, text: str) -> None:
        self.loop.say(text)

    def accept(self, request: Request, number: int, reply: Reply) -> None:
        """A client's request has come, its `number`-th."""
        self.spawn(self._accept(request, f"{request.label}#{number}", reply))

    def _accept(self, request: Request, run_id: str, reply: Reply) -> Task:
        engine, program = self.engine, request.program
        if self.is_draining or not engine.has_taken_over:
            reply("unavailable", None)
            return
        if request.key is not None and (yield from self._join(request.key, reply)):
            return
        new = NewRun(
            run_id,
            "root",
            "",
            "POST",
            "/",
            b"",
            retries=program.retries,
            max_runtime=program.max_runtime,
            omit_request_body=omits_request(program),
            elapsed=ELAPSED,
            key=request.key,
        )
        self.checker.requested(run_id, engine.clock.now() - ELAPSED)
        live = engine.register(new)
        if request.key is not None:
            try:
                yield live.acknowledge()
            except LostRunError:
                if not (yield from self._join(request.key, reply)):
                    reply("unavailable", None)
                return
            except StorageError:
                live.abandon()
                reply("unavailable", None)
                return
        Execution(self, live, program, inherited=0).reply = self._with_id(run_id, reply)

    def _join(self, key: str, reply: Reply) -> Task:
        """Answer a request whose key has a run with that one. False if there is none."""
        holder = read(self.engine.disk.store.key_holder(key))
        yield self.engine.stale()
        if holder is None:
            return False
        ended = yield from self.outcome(holder.run_id)
        if ended is not None and ended.run.status.is_final:
            reply("response", (holder.run_id, answer_of(ended)))
        else:
            reply("later", holder.run_id)
        return True

    def _with_id(self, run_id: str, reply: Reply) -> Reply:
        return lambda kind, content: reply(
            kind, (run_id, content) if kind == "response" else run_id
        )

    def execute(self, live: Live, entry: Entry) -> Future:
        """A run was claimed: send its request in again."""
        self.checker.claimed(live.id, entry.memo)
        execution = Execution(self, live, self._programs[label_of(live.id)], inherited=1)
        if self.is_broken:
            execution.park()
        return execution.is_over

    def outcome(self, run_id: str) -> Task:
        """How a run stands."""
        ended = read(self.engine.disk.store.ended(run_id))
        yield self.engine.stale()
        return ended

    def cancel(self, run_id: str, reason: str) -> Task:
        return (yield from self.engine.cancel(run_id, reason))
