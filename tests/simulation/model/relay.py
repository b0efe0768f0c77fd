"""Messages between partitions: runs that are kept, each with all that it writes, in one of several
stores, each with a process, a clock and an order of commits of its own.

What one partition has to tell another is on its disk: an event that a step has sent, a child whose
home is elsewhere, the end of such a child, the wish to cancel it. It is said until it is heard, and
perhaps twice. Where its parent is kept, a child has a stand-in, which nobody executes, and which
ends as the child does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from durable_endpoints.protocol.errors import StorageError
from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server.engine.facts import (
    Change,
    ChildCreated,
    EventReceived,
    Fact,
    RunEnded,
    states,
)
from durable_endpoints_server.engine.model import Status
from durable_endpoints_server.store.base import RefusedError
from tests.simulation.model.loop import MS, Future, Loop, Process, Task

if TYPE_CHECKING:
    from tests.simulation.model.host import Host

_READY = states(Status.READY)


class Relay:
    """Carries what is said between the partitions of one history."""

    def __init__(self, loop: Loop, hosts: list[Host]) -> None:
        self._loop = loop
        self._hosts = hosts
        self._process = Process("relay")
        self._cancelling: set[str] = set()

    def home_of(self, run_id: str) -> Host:
        """The partition that keeps a run: a child is never where its parent is, if it can be."""
        root, *below = run_id.split("/")
        return self._hosts[(int(root.partition("#")[0]) + len(below)) % len(self._hosts)]

    def localized(self, host: Host, change: Change) -> Change:
        """What a partition writes of a change: a stand-in has no deadline of its own."""
        return change._replace(
            facts=tuple(
                fact._replace(run=fact.run._replace(deadline=None))
                if isinstance(fact, ChildCreated) and self.home_of(fact.run.id) is not host
                else fact
                for fact in change.facts
            )
        )

    def written(self, host: Host, change: Change) -> None:
        """A partition has written something: pass on what others have to know."""
        for fact in change.facts:
            for other, say in self._to_say(host, change, fact):
                self._loop.spawn(self._process, self._until_heard(other, say))

    def cancel(self, run_id: str, reason: str) -> None:
        """A run that is kept elsewhere shall end."""
        if run_id not in self._cancelling:  # whoever waits for its end says so again and again
            self._cancelling.add(run_id)
            self._loop.spawn(self._process, self._cancel(run_id, reason))

    def _cancel(self, run_id: str, reason: str) -> Task:
        home = self.home_of(run_id)
        yield from self._until_heard(home, lambda: home.engine.cancel(run_id, reason))
        self._cancelling.discard(run_id)

    def _to_say(
        self, host: Host, change: Change, fact: Fact
    ) -> list[tuple[Host, Callable[[], Task]]]:
        if isinstance(fact, EventReceived) and change.run_id:
            others = [other for other in self._hosts if other is not host]
            return [(other, partial(self._publish, other, fact)) for other in others]
        if isinstance(fact, ChildCreated):
            home = self.home_of(fact.run.id)
            return [(home, lambda: self._create(home, fact))] if home is not host else []
        if isinstance(fact, RunEnded) and fact.run.parent_run is not None:
            parents = self.home_of(fact.run.parent_run)
            if self.home_of(fact.run.id) is host and parents is not host:
                return [(parents, lambda: self._end(parents, fact))]
        return []

    def _publish(self, host: Host, fact: EventReceived) -> Task:
        event = fact.event
        yield host.engine.events.publish(NewEvent(event.id, event.name, event.data, event.ts))

    def _create(self, host: Host, fact: ChildCreated) -> Task:
        """The child begins by the clock of its home: no instant of another one means anything."""
        now, limit = host.clock.now(), fact.new.max_runtime
        run = fact.run._replace(
            began_at=now, ready_at=now, deadline=None if limit is None else now + limit
        )
        yield host.engine.disk.submit(Change((ChildCreated(run, fact.new),)))
        host.engine.announce(run, None, None)

    def _end(self, host: Host, fact: RunEnded) -> Task:
        """The stand-in ends, if it has not ended yet, and the parent looks."""
        try:
            yield host.engine.disk.submit(Change((fact,), fact.run.id, 0, _READY))
        except RefusedError:
            pass
        host.engine.children.ended(fact.run)

    def _until_heard(self, host: Host, say: Callable[[], Task]) -> Task:
        pause = 10 * MS
        while True:
            yield self._loop.latency(20 * MS)
            if host.is_up:
                heard = Future()
                host.calls.append(heard)  # it breaks when the process ends
                host.engine.spawn(self._hear(say, heard))
                yield heard
                if heard.value is True:
                    break
            yield pause
            pause = min(2 * pause, 60_000 * MS)
        if host.is_up and self._loop.random.random() < 0.1:
            host.engine.spawn(self._hear(say, Future()))

    def _hear(self, say: Callable[[], Task], heard: Future) -> Task:
        try:
            yield from say()
            heard.set(True)
        except StorageError:
            heard.set(False)
