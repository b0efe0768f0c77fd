"""One history: a scenario, what goes wrong, and whether all was right in the end.

Everything is decided by the seed: the scenario, the faults, and how long each thing takes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, TypeVar

import orjson

from durable_endpoints.client.errors import StreamError
from durable_endpoints.client.events import StreamEvent
from durable_endpoints.protocol.messages import StoredResponse
from durable_endpoints.protocol.step_ids import hash_name
from durable_endpoints.testing import looking
from durable_endpoints_server.engine.facts import Change, ChildCreated, RunCreated
from tests.simulation.oracle import OUTSIDE, Oracle
from tests.simulation.programs import Request, Scenario, Step, programs, random_scenario, walk
from tests.simulation.system import faults
from tests.simulation.system.disk import Disk
from tests.simulation.system.environment import replaced
from tests.simulation.system.faults import Fault, random_faults
from tests.simulation.system.loop import Machine, Process, SimulatedLoop, StuckError
from tests.simulation.system.network import BrokenError, Exchange, Network, delay
from tests.simulation.system.people import Answer, Client, cancel, send_event, send_signal
from tests.simulation.system.promptness import Promptness
from tests.simulation.system.roles import (
    KEYRING,
    LEASE,
    App,
    CompanionServer,
    ConnectedApp,
    EmbeddedApp,
    Role,
    supervised,
)
from tests.simulation.system.watch import Watch

T = TypeVar("T")
Mode = Literal["embedded", "remote"]

_FOREVER = 4 * 86_400.0
"""Seconds in which every history has ended."""
_BOOTED = 1.0
"""Seconds after which everything serves, if nothing has gone wrong yet."""


@dataclass
class Outcome:
    """What came of a history."""

    wrong: list[str]
    """What was not as it has to be."""
    trace: list[str] = field(default_factory=list)
    """What was done, when."""
    counts: Counter[str] = field(default_factory=Counter)
    """How often things happened."""
    steps: int = 0
    """Callbacks of the event loop."""


@dataclass(frozen=True)
class History:
    """What is played."""

    mode: Mode
    seed: int
    """Of how long everything takes."""
    scenario: Scenario
    faults: tuple[Fault, ...]


def random_history(mode: Mode, seed: int) -> History:
    """The history of a seed."""
    random = Random(f"{mode} {seed}")
    kinds = faults.EMBEDDED if mode == "embedded" else faults.REMOTE
    scenario = random_scenario(random)
    return History(mode, seed, scenario, tuple(random_faults(random, kinds)))


def play(history: History) -> Outcome:
    """Play a history to its end."""
    was_enabled = gc.isenabled()
    gc.disable()  # what is thrown away in the middle would come to life once more
    gc.freeze()
    world = _World(history)
    try:
        return world.play()
    finally:
        world.close()
        gc.unfreeze()
        if was_enabled:
            gc.enable()


class _World:
    """Everything that there is, and what happens to it."""

    def __init__(self, history: History) -> None:
        self._scenario = history.scenario
        self._chance = Random(f"{history.seed} {history.mode} chance")
        self._loop = loop = SimulatedLoop()
        self._outcome = Outcome([])
        self._noted: list[str] = []
        self._network = network = Network(Random(self._chance.random()))
        network.noted = self._noted
        self._disk = Disk(Random(self._chance.random()))
        self._oracle = Oracle(history.scenario)
        self._runs: dict[str, str] = {}
        """Ids of runs by their labels."""
        self._accepted: dict[str, asyncio.Event] = {}
        self._unsynced: list[tuple[int, str]] = []
        """Labels of runs that a loss of power would take, and the transactions that hold them."""
        self._ended: dict[str, asyncio.Event] = {}
        self._answers: dict[str, list[Answer]] = {}
        self._seen: dict[str, dict[str, StreamEvent]] = {}
        self._bodies: Counter[tuple[str, str]] = Counter()
        self._faults = list(history.faults)
        self.watch = Watch()
        self._promptness = Promptness(loop)
        common = {"scenario": history.scenario, "witness": self}
        self.apps: list[App]
        self.server: CompanionServer | None = None
        machine = Machine("first")
        if history.mode == "embedded":
            self.apps = [EmbeddedApp("app", loop, network, machine, disk=self._disk, **common)]
            self.engine: Role = self.apps[0]
        else:
            self.server = CompanionServer("server", loop, network, machine, disk=self._disk)
            self.apps = [
                ConnectedApp(
                    f"app {n}", loop, network, Machine(f"of app {n}"), server=self.server, **common
                )
                for n in range(1, self._chance.choice((2, 3)))
            ]
            self.engine = self.server
        self._disk.on_written = self._written
        self._disk.on_synced = self._synced
        self._disk.on_acknowledged = self._acknowledged
        loop.on_step = self._step
        loop.on_error = self._noted.append

    # Playing

    def play(self) -> Outcome:
        outcome = self._outcome
        with replaced(self._loop, Random(self._chance.random()), self._noted):
            try:
                self._loop.run(self._play(), within=_FOREVER)
            except StreamError as error:
                outcome.wrong.append(f"a client gives up: {error}")
            except StuckError as error:
                outcome.wrong.append(f"the history does not end: {error}{self._open_ends()}")
            else:
                self._judge()
        outcome.wrong += self.watch.wrong + self._promptness.wrong
        outcome.steps = self._loop.count
        return outcome

    async def _play(self) -> None:
        if self.server is not None:
            self.server.boot()
        for app in self.apps:
            app.boot()
        await asyncio.sleep(_BOOTED)
        scenario = self._scenario
        asked = [self._start(self._ask(request)) for request in scenario.requests]
        others = [
            *((one.after, self._start(send_event(self, one))) for one in scenario.events),
            *((one.after, self._start(send_signal(self, one))) for one in scenario.signals),
            *((one.label, self._start(cancel(self, one))) for one in scenario.cancels),
        ]
        await asyncio.gather(*asked)
        self._faults.clear()
        await self._until_quiet()
        while busy := [one for label, one in others if label in self._runs and not one.done()]:
            await asyncio.gather(*busy)
            await self._until_quiet()
        for _, task in others:
            if task.done():
                task.result()
            else:
                task.cancel()  # it waits for a run that never began

    def _start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        return self._loop.outside.spawn(work)

    async def _ask(self, request: Request) -> None:
        asking = [self._start(self._ask_once(request, request.at))]
        asking += [self._start(self._ask_once(request, request.at + n)) for n in request.repeats]
        await asyncio.gather(*asking)

    async def _ask_once(self, request: Request, at: int) -> None:
        await asyncio.sleep(at / 1_000)
        asked_at = self._loop.time()
        answer = await Client(self, self._loop.outside, request).converse()
        self._note(f"client of {request.label} has {answer}")
        if answer is not None:
            run_id = self._runs.get(request.label, "")
            if answer.status == 200 and not self.has_ended(run_id):
                self._outcome.wrong.append(f"{request.label} is answered before its end is kept")
            self._promptness.answered(run_id, asked_at)
            self._answers.setdefault(request.label, []).append(answer)

    async def _until_quiet(self) -> None:
        """Return when all runs have ended and nothing goes on."""
        while True:
            while not self._is_quiet():
                await asyncio.sleep(60)
            await asyncio.sleep(120)
            if self._is_quiet():
                return

    def _is_quiet(self) -> bool:
        process = self.engine.process
        if process is None or process.is_held or self.engine.host is None:
            return False
        return all(map(self.has_ended, self._runs.values()))

    # For people

    def connect(self, client: Process) -> Exchange:
        serving = [app for app in self.apps if app.is_serving and app.process is not None]
        if not serving:
            raise BrokenError("connection refused")
        app = self._chance.choice(serving)
        assert app.process is not None
        return self._network.exchange(client, app.process, app.app)

    async def accepted(self, label: str, delay: int) -> str:
        await self._event(self._accepted, label).wait()
        await asyncio.sleep(delay / 1_000)
        return self._runs[label]

    async def ended(self, run_id: str) -> None:
        await self._event(self._ended, run_id).wait()

    def has_ended(self, run_id: str) -> bool:
        return self._event(self._ended, run_id).is_set()

    def _event(self, events: dict[str, asyncio.Event], key: str) -> asyncio.Event:
        return events.setdefault(key, asyncio.Event())

    def _tell(self, events: dict[str, asyncio.Event], key: str) -> None:
        with self._loop.outside.entered():  # whoever hears of it must not die with the teller
            self._event(events, key).set()

    async def ask(self, question: Callable[[Any], Awaitable[T]]) -> T:
        serving = [app for app in self.apps if app.is_serving and app.process is not None]
        if not serving:
            raise BrokenError("connection refused")
        app, loop = self._chance.choice(serving), self._loop
        process = app.process
        assert process is not None
        answer: asyncio.Future[T] = loop.create_future()

        async def there() -> None:
            try:
                found = await question(app.engine)
            except Exception as error:
                loop.outside.call_later(delay(self._chance), _fail, answer, error)
            else:
                loop.outside.call_later(delay(self._chance), _resolve, answer, found)

        process.call_later(delay(self._chance), lambda: process.spawn(there()))
        return await answer

    def read(self, run_id: str, event: StreamEvent) -> None:
        position = getattr(event, "position", "")
        seen = self._seen.setdefault(run_id, {})
        if position and seen.setdefault(position, event) != event:
            self._outcome.wrong.append(
                f"one reader of {run_id} sees {event}, and another one {seen[position]}"
            )

    def event_kept(self, event_id: str) -> None:
        self.watch.event_kept(self._disk.store, event_id)

    def signal_taken(self, run_id: str, number: int) -> None:
        self.watch.signal_taken(self._disk.store, run_id, number)

    def cancelled(self, run_id: str) -> None:
        self.watch.cancelled(self._disk.store, run_id, self._promptness.is_quiet)

    def pause(self) -> float:
        return 0.05 + 0.5 * self._chance.random()

    # What is seen from outside

    def body_starts(self, run_id: str, generation: int, name: str) -> None:
        self._bodies[run_id, name] += 1
        self._note(f"body of {name} of {run_id} in execution {generation}")
        self.watch.body_starts(self._disk.store, run_id, generation, name)

    def body_ends(self, run_id: str, generation: int, name: str, attempt: int) -> None:
        self.watch.body_ends(run_id, generation, name, attempt)

    def _written(self, change: Change, held: bool) -> None:
        kinds = ", ".join(type(fact).__name__ for fact in change.facts)
        self._note(
            f"{'written' if held else 'refused'}: {change.run_id} {change.generation} {kinds}"
        )
        if not held:
            return
        for fact in change.facts:
            if isinstance(fact, RunCreated | ChildCreated):
                self._begun(fact)
            self._outcome.counts[type(fact).__name__] += 1
        host = self.engine.host
        now = None if host is None else host.clock.now()
        self.watch.written(self._disk.store, change, now)
        self._promptness.written(self._disk.store, change, now)
        row = self._disk.store._rows.get(change.run_id)
        if row is not None and row.ended is not None:
            self._tell(self._ended, change.run_id)

    def _begun(self, fact: RunCreated | ChildCreated) -> None:
        label = fact.new.path.removeprefix("/run/")
        self._unsynced.append((self._disk.written, label))
        other = self._runs.setdefault(label, fact.run.id)
        if other != fact.run.id:
            self._outcome.wrong.append(f"{label} is two runs: {other} and {fact.run.id}")

    def _acknowledged(self, change: Change) -> None:
        self.watch.acknowledged(change)

    def _synced(self, count: int) -> None:
        """So many transactions cannot be lost any more: the runs in them are accepted."""
        for _, label in [one for one in self._unsynced if one[0] <= count]:
            self._tell(self._accepted, label)
        self._unsynced = [one for one in self._unsynced if one[0] > count]

    # What goes wrong

    def _step(self) -> None:
        while self._faults and self._loop.count >= self._faults[0].at:
            fault = self._faults.pop(0)
            self._note(f"*** {fault}")
            self._outcome.counts[fault.kind] += 1
            self._promptness.disturbed()
            self._happens(fault)

    def _happens(self, fault: Fault) -> None:
        random = Random(fault.amount)
        app = random.choice(self.apps)
        role = self.engine if fault.kind.endswith("server") else app
        match fault.kind.removesuffix(" server"):
            case "kill":
                role.kill(supervised(random))
            case "hold":
                role.hold(random.choice((0.05, 1.0, 20.0, 2 * LEASE)))
            case "terminate":
                role.terminate()
            case "power":
                self.engine.machine.boots += 1
                self.engine.kill(supervised(random))
                self._disk.lose_power()
                self._after_power()
            case "cut":
                exchanges = list(self._network.exchanges)
                for exchange in random.sample(exchanges, min(len(exchanges), random.randint(1, 3))):
                    exchange.cut()
            case "cut wire":
                for wire in self._network.wires:
                    if random.random() < 0.7:
                        wire.cut(random.choice((0, 0, 1.0, 25.0)))
            case "full":
                self._disk.is_full = True
                self._later(random.choice((0.05, 1, 20)), "is_full")
            case "broken":
                self._disk.is_broken = True
                self._later(random.choice((0.05, 1, 20)), "is_broken")
            case "clock":
                machine = random.choice((self.engine.machine, app.machine))
                machine.offset += random.choice((-60.0, -2.0, -0.1, 0.1, 5.0, 60.0, 3_600.0))

    def _later(self, seconds: float, flag: str) -> None:
        self._loop.outside.call_later(seconds, setattr, self._disk, flag, False)

    def _after_power(self) -> None:
        store = self._disk.store
        self.watch.power_lost(store)
        for label, run_id in list(self._runs.items()):
            if run_id not in store._rows:
                del self._runs[label]
        self._unsynced.clear()
        for run_id, event in self._ended.items():
            if run_id not in store._rows or store._rows[run_id].ended is None:
                event.clear()

    # Judging

    def _judge(self) -> None:
        wrong, store = self._outcome.wrong, self._disk.store
        wrong += [f"note: {noted}" for noted in self._noted]
        for label, run_id in self._runs.items():
            row = store._rows[run_id]
            end = row.run.status.label if row.run.reason != "timed_out" else "timed_out"
            answer = None
            if end == "completed":
                answer = self._body_of(label)
                if answer is None:
                    continue
            if (problem := self._oracle.wrong_end(label, end, answer)) is not None:
                wrong.append(problem)
            self._judge_stream(label, run_id, end)
        for label, answers in self._answers.items():
            if label not in self._runs:
                wrong.append(f"{label} was answered {answers}, and there is no run")
            elif len(set(answers)) > 1:
                wrong.append(f"clients of {label} got different answers: {answers}")
        self._judge_memory()

    def _body_of(self, label: str) -> Any:
        row = self._disk.store._rows[self._runs[label]]
        assert row.response is not None
        sealed = KEYRING.unseal(row.run.id, "response", row.response)
        status, _, body = StoredResponse.unpack(sealed)
        answers = self._answers.get(label, [])
        if answers and (answers[0].status, answers[0].body) != (status, body):
            self._outcome.wrong.append(
                f"{label} is {status} {body!r}, and clients got {answers[0]}"
            )
        return orjson.loads(body)

    def _judge_stream(self, label: str, run_id: str, end: str) -> None:
        nodes = programs(self._scenario)[label].nodes
        names = {hash_name(node.name): node.name for node in walk(nodes) if isinstance(node, Step)}
        transcript = _at_once(looking.transcript_of(self._disk.store, run_id))
        committed: dict[str, str] = {}
        for chunk in transcript.committed_chunks:
            name = OUTSIDE if chunk.step is None else names.get(chunk.step, chunk.step)
            committed[name] = committed.get(name, "") + chunk.data
        if (problem := self._oracle.wrong_stream(label, end, committed)) is not None:
            self._outcome.wrong.append(problem)

    def _judge_memory(self) -> None:
        """Nothing is left in memory of runs that have ended."""
        host = self.engine.host
        if host is None:
            self._outcome.wrong.append("the engine does not serve in the end")
            return
        left: dict[str, Any] = {
            "live runs": host.live,
            "waiters": host.waiters._waiting,
            "who holds on": host.waiters._holding_on,
            "background tasks": [
                task.get_name()
                for task in host.tasks._tasks
                if task.get_name() != "give up silent runs"  # which the server does all its life
            ],
        }
        for what, things in left.items():
            if things:
                self._outcome.wrong.append(f"left in memory: {what} {list(things)[:3]}")
        for app in self.apps:
            inside = app.process is not None and app.process.tasks
            if inside and len(inside) > 20:
                self._outcome.wrong.append(f"left in memory: {len(inside)} tasks in {app.name}")

    def _open_ends(self) -> str:
        found = []
        for run_id in self._runs.values():
            row = self._disk.store._rows[run_id]
            if row.ended is None:
                memo = list(row.steps.values())
                found.append(
                    f"\n    run {run_id} {row.run.status.label}: {looking.waits_of(row.run, memo)}"
                )
        return "".join(found)

    def _note(self, what: str) -> None:
        self._outcome.trace.append(f"{self._loop.count:6} {self._loop.time():12.6f} {what}")

    def close(self) -> None:
        """Throw everything away, in silence: what is left of dead processes unwinds now."""
        logger = logging.getLogger("durable_endpoints")
        logger.disabled = True
        hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None
        try:
            with warnings.catch_warnings(action="ignore"):
                self._loop.close()
                self.__dict__.clear()
                gc.collect()
        finally:
            sys.unraisablehook = hook
            logger.disabled = False


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


def _at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    raise AssertionError("it waits")
