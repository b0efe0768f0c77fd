"""Runs that other runs have invoked. Stands for `children.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import EngineError
from durable_endpoints.protocol.ops import StepState
from durable_endpoints_server.engine.model import Run, Status
from durable_endpoints_server.engine.transitions import Resolve, decide
from durable_endpoints_server.store.base import RefusedError
from tests.simulation.model.disk import read
from tests.simulation.model.loop import MS, Task

if TYPE_CHECKING:
    from tests.simulation.model.engine import Engine

_PAUSE = 10 * MS


class Children:
    """Wakes parents, and ends children."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ended(self, child: Run) -> None:
        """A run has ended that another one has invoked."""
        assert child.parent_run is not None
        assert child.parent_step is not None
        self._engine.spawn(self._or_later(self._wake(child.parent_run, child.parent_step)))

    def abandoned(self, run_id: str) -> None:
        """A run has ended that may have children which have not."""
        self._engine.spawn(self.end(run_id))

    def end(self, run_id: str) -> Task:
        """Let the children of a run that has ended not outlive it."""
        yield from self._or_later(self._end_children(run_id))

    def settle_all(self) -> Task:
        """Do what is still to be done for runs that have ended."""
        store = self._engine.disk.store
        for run, step in read(store.settled_invocations()):
            yield from self._wake(run.id, step.id.hash)
        orphans = read(store.orphans())
        is_here = self._engine.is_here
        yield from self._cancel([run for run in orphans if is_here(run.parent_run or "")])

    def _or_later(self, work: Task) -> Task:
        try:
            yield from work
        except EngineError:
            self._engine.recovery.settle_soon()

    def _end_children(self, run_id: str) -> Task:
        children = read(self._engine.disk.store.children(run_id))
        yield self._engine.stale()
        yield from self._cancel(children)

    def _cancel(self, children: Sequence[Run]) -> Task:
        for child in children:
            if not child.status.is_final:
                yield from self._engine.cancel(child.id, "parent_ended")

    def _wake(self, run_id: str, step: str) -> Task:
        """Let the parent look at its child, whose end is on disk."""
        engine = self._engine
        while True:
            if (live := engine.live.get(run_id)) is not None:
                live.wake(step)
                yield from live.written()
                if live.has_failed:
                    return  # its next execution looks by itself
            found = read(engine.disk.store.invocation(run_id, step))
            yield engine.stale()
            if found is None or found.step.state is not StepState.PENDING:
                return
            run = found.run
            if run.status is Status.PARKED or run.status.is_final:
                return
            if run_id not in engine.live:
                if run.status is not Status.RUNNING:
                    decision = decide(run, Resolve(found.step), engine.clock.now(), engine.policy)
                    try:
                        yield engine.disk.submit(decision.change)
                    except RefusedError:
                        continue
                    engine.announce(decision.run, None, None)
                    return
                if engine.recovery.will_rescue(run_id):
                    return  # its next execution looks by itself
            yield _PAUSE
