"""Random programs, and what the world around them does: data, which any simulator can play.

A *scenario* is all that a seed decides but the faults: which requests come, what their handlers do,
which events and signals are sent, and who cancels what. Nothing in here knows the engine.

A handler calls its nodes in order, and answers with the list of what they gave, as JSON:

    Step          its value; {"error": name} if it failed for good and the handler caught that
    Sleep, Send, Push, Stumble   null
    Wait, Signal  the number of the event or signal; null after the timeout
    WaitAny       [event name, number] of the first; null after the timeout
    Invoke        the list that the child answered; {"error": name} if it failed and that was caught
    Parallel      a list of lists, one for each branch

A failure that is not caught ends the run: its handler lets the error of the step escape.

Runs have *labels*: a request's is its own, that of a run which it invokes is `parent/step`. Names
of nodes are unique in a program. Times are milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

PATIENT = 10 * 86_400_000
"""A wait with this timeout outlasts every fault that a simulator may inject, and all it delays. So
what it waits for comes in time, if it is sent at all. (A simulator keeps events that long.)"""
_MINUTE = 60_000


@dataclass(frozen=True, slots=True)
class Step:
    """A step with a body."""

    name: str
    value: int
    failures: int = 0
    """Tries that fail, as the engine counts them, before one returns."""
    is_fatal: bool = False
    """It fails with an error that is not to be tried again, on the first try."""
    is_caught: bool = True
    """Whether the handler goes on after a failure for good."""
    chunks: tuple[str, ...] = ()
    """What each try of it streams, before it returns or fails."""
    takes: int = 0
    """How long its body runs."""


@dataclass(frozen=True, slots=True)
class Sleep:
    name: str
    duration: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for an event."""

    name: str
    event: str
    key: str | None
    """What must stand at `data.key`, if anything must."""
    timeout: int


@dataclass(frozen=True, slots=True)
class WaitAny:
    """Wait for the first of several events."""

    name: str
    events: tuple[str, ...]
    key: str | None
    timeout: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Wait for a signal. No two waits of a scenario are for the same one."""

    name: str
    signal: str
    timeout: int


@dataclass(frozen=True, slots=True)
class Send:
    """Send an event: its data is `{"key": key, "number": number}`."""

    name: str
    event: str
    key: str
    number: int


@dataclass(frozen=True, slots=True)
class Invoke:
    """Run another program as a run of its own, and wait for its end."""

    name: str
    program: Program
    timeout: int | None = None
    is_caught: bool = True


@dataclass(frozen=True, slots=True)
class Parallel:
    """Branches that go on at the same time. None of their failures is uncaught."""

    branches: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Push:
    """Stream chunks from the handler's own code. Not in a branch."""

    chunks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stumble:
    """The handler itself raises, as often as this says (as the engine counts), then goes on. At
    most once in a program, not in a branch, and never more often than the program's retries."""

    times: int


Node = Step | Sleep | Wait | WaitAny | Signal | Send | Invoke | Parallel | Push | Stumble


