"""Everybody outside: clients, senders of events and signals, who cancels, reads, and mends.

They talk to whichever process is there by calls over a network, which may lose a call or its
answer, deliver it twice, or late; a process that ends breaks the calls that it has not answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import orjson

from durable_endpoints.protocol.ops import NewEvent
from durable_endpoints_server.engine.model import Status
from tests.simulation.model.app import answer_of
from tests.simulation.model.checker import Checker
from tests.simulation.model.disk import read
from tests.simulation.model.faults import Fault
from tests.simulation.model.loop import MS, Future, Loop, Process, Task
from tests.simulation.model.streams import View
from tests.simulation.programs import Cancel, Event, Given, Request, Scenario

if TYPE_CHECKING:
    from tests.simulation.model.host import Host

Reply = Callable[[str, object], None]
_EVERYTHING = 2**40


class Network:
    """Calls from people to processes."""

    def __init__(
        self, loop: Loop, people: Process, faults: Mapping[int, Fault], seen: Counter[str]
    ) -> None:
        """`faults` are by the numbers of the calls; those that occur are `seen`."""
        self._seen = seen
        self._loop = loop
        self._people = people
        self._faults = faults
        self._calls = 0

    def call(
        self, host: Host, deliver: Callable[[Reply], None], is_repeatable: bool = True
    ) -> Future:
        """What this returns is done with a pair: the kind of the answer and its content, or
        `broken` and None."""
        loop, outcome = self._loop, Future()
        self._calls += 1
        fault = self._faults.get(self._calls, Fault("", 0))
        if fault.kind:
            self._seen[fault.kind] += 1

        def reply(kind: str, content: object) -> None:
            back = loop.latency(2 * MS)
            if fault.kind == "lose" and fault.at % 2:
                kind, content = "broken", None
            loop.later(self._people, back, outcome.set, (kind, content))

        def arrive() -> None:
            if not host.is_up:
                outcome.set(("broken", None))
                return
            host.calls.append(outcome)
            deliver(reply)

        there = loop.latency(2 * MS)
        if fault.kind == "delay":
            there += fault.amount * MS
        if fault.kind == "lose" and not fault.at % 2:
            loop.later(self._people, there, outcome.set, ("broken", None))
        else:
            loop.later(self._people, there, arrive)
        if fault.kind == "repeat" and is_repeatable:
            loop.later(self._people, there + fault.amount * MS, arrive)
        return outcome


class People:
    """Everybody outside of one history."""

    def __init__(
        self,
        loop: Loop,
        process: Process,
        checker: Checker,
        network: Network,
        hosts: list[Host],
        home_of: Callable[[str], Host],
        scenario: Scenario,
    ) -> None:
        """`home_of` says where a run is kept."""
        self._loop = loop
        self._process = process
        self._checker = checker
        self._network = network
        self._hosts = hosts
        self._host_of = home_of
        self._requests = 0
        checker.parked = lambda run_id: self._spawn(self._mend(run_id))
        for request in scenario.requests:
            self._spawn(self._client(request, request.at))
            for after in request.repeats:
                self._spawn(self._client(request, request.at + after))
            if request.reads_stream:
                self._spawn(self._reader(request.label))
        for event in scenario.events:
            self._spawn(self._sender(event))
        for given in scenario.signals:
            self._spawn(self._giver(given))
        for cancel in scenario.cancels:
            self._spawn(self._canceller(cancel))

    def _spawn(self, task: Task) -> None:
        self._loop.spawn(self._process, task)

    def _pause(self, tries: int = 0) -> int:
        """How long somebody waits until they try again: longer each time."""
        return (50 * MS + self._loop.latency(5_000 * MS)) << min(tries, 10)

    # Clients

    def _client(self, request: Request, at: int) -> Task:
        host = self._host_of(request.label)
        yield at * MS
        for tries in count():

            def deliver(reply: Reply) -> None:
                self._requests += 1
                host.app.accept(request, self._requests, reply)

            kind, content = yield self._network.call(host, deliver, request.key is not None)
            self._loop.say(f"the client of {request.label} is answered: {kind} {content}")
            if kind == "response":
                self._checker.answered(*content)
                return
            if kind == "later":
                yield from self._follow(host, content)
                return
            if request.key is None:
                return
            yield self._pause(tries)

    def _follow(self, host: Host, run_id: str) -> Task:
        """Ask for the response of a run until it is there."""
        for tries in count():

            def deliver(reply: Reply) -> None:
                host.engine.spawn(self._wait(host, run_id, reply))

            kind, ended = yield self._network.call(host, deliver)
            if kind == "ended":
                if ended is not None and ended.run.status is not Status.PARKED:
                    self._checker.answered(run_id, answer_of(ended))
                    return
                if ended is None:
                    return
            yield self._pause(tries)

    def _wait(self, host: Host, run_id: str, reply: Reply) -> Task:
        ended = yield from host.engine.wait(run_id)
        reply("ended", ended)

    # Whoever knows of a run

    def _after(self, label: str, delay: int) -> Task:
        """Return the id of a run once it has been accepted for a time."""
        accepted = self._checker.accepted[label]
        yield accepted
        yield delay * MS
        return accepted.value

    def _sender(self, event: Event) -> Task:
        yield from self._after(event.after, event.delay)
        for _ in range(event.copies):
            for host in self._hosts:
                self._spawn(self._send(host, event))
            yield self._loop.latency(1_000 * MS)

    def _send(self, host: Host, event: Event) -> Task:
        data = orjson.dumps({"key": event.key, "number": event.number})
        new = NewEvent(event.id, event.event, data)
        yield from self._until(host, lambda: host.engine.events.publish(new), lambda value: True)

    def _giver(self, given: Given) -> Task:
        run_id = yield from self._after(given.after, given.delay)
        host = self._host_of(run_id)
        data = b"%d" % given.number
        yield from self._until(
            host,
            lambda: host.engine.signals.send(given.signal, data),
            lambda taken: taken or self._checker.end_of(run_id) is not None,
        )

    def _canceller(self, cancel: Cancel) -> Task:
        run_id = yield from self._after(cancel.label, cancel.delay)
        host = self._host_of(run_id)
        is_ended = lambda done: done or self._checker.end_of(run_id) is not None  # noqa: E731
        yield from self._until(
            host, lambda: self._in(host, host.engine.cancel(run_id, "cancelled")), is_ended
        )

    def _mend(self, run_id: str) -> Task:
        host = self._host_of(run_id)
        yield self._pause(self._loop.random.randrange(8))
        yield from self._until(
            host, lambda: self._in(host, host.engine.retry(run_id)), lambda done: True
        )

    def _in(self, host: Host, task: Task) -> Future:
        """Run a task in the process of a host."""
        done = Future()

        def run() -> Task:
            try:
                done.set((yield from task))
            except Exception as error:
                done.set(None, error)

        host.engine.spawn(run())
        return done

    def _until(
        self, host: Host, ask: Callable[[], Future], is_enough: Callable[[Any], bool]
    ) -> Task:
        """Ask until there is an answer, and it is enough."""

        def deliver(reply: Reply) -> None:
            ask().then(
                lambda done: (
                    reply("done", done.value) if done.error is None else reply("failed", done.error)
                )
            )

        for tries in count():
            kind, value = yield self._network.call(host, deliver)
            if kind == "done" and is_enough(value):
                return
            yield self._pause(tries)

    # Readers

    def _reader(self, label: str) -> Task:
        """Read a stream to its end, with ever longer pauses while nothing comes."""
        run_id = yield from self._after(label, 0)
        host, position, pause, view = self._host_of(run_id), 0, 1, View()

        def deliver(reply: Reply) -> None:
            reply("page", read(host.disk.store.stream_page(run_id, position, _EVERYTHING)))

        while True:
            kind, page = yield self._network.call(host, deliver)
            if kind == "page" and page is not None:
                if page.records:
                    self._checker.read(run_id, page.records)
                    view.take(page.records)
                    position, pause = page.records[-1].last, 1
                elif page.status.is_final:
                    self._checker.has_read(run_id, view)
                    return
            yield self._loop.latency(10 * MS) * pause
            pause = min(2 * pause, 1_000_000)
