"""What must come of a scenario, computed from its programs alone, whatever goes wrong meanwhile.

Most of it is exact: what a step returns, how many of its tries count, what is permanent of what was
streamed. What depends on when things happen (an event sent around a deadline, a cancellation, a
timeout) has several right outcomes, and the oracle knows which; that the right one of them came
about is for whoever knows the times.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.simulation.programs import (
    PATIENT,
    Event,
    Invoke,
    Node,
    Parallel,
    Program,
    Push,
    Scenario,
    Send,
    Signal,
    Step,
    Stumble,
    Wait,
    WaitAny,
    programs,
    walk,
)

OUTSIDE = ""
"""Stands for the step of what a handler's own code streams."""


def tries_of(step: Step, retries: int) -> int:
    """How many tries of a step count, if it ends."""
    return 1 if step.is_fatal else min(step.failures, retries) + 1


def succeeds(step: Step, retries: int) -> bool:
    """Whether a step returns in the end."""
    return not step.is_fatal and step.failures <= retries


class _Wrong(Exception):
    """An answer is not among the right ones."""


class _Fate(NamedTuple):
    """How nodes may end."""

    may_pass: bool
    culprits: frozenset[str]
    """The nodes whose failure may end the run."""


class Oracle:
    """The right outcomes of one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self._programs = programs(scenario)
        self._events: list[tuple[str, str, int]] = [
            (event.event, event.key, event.number) for event in scenario.events
        ]
        for program in self._programs.values():
            for node in walk(program.nodes):
                if isinstance(node, Send):
                    self._events.append((node.event, node.key, node.number))
        self._outside = scenario.events
        self._signals = {given.signal: given.number for given in scenario.signals}
        self._cancels = {cancel.label for cancel in scenario.cancels}

    @property
    def labels(self) -> Iterable[str]:
        """The labels of all runs that there may be."""
        return self._programs.keys()

    # How a run ends

    def ends(self, label: str) -> frozenset[str]:
        """The ways in which a run may end: `completed`, `failed`, `timed_out`, `cancelled`."""
        program = self._programs[label]
        fate = self._fate(label, program, program.nodes)
        found = set()
        if fate.may_pass:
            found.add("completed")
        if fate.culprits:
            found.add("failed")
        if program.max_runtime is not None:
            found.add("timed_out")
        if self._may_be_cancelled(label):
            found.add("cancelled")
        return frozenset(found)

    def _may_be_cancelled(self, label: str) -> bool:
        parent, _, name = label.rpartition("/")
        if not parent:
            return label in self._cancels
        above = self._programs[parent]
        if above.max_runtime is not None or self._may_be_cancelled(parent):
            return True
        return any(
            isinstance(node, Invoke) and node.name == name and node.timeout is not None
            for node in walk(above.nodes)
        )

    def _fate(self, label: str, program: Program, nodes: Sequence[Node]) -> _Fate:
        culprits: set[str] = set()
        for node in nodes:
            if isinstance(node, Step) and not node.is_caught:
                if not succeeds(node, program.retries):
                    return _Fate(False, frozenset({*culprits, node.name}))
            elif isinstance(node, Invoke) and not node.is_caught:
                ends = self.ends(f"{label}/{node.name}")
                if ends != {"completed"}:
                    culprits.add(node.name)
                if "completed" not in ends:
                    return _Fate(False, frozenset(culprits))
        return _Fate(True, frozenset(culprits))

    def wrong_end(self, label: str, end: str, answer: object) -> str | None:
        """What is wrong with how a run has ended, or None. `answer` is what its handler answered,
        as JSON; of a failed one, the name of the node at which it failed, if that is known."""
        ends = self.ends(label)
        if end not in ends:
            return f"run {label} is {end}; right would be {' or '.join(sorted(ends))}"
        program = self._programs[label]
        if end == "completed":
            try:
                self._check_all(label, program.nodes, answer, set())
            except _Wrong as wrong:
                return f"run {label} answered {answer}: {wrong}"
        elif end == "failed" and answer is not None:
            culprits = self._fate(label, program, program.nodes).culprits
            if answer not in culprits:
                return f"run {label} failed at {answer}; right would be {sorted(culprits)}"
        return None

    # What a handler answers

    def _check_all(
        self, label: str, nodes: Sequence[Node], answers: object, used: set[int]
    ) -> None:
        """`used` are the events that ended earlier waits of this branch; those of these nodes are
        added."""
        if not isinstance(answers, list) or len(answers) != len(nodes):
            raise _Wrong(f"{answers} is not a list of {len(nodes)}")
        for node, answer in zip(nodes, answers, strict=True):
            if isinstance(node, Parallel):
                self._check_branches(label, node, answer, used)
            elif isinstance(node, Invoke):
                self._check_invocation(label, node, answer)
            elif isinstance(node, Wait | WaitAny):
                self._check_wait(label, node, answer, used)
            else:
                right = self._rights(label, node)
                if answer not in right:
                    raise _Wrong(f"{answer} for {_name(node)}; right would be {right}")

    def _check_branches(
        self, label: str, parallel: Parallel, answers: object, used: set[int]
    ) -> None:
        if not isinstance(answers, list) or len(answers) != len(parallel.branches):
            raise _Wrong(f"{answers} is not a list of {len(parallel.branches)} branches")
        before = set(used)
        for branch, answer in zip(parallel.branches, answers, strict=True):
            own = set(before)
            self._check_all(label, branch, answer, own)
            used |= own

    def _check_invocation(self, label: str, node: Invoke, answer: object) -> None:
        ends = self.ends(f"{label}/{node.name}")
        if answer == {"error": node.name}:
            if not node.is_caught or ends == {"completed"}:
                raise _Wrong(f"{answer} for {node.name}, which cannot fail")
        elif "completed" not in ends:
            raise _Wrong(f"{answer} for {node.name}, which can only fail")
        else:
            self._check_all(f"{label}/{node.name}", node.program.nodes, answer, set())

    def _check_wait(self, label: str, node: Wait | WaitAny, answer: object, used: set[int]) -> None:
        if answer is None:
            if self.is_certain(label, node):
                raise _Wrong(f"{node.name} timed out, though what it waits for came")
            return
        if isinstance(node, Wait):
            event, number = node.event, answer
        elif isinstance(answer, list) and len(answer) == 2 and answer[0] in node.events:
            event, number = answer
        else:
            raise _Wrong(f"{answer} for {node.name}")
        found = [
            known for name, key, known in self._events if name == event and node.key in (None, key)
        ]
        if number not in found or not isinstance(number, int):
            raise _Wrong(f"{answer} for {node.name}; right would be one of {found}")
        if number in used:
            raise _Wrong(f"event {number} ended a wait before {node.name} already")
        used.add(number)

    def is_certain(self, label: str, node: Wait | WaitAny) -> bool:
        """Whether a wait must get an event: it waits long enough, and as many events are sent for
        this run as there are waits which may take them."""
        if node.timeout < PATIENT:
            return False
        program = self._programs[label]
        before = _before(program.nodes, node) or []
        for event in _events(node):
            sent = sum(self._is_for(label, one, event) for one in self._outside)
            sent += sum(
                isinstance(one, Send) and (one.event, one.key) == (event, label) for one in before
            )
            takers = sum(
                isinstance(one, Wait | WaitAny) and event in _events(one)
                for one in walk(program.nodes)
            )
            if sent >= takers:
                return True
        return False

    def _is_for(self, label: str, sent: Event, event: str) -> bool:
        return (sent.after, sent.event, sent.key) == (label, event, label)

    def _rights(self, label: str, node: Node) -> list[object]:
        """The right answers of a node that is not made of others."""
        if isinstance(node, Step):
            if succeeds(node, self._programs[label].retries):
                return [node.value]
            return [{"error": node.name}]
        if isinstance(node, Signal):
            number = self._signals.get(node.signal)
            if number is None:
                return [None]
            return [number] if node.timeout >= PATIENT else [number, None]
        return [None]

    # What a run streams

    def committed(self, label: str) -> dict[str, str]:
        """The text that is permanent once the run has completed, by the step that streamed it, and
        `OUTSIDE` for the handler's own."""
        program, found = self._programs[label], {OUTSIDE: ""}
        for node in walk(program.nodes):
            if isinstance(node, Push):
                found[OUTSIDE] += "".join(node.chunks)
            elif isinstance(node, Step) and succeeds(node, program.retries) and node.chunks:
                found[node.name] = "".join(node.chunks)
        return found

    def wrong_stream(self, label: str, end: str, committed: Mapping[str, str]) -> str | None:
        """What is wrong with the permanent text of a run that has ended, or None."""
        right = self.committed(label)
        for source in {*right, *committed}:
            text, whole = committed.get(source, ""), right.get(source, "")
            if text == whole or (end != "completed" and text == ""):
                continue
            if end != "completed" and source == OUTSIDE and whole.startswith(text):
                continue
            name = source or "its own code"
            return f"run {label}, {end}: {name} streamed {text!r}; right would be {whole!r}"
        return None


def _events(node: Wait | WaitAny) -> tuple[str, ...]:
    return (node.event,) if isinstance(node, Wait) else node.events


def _name(node: Node) -> str:
    return type(node).__name__ if isinstance(node, Push | Stumble | Parallel) else node.name


def _before(nodes: Sequence[Node], wanted: Node) -> list[Node] | None:
    """The nodes that have ended before `wanted` begins; None if it is not among `nodes`."""
    passed: list[Node] = []
    for node in nodes:
        if node is wanted:
            return passed
        if isinstance(node, Parallel):
            for branch in node.branches:
                if (inside := _before(branch, wanted)) is not None:
                    return passed + inside
        passed += walk((node,))
    return None