@dataclass(frozen=True, slots=True)
class Program:
    """What one handler does, and its options."""

    nodes: tuple[Node, ...]
    retries: int = 3
    max_runtime: int | None = None
    is_background: bool = False
    """With `checkpoint="background"`: its results are awaited at its end only."""


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request. With a key, the client repeats it until it has an answer, and then as
    often as `repeats` says; without one, it follows where it is sent, and never asks twice."""

    label: str
    program: Program
    at: int = 0
    key: str | None = None
    repeats: tuple[int, ...] = ()
    """Further requests with the same key, this long after the first."""
    reads_stream: bool = False
    """Whether somebody reads the run's stream, from the beginning, with breaks."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event from outside. It is sent `delay` after the run `after` was accepted, and again until
    that is acknowledged; never, if that run never begins."""

    id: str
    after: str
    delay: int
    event: str
    key: str
    number: int
    copies: int = 1
    """How often it is delivered, with the same id."""


@dataclass(frozen=True, slots=True)
class Given:
    """A signal from outside: sent `delay` after the run `after` was accepted, and again until
    somebody has taken it, or that run has ended."""

    after: str
    delay: int
    signal: str
    number: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Somebody cancels the run of a request, `delay` after it was accepted."""

    label: str
    delay: int


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything but the faults."""

    requests: tuple[Request, ...]
    events: tuple[Event, ...] = ()
    signals: tuple[Given, ...] = ()
    cancels: tuple[Cancel, ...] = ()


def walk(nodes: tuple[Node, ...]) -> Iterator[Node]:
    """All nodes, those in branches too, without those of invoked programs."""
    for node in nodes:
        yield node
        if isinstance(node, Parallel):
            for branch in node.branches:
                yield from walk(branch)


def programs(scenario: Scenario) -> dict[str, Program]:
    """All programs, by the labels of their runs."""
    found: dict[str, Program] = {}

    def add(label: str, program: Program) -> None:
        found[label] = program
        for node in walk(program.nodes):
            if isinstance(node, Invoke):
                add(f"{label}/{node.name}", node.program)

    for request in scenario.requests:
        add(request.label, request.program)
    return found


def random_scenario(random: Random, size: int = 6) -> Scenario:
    """A scenario of one to three requests, each of about `size` nodes at the most."""
    author = _Author(random)
    count = random.choice((1, 1, 2, 2, 3))
    requests = tuple(author.request(str(number), size) for number in range(count))
    cancels = tuple(
        Cancel(request.label, author.moment()) for request in requests if random.random() < 0.08
    )
    return Scenario(requests, tuple(author.events), tuple(author.signals), cancels)


@dataclass
class _Author:
    """Writes one scenario."""

    random: Random
    events: list[Event] = field(default_factory=list)
    signals: list[Given] = field(default_factory=list)
    _numbers: int = 0

    def request(self, label: str, size: int) -> Request:
        random = self.random
        key = f"key-{label}" if random.random() < 0.5 else None
        repeats: tuple[int, ...] = ()
        if key is not None and random.random() < 0.5:
            repeats = tuple(self.moment() for _ in range(random.randint(1, 2)))
        program = self.program(label, random.randint(1, size), depth=0)
        return Request(label, program, random.choice((0, 0, 5, 50)), key, repeats, self.maybe(0.4))

    def program(self, label: str, size: int, depth: int) -> Program:
        random = self.random
        writer = _ProgramAuthor(self, label, depth, retries=random.choice((0, 1, 2, 3)))
        nodes = writer.nodes(size, is_branch=False)
        max_runtime = None
        if self.maybe(0.05):
            max_runtime = random.choice((20, 2_000, 5 * _MINUTE, PATIENT))
        return Program(nodes, writer.retries, max_runtime, self.maybe(0.15))

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def number(self) -> int:
        self._numbers += 1
        return self._numbers

    def moment(self) -> int:
        """A delay: at once, soon, or after most of what there is to wait for."""
        return self.random.choice((0, 1, 3, 10, 30, 100, 1_500, 10_000, 10 * _MINUTE))

    def send_event(self, label: str, event: str, key: str) -> None:
        number = self.number()
        copies = 2 if self.maybe(0.2) else 1
        delay = self.moment()
        self.events.append(Event(f"event-{number}", label, delay, event, key, number, copies))


class _ProgramAuthor:
    """Writes one program."""

    def __init__(self, author: _Author, label: str, depth: int, retries: int) -> None:
        self._author = author
        self._random = author.random
        self._label = label
        self._depth = depth
        self.retries = retries
        self._names = 0
        self._has_stumbled = False

    def nodes(self, size: int, is_branch: bool) -> tuple[Node, ...]:
        found: list[Node] = []
        while len(found) < size:
            found.append(self._node(size, is_branch))
        return tuple(found)

    def _node(self, size: int, is_branch: bool) -> Node:
        simple: list[Callable[[bool], Node]] = [
            *[self._step] * 5,
            *[self._wait] * 3,
            self._sleep,
            self._wait_any,
            self._signal,
            self._send,
        ]
        kind = self._random.randrange(len(simple) + 4) - len(simple)
        if kind < 0:
            return simple[kind](is_branch)
        if kind == 0 and self._depth < 2:
            return self._invoke(is_branch)
        if kind == 1 and size > 1 and not is_branch:
            branches = range(self._random.randint(2, 3))
            return Parallel(tuple(self.nodes(self._random.randint(1, 2), True) for _ in branches))
        if kind == 2 and not is_branch:
            return Push(self._chunks(1))
        if kind == 3 and self.retries and not (is_branch or self._has_stumbled):
            self._has_stumbled = True
            return Stumble(self._random.randint(1, self.retries))
        return self._step(is_branch)

    def _name(self, kind: str) -> str:
        self._names += 1
        return f"{kind}{self._names}"

    def _chunks(self, least: int) -> tuple[str, ...]:
        count = self._random.choice((least, least, least, 1, 2, 3))
        return tuple(f"c{self._author.number()} " for _ in range(count))

    def _step(self, is_branch: bool) -> Step:
        random = self._random
        failures = random.choice((0, 0, 0, 0, 1, 1, 2, 4))
        is_fatal = self._author.maybe(0.05)
        is_caught = is_branch or not self._author.maybe(0.3)
        takes = random.choice((0, 0, 1, 4, 20, 200))
        name, number = self._name("step"), self._author.number()
        return Step(name, number, failures, is_fatal, is_caught, self._chunks(0), takes)

    def _sleep(self, is_branch: bool) -> Sleep:
        return Sleep(self._name("sleep"), self._random.choice((1, 10, 50, 5_000, 20 * _MINUTE)))

    def _timeout(self) -> tuple[int, bool]:
        """A timeout, and whether what is waited for shall come."""
        kind = self._random.random()
        if kind < 0.6:
            return PATIENT, True
        timeout = self._random.choice((2, 40, 1_000, 30_000, 30 * _MINUTE))
        return timeout, kind < 0.8

    def _key(self) -> str | None:
        return self._label if self._author.maybe(0.6) else None

    def _event(self) -> str:
        """Few names, so that events of one run meet waits of another."""
        return self._random.choice(("paid", "approved", "shipped"))

    def _wait(self, is_branch: bool) -> Wait:
        (timeout, comes), event, key = self._timeout(), self._event(), self._key()
        self._announce(comes, event)
        return Wait(self._name("wait"), event, key, timeout)

    def _wait_any(self, is_branch: bool) -> WaitAny:
        timeout, comes = self._timeout()
        events = tuple(self._random.sample(("paid", "approved", "shipped"), 2))
        self._announce(comes, self._random.choice(events))
        return WaitAny(self._name("any"), events, self._key(), timeout)

    def _announce(self, comes: bool, event: str) -> None:
        if comes:
            self._author.send_event(self._label, event, self._label)
        if self._author.maybe(0.1):
            self._author.send_event(self._label, event, "nobody")

    def _signal(self, is_branch: bool) -> Signal:
        timeout, comes = self._timeout()
        number = self._author.number()
        name = f"signal-{number}"
        if comes:
            self._author.signals.append(Given(self._label, self._author.moment(), name, number))
        return Signal(self._name("signal"), name, timeout)

    def _send(self, is_branch: bool) -> Send:
        key = self._label if self._author.maybe(0.5) else self._label.split("/", maxsplit=1)[0]
        return Send(self._name("send"), self._event(), key, self._author.number())

    def _invoke(self, is_branch: bool) -> Invoke:
        name = self._name("invoke")
        writer = self._author
        program = writer.program(
            f"{self._label}/{name}", self._random.randint(1, 3), self._depth + 1
        )
        timeout = None
        if self._author.maybe(0.2):
            timeout = self._random.choice((5, 500, 5 * _MINUTE))
        return Invoke(name, program, timeout, is_branch or not self._author.maybe(0.3))
