"""One round: a case, the jobs that are done meanwhile, and the verdict."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from tests.chaos.matrix.boundaries import OF, Mode, Role
from tests.chaos.matrix.checks import Problem, Witness
from tests.chaos.matrix.database import look_at_remains
from tests.chaos.matrix.fleet import CLIENTS, LEASE, Fleet
from tests.chaos.matrix.jobs import make_jobs
from tests.chaos.matrix.proxy import DAMAGES, Damage

Signal = Literal["SIGKILL", "SIGSTOP", "SIGTERM"]
Link = Literal["client-app", "app-server"]

PATIENCE: Final = 60.0
"""Seconds in which the clients of one batch must have their answers: more means stuck."""
_BATCHES: Final = 5
"""Batches of jobs after which a boundary that was not crossed often enough counts as missed."""
_VICTIMS: Final[dict[Role, tuple[str, str]]] = {
    "app": ("app", "other"),
    "server": ("server", "server"),
    "client": CLIENTS,
}
LINKS: Final[dict[Link, tuple[str, str]]] = {
    "client-app": ("alice-app", "bob-app"),
    "app-server": ("app-server", "other-server"),
}
LONG: Final = 1.6 * LEASE
"""Seconds: a process that is away for longer than its lease loses its runs."""
_SELDOM: Final = frozenset({"before-sync", "mid-stream", "mid-answer"})


class Crash(NamedTuple):
    """A process sends itself a signal at its n-th crossing of a boundary."""

    victim: Role
    boundary: str
    signal: Signal
    crossing: int
    away: float = 0.0
    """Seconds until it goes on, or is started again."""
    takes_all: bool = False
    """Everything else that serves is killed with it, as when the machine goes down."""
    which: int = 0
    """The first or the second one of its kind."""

    @property
    def title(self) -> str:
        everybody = " and everybody" if self.takes_all else ""
        return f"{self.signal} {self.victim} {self.boundary}{everybody}"

    @property
    def place(self) -> str:
        return _VICTIMS[self.victim][self.which]


class Break(NamedTuple):
    """A proxy does damage."""

    link: Link
    damage: Damage
    times: int
    which: int = 0

    @property
    def title(self) -> str:
        return f"{self.damage} {self.link}"

    @property
    def place(self) -> str:
        return LINKS[self.link][self.which]


Fault = Crash | Break


class Case(NamedTuple):
    """What happens in one round. Faults of one victim follow each other."""

    mode: Mode
    faults: tuple[Fault, ...]

    @property
    def title(self) -> str:
        return f"{self.mode}: {', '.join(fault.title for fault in self.faults)}"


class Verdict(NamedTuple):
    """What came of a round."""

    case: Case
    problems: list[Problem]
    missed: list[Fault]
    """Faults that did not happen: the boundary was not crossed so often."""
    runs: int
    bodies: int
    late: int
    """Bodies of an execution that had lost its run, and could not know it yet."""


def choose(chance: random.Random) -> Case:
    """One case at random: one to three faults."""
    mode: Mode = chance.choice(("embedded", "server"))
    return Case(
        mode, tuple(_choose_fault(chance, mode) for _ in range(chance.choice((1, 1, 2, 3))))
    )


def _choose_fault(chance: random.Random, mode: Mode) -> Fault:
    links: list[Link] = ["client-app"] if mode == "embedded" else [*LINKS]
    roles: list[Role] = ["app", "client"] if mode == "embedded" else ["app", "server", "client"]
    if chance.random() < 0.25:
        return Break(
            chance.choice(links),
            chance.choice(DAMAGES),
            chance.randint(1, 12),
            chance.randint(0, 1),
        )
    role = chance.choice(roles)
    boundary = chance.choice(OF[mode, role])
    crossing = chance.randint(1, 4 if boundary in _SELDOM else 25)
    which = chance.randint(0, 1) if mode == "server" or role == "client" else 0
    if role == "client":
        number: Signal = chance.choice(("SIGKILL", "SIGSTOP"))
        return Crash(role, boundary, number, crossing, which=which)
    number = chance.choice(("SIGKILL", "SIGKILL", "SIGKILL", "SIGSTOP", "SIGTERM"))
    away = chance.choice((0.0, 0.0, 0.4, LONG))
    takes_all = number == "SIGKILL" and mode == "server" and chance.random() < 0.2
    return Crash(role, boundary, number, crossing, away, takes_all, which)


async def play(fleet: Fleet, case: Case, prefix: str, chance: random.Random) -> Verdict:
    """Let a case happen, and look what came of it. `prefix` names the jobs."""
    witness = Witness(fleet, prefix)
    fleet.on_death = lambda name: (
        witness.looks.append(look_at_remains(fleet.database)) if name == fleet.owner else None
    )
    waiting = [asyncio.create_task(_inflict(fleet, faults, chance)) for faults in _by_place(case)]
    try:
        await _work(fleet, witness, case, waiting, prefix, chance)
    finally:
        for task in waiting:
            task.cancel()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        fleet.disarm()
    missed = [
        fault for outcome in outcomes if isinstance(outcome, Missed) for fault in outcome.left
    ]
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, Missed):
            raise outcome
    try:
        await fleet.ready()
    except TimeoutError:
        witness.problems.append(Problem("stuck", "a process that was started takes no requests"))
    await witness.until_all_ended()
    witness.check()
    return Verdict(
        case, witness.problems, missed, witness.run_count, witness.body_count, witness.late
    )


async def _work(
    fleet: Fleet,
    witness: Witness,
    case: Case,
    waiting: Sequence[asyncio.Task[None]],
    prefix: str,
    chance: random.Random,
) -> None:
    """Have jobs done until all faults have happened."""
    for batch in range(_BATCHES):
        name = f"{prefix}-{batch}"
        jobs = make_jobs(chance, name, _last(case))
        witness.jobs += jobs
        done = fleet.start_clients(name, jobs)
        for client in CLIENTS:
            witness.records.append((client, fleet.records(client, name)))
        try:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*(event.wait() for event in done))
        except TimeoutError:
            witness.note_waiting(name)
            for client in CLIENTS:
                fleet.give_up(client)
            return
        if all(task.done() for task in waiting):
            return


def _last(case: Case) -> str:
    """The job to be done alone at the end: a sync is not due while others commit all the time."""
    is_wanted = any(isinstance(one, Crash) and one.boundary == "before-sync" for one in case.faults)
    return "murmur" if is_wanted else ""


class Missed(Exception):
    """The jobs were over before these faults."""

    def __init__(self, left: Sequence[Fault]) -> None:
        super().__init__()
        self.left = left


def _by_place(case: Case) -> list[list[Fault]]:
    places: dict[str, list[Fault]] = {}
    for fault in case.faults:
        places.setdefault(fault.place, []).append(fault)
    return list(places.values())


async def _inflict(fleet: Fleet, faults: list[Fault], chance: random.Random) -> None:
    """Let the faults of one place happen, one after the other."""
    for n, fault in enumerate(faults):
        try:
            if isinstance(fault, Crash):
                await _crash(fleet, fault)
            else:
                await _break(fleet, fault, chance)
        except asyncio.CancelledError:
            raise Missed(faults[n:]) from None


async def _crash(fleet: Fleet, crash: Crash) -> None:
    board = fleet.boards[crash.place]
    fleet.away[crash.place] = crash.away
    board.arm(crash.boundary, crash.crossing, signal.Signals[crash.signal])
    while not board.has_fired(crash.boundary):
        await asyncio.sleep(0.01)
    if crash.takes_all:
        fleet.kill_all()


async def _break(fleet: Fleet, damage: Break, chance: random.Random) -> None:
    proxy = fleet.proxies[damage.place]
    proxy.begin(damage.damage, damage.times, random.Random(chance.random()))
    while proxy.struck < damage.times:
        await asyncio.sleep(0.01)
