"""A machine: its disk and its clock, and the process on it, which ends and is started again."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from durable_endpoints_server.engine.facts import Change
from durable_endpoints_server.engine.model import Policy
from tests.simulation.model.app import App
from tests.simulation.model.checker import Checker
from tests.simulation.model.disk import Disk, read
from tests.simulation.model.engine import Engine, Surroundings
from tests.simulation.model.faults import Fault
from tests.simulation.model.loop import MS, Clock, Future, Loop, Process
from tests.simulation.model.relay import Relay
from tests.simulation.model.telling import in_words
from tests.simulation.programs import Program

_DRAIN = 3_000
"""Milliseconds that a process has to end politely."""
_AFTERWARDS = 30_000
"""The same for all to be as ever after something went wrong: alarms nap as long."""
_AFTERLIFE = 5_000
"""The same for one that was replaced while it was held, and goes on."""


class Host:
    """One machine with one process."""

    def __init__(
        self,
        name: str,
        loop: Loop,
        offset: int,
        policy: Policy,
        checker: Checker,
        programs: Mapping[str, Program],
        relay: Relay,
    ) -> None:
        self.name = name
        self.calls: list[Future] = []
        """Calls that may not have been answered."""
        self._loop = loop
        self._policy = policy
        self._checker = checker
        self._programs = programs
        self._machine = Process(f"{name} itself")
        self._process = Process(name)
        self._replaced: list[Process] = []
        """Processes that were held for longer than their lease, and are still there."""
        self._boots = self._starts = 0
        self._relay = relay
        self.clock = Clock(loop, offset)
        self.disk = Disk(loop, self.clock, self._witness, checker.seen)
        self.disk.localized = lambda change: relay.localized(self, change)

    def _witness(self, change: Change, by_replaced: bool) -> None:
        self._checker.written(self.disk, change, by_replaced)
        self._relay.written(self, change)

    def keeps(self, run_id: str) -> bool:
        """Whether a run is kept here, and not in another partition."""
        return self._relay.home_of(run_id) is self

    @property
    def is_up(self) -> bool:
        return self._process.is_alive

    def start(self) -> None:
        """Start the process, if it is not there."""
        if not (self._starts and self.is_up):
            self._launch()

    def _launch(self) -> None:
        self._starts += 1
        self._loop.say(f"{self.name} starts")
        self._process = Process(self.name)
        went_back = self.clock.begin(read(self.disk.store.newest()))
        surroundings = Surroundings(self._loop, self.clock, self.disk, self._policy)
        owner = f"boot{self._boots}/{self.name}:{self._starts}"
        self.engine = Engine(
            surroundings,
            self._process,
            owner,
            lambda live, entry: self.app.execute(live, entry),
            is_here=self.keeps,
            cancel_elsewhere=self._relay.cancel,
        )
        self._checker.launched(self.disk, owner, went_back)
        self.app = App(self.engine, self._checker, self._programs)
        self.engine.start()

    def suffer(self, fault: Fault) -> None:
        """Let something go wrong."""
        self._loop.say(f"{self.name}: {in_words(fault)}")
        getattr(self, f"_{fault.kind}")(fault.amount)
        over = self._loop.now + (2 * fault.amount + _AFTERWARDS) * MS
        self.disk.quiet_since = max(self.disk.quiet_since, over)

    def _later(self, milliseconds: int, call: Callable[..., None], *args: object) -> None:
        self._loop.later(self._machine, milliseconds * MS, call, *args)

    def _crash(self, amount: int) -> None:
        self._kill()
        self._later(amount, self.start)

    def _kill(self) -> None:
        self._loop.kill(self._process)
        self._break_calls()

    def _break_calls(self) -> None:
        for call in self.calls:
            self._later(0, call.set, ("broken", None))
        self.calls = []

    def _reboot(self, amount: int) -> None:
        self._kill()
        for process in self._replaced:
            self._loop.kill(process)
        self._boots += 1
        lost = self.disk.lose_power()
        self._loop.say(f"{lost} changes are lost")
        if lost:
            self._checker.power_was_lost(self.disk)
        self._later(amount, self.start)

    def _stop(self, amount: int) -> None:
        self._process.is_stopped = True
        self._later(amount, self._resume, self._process)

    def _resume(self, process: Process) -> None:
        if process not in self._replaced:
            self._loop.resume(process)

    def _replace(self, amount: int) -> None:
        """The process is held until its lease has ended. Once another one has taken its runs over,
        it goes on for a while, and knows of nothing."""
        if not self.is_up:
            return
        former, engine = self._process, self.engine
        former.is_stopped = True
        self._replaced.append(former)
        self._break_calls()
        self._launch()
        self._later(amount, self._wake, former, engine)

    def _wake(self, process: Process, engine: Engine) -> None:
        if not self.engine.has_taken_over:
            self._later(_DRAIN, self._wake, process, engine)
        elif process.is_alive:
            self._loop.say(f"the former process of {self.name} goes on")
            engine.is_draining = True
            self._loop.resume(process)
            self._later(_AFTERLIFE, self._loop.kill, process)

    def _drain(self, amount: int) -> None:
        if self.is_up:
            self.app.is_draining = self.engine.is_draining = True
            process = self._process
            self._later(_DRAIN, self._end, process, amount)

    def _end(self, process: Process, amount: int) -> None:
        if process is self._process and process.is_alive:
            self._crash(amount)

    def _refuse(self, amount: int) -> None:
        self.disk.failing = amount

    def _full(self, amount: int) -> None:
        self.disk.is_full = True
        self._later(amount, self._mend_disk)

    def _mend_disk(self) -> None:
        self.disk.is_full = False

    def _slow(self, amount: int) -> None:
        self.disk.slowness = amount * MS
        self._later(2 * amount, self._hasten)

    def _hasten(self) -> None:
        self.disk.slowness = 0

    def _step(self, amount: int) -> None:
        self.clock.step(amount)

    def _back(self, amount: int) -> None:
        self.clock.step(-amount)

    def _break(self, amount: int) -> None:
        self.app.is_broken = True
        self._later(amount, self._unbreak)

    def _unbreak(self) -> None:
        self.app.is_broken = False
