"""One history: a scenario, faults and a schedule, played until nothing is left to happen."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import NamedTuple

from durable_endpoints_server.engine.model import Policy
from tests.simulation.model.books import ViolationError
from tests.simulation.model.checker import Checker
from tests.simulation.model.faults import MESSAGES, Fault, random_faults
from tests.simulation.model.host import Host
from tests.simulation.model.loop import Loop, Process, RestlessError
from tests.simulation.model.people import Network, People
from tests.simulation.model.relay import Relay
from tests.simulation.model.telling import BEGIN
from tests.simulation.programs import PATIENT, Scenario, programs, random_scenario

_LIMIT = 20_000
_APART = 20_000
"""Milliseconds by which the clocks of partitions differ at the most, at first."""
_PATIENCE = 100
"""Actions for which a loss of power waits for something to lose."""


class Plan(NamedTuple):
    """Everything that decides what happens."""

    scenario: Scenario
    faults: tuple[Fault, ...]
    schedule: int
    """The seed of all delays and orders."""
    partitions: int = 1
    """How many stores the runs are spread over, each with a process and a clock."""


class Outcome(NamedTuple):
    """What came of a history."""

    violation: str | None
    trace: list[str]
    seen: Counter[str]
    """Faults, kinds of facts and states that occurred."""
    actions: int


def plan_of(seed: int, partitions: int = 1) -> Plan:
    """The history with this number."""
    random = Random(seed)
    scenario, faults = random_scenario(random), random_faults(random)
    return Plan(scenario, faults, random.getrandbits(32), partitions)


def play(plan: Plan, is_traced: bool = False) -> Outcome:
    """Play a history, and say which promise it broke, if any."""
    history = _History(plan, is_traced)
    violation = None
    try:
        history.run()
    except ViolationError as error:
        violation = str(error)
    except RestlessError as error:
        violation = f"{error}: {history.checker.unfinished() or 'all runs have ended'}"
    return Outcome(violation, history.loop.trace or [], history.checker.seen, history.loop.actions)


class _History:
    def __init__(self, plan: Plan, is_traced: bool) -> None:
        random = Random(plan.schedule)
        self.loop = loop = Loop(random, _LIMIT)
        if is_traced:
            loop.trace = []
        policy = Policy(
            quarantine_after=random.choice((1, 3)),
            park_after=random.choice((1, 3)),
            event_retention=10 * PATIENT,
        )
        self.checker = checker = Checker(plan.scenario, policy)
        known = programs(plan.scenario)
        hosts: list[Host] = []
        self._hosts = hosts
        relay = Relay(loop, hosts)
        for number in range(plan.partitions):
            offset = BEGIN + (random.randrange(_APART) if number else 0)
            host = Host(f"machine {number}", loop, offset, policy, checker, known, relay)
            hosts.append(host)
        homes = {host.disk: host for host in hosts}
        checker.keeps = lambda disk, run_id: homes[disk].keeps(run_id)
        for host in hosts:
            host.start()
        self._faults = [fault for fault in plan.faults if fault.kind not in MESSAGES]
        messages = {fault.at: fault for fault in plan.faults if fault.kind in MESSAGES}
        people = Process("people")
        network = Network(loop, people, messages, checker.seen)
        People(loop, people, checker, network, hosts, relay.home_of, plan.scenario)

    def run(self) -> None:
        self.loop.run(self._before_action)
        self.checker.check_end([host.disk for host in self._hosts])

    def _before_action(self) -> None:
        while self._faults and self._faults[0].at <= self.loop.actions:
            if self._is_better_later(self._faults[0]):
                return
            fault = self._faults.pop(0)
            self.checker.seen[fault.kind] += 1
            self._victim(fault).suffer(fault)

    def _victim(self, fault: Fault) -> Host:
        return self._hosts[fault.at % len(self._hosts)]

    def _is_better_later(self, fault: Fault) -> bool:
        """Power goes when that hurts: when something written was not synced, if that is soon."""
        is_early = self.loop.actions < fault.at + _PATIENCE
        return fault.kind == "reboot" and is_early and not self._victim(fault).disk.has_unsynced
