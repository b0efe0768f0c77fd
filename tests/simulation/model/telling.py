"""A history in words, for somebody who has never seen one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from durable_endpoints.protocol.ops import StepRecord, StepState
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    AttemptFailed,
    Change,
    ChildCreated,
    EventReceived,
    EventSettled,
    EventUsed,
    Fact,
    RunChanged,
    RunCreated,
    RunEnded,
    StepResolved,
    StepWritten,
    Streamed,
    StreamSkipped,
    WaitOpened,
)
from durable_endpoints_server.engine.model import Run
from tests.simulation.model.faults import MESSAGES, Fault
from tests.simulation.programs import (
    Invoke,
    Node,
    Parallel,
    Program,
    Push,
    Request,
    Send,
    Signal,
    Sleep,
    Step,
    Stumble,
    Wait,
    WaitAny,
)

if TYPE_CHECKING:
    from tests.simulation.model.history import Plan

BEGIN: Final = 1_700_000_000_000
"""Where clocks begin, in epoch milliseconds."""

_LEGEND: Final = """\
Times are virtual, in milliseconds since the beginning; @1,234 is an instant of engine time. A run
is called after its request: 0#3 is the run of request 0, which was the third to arrive at a server;
0#3/invoke2 is the one that its step `invoke2` has invoked. "0#3 at 4" is written by whoever knows
that run at its generation 4. An action is whatever happens in the world next."""
_FAULTS: Final = {
    "crash": "the process is killed, and started again {} ms later",
    "reboot": "the machine loses its power, and is started again {} ms later",
    "stop": "the process is stopped for {} ms",
    "replace": (
        "the process is stopped for longer than its lease; another one takes its runs over, and "
        "{} ms later the first one goes on"
    ),
    "drain": "the process is ended politely, and started again {} ms after that",
    "full": "the disk is full for {} ms",
    "refuse": "the next {} writes fail",
    "slow": "the disk takes up to {} ms longer for each write, for a while",
    "step": "the clock is set forward by {} ms",
    "back": "the clock is set back by {} ms",
    "break": "for {} ms, executions find that they cannot go on",
    "lose": "is lost, or its answer",
    "repeat": "is delivered a second time, {} ms later",
    "delay": "comes {} ms later",
}


def told_plan(plan: Plan) -> Iterator[str]:
    """What is to happen, and what goes wrong."""
    yield _LEGEND
    scenario = plan.scenario
    yield "\nWHAT IS PLAYED"
    if plan.partitions > 1:
        yield f"Runs are spread over {plan.partitions} stores."
    for request in scenario.requests:
        yield from _told_request(request)
    for event in scenario.events:
        whom, copies = event.key or "nobody", event.copies
        yield (
            f"Event {event.id}, {event.event} for {whom}, number {event.number}, is sent "
            f"{event.delay:,} ms after run {event.after} was accepted"
            + ("." if copies == 1 else f", {_times(copies)}.")
        )
    for given in scenario.signals:
        yield (
            f"Signal {given.signal}, number {given.number}, is sent {given.delay:,} ms after run "
            f"{given.after} was accepted."
        )
    for cancel in scenario.cancels:
        yield f"Run {cancel.label} is cancelled {cancel.delay:,} ms after it was accepted."
    if plan.faults:
        yield "\nWHAT GOES WRONG"
    for fault in plan.faults:
        yield _told_fault(fault)


def _told_request(request: Request) -> Iterator[str]:
    key = f" with the key {request.key}" if request.key is not None else ""
    again = "".join(f", and again {after:,} ms later" for after in request.repeats)
    reader = " Somebody reads its stream." if request.reads_stream else ""
    yield f"Request {request.label} is made at {request.at:,}{key}{again}.{reader} Its handler:"
    yield from _told_program(request.program, "    ")


def _told_program(program: Program, margin: str) -> Iterator[str]:
    options = [f"{program.retries} retries"]
    if program.max_runtime is not None:
        options.append(f"{program.max_runtime:,} ms at the most")
    if program.is_background:
        options.append('checkpoint="background"')
    yield f"{margin}({', '.join(options)})"
    for node in program.nodes:
        yield from _told_node(node, margin)


def _told_node(node: Node, margin: str) -> Iterator[str]:
    match node:
        case Step():
            yield f"{margin}{node.name}: {_told_step(node)}"
        case Sleep():
            yield f"{margin}{node.name}: sleeps for {node.duration:,} ms"
        case Wait() | WaitAny():
            events = node.event if isinstance(node, Wait) else " or ".join(node.events)
            wanted = events if node.key is None else f"{events} for {node.key}"
            yield f"{margin}{node.name}: waits for {wanted}, {node.timeout:,} ms at the most"
        case Signal():
            yield f"{margin}{node.name}: waits for {node.signal}, {node.timeout:,} ms at the most"
        case Send():
            yield f"{margin}{node.name}: sends {node.event} for {node.key}, number {node.number}"
        case Push():
            yield f"{margin}streams {list(node.chunks)} outside of a step"
        case Stumble():
            yield f"{margin}raises {_times(node.times)}, then goes on"
        case Invoke():
            limit = "" if node.timeout is None else f", {node.timeout:,} ms at the most"
            caught = "" if node.is_caught else ", and fails with it"
            yield f"{margin}{node.name}: invokes another run{limit}{caught}:"
            yield from _told_program(node.program, margin + "    ")
        case Parallel():
            yield f"{margin}at the same time:"
            for number, branch in enumerate(node.branches, 1):
                for inner in branch:
                    for line in _told_node(inner, "  "):
                        yield f"{margin}  {number} {line}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _told_step(node: Step) -> str:
    if node.is_fatal:
        outcome = "fails for good"
    elif node.failures:
        outcome = f"fails {_times(node.failures)}, then returns {node.value}"
    else:
        outcome = f"returns {node.value}"
    took = f" after {node.takes} ms" if node.takes else ""
    streams = f", and streams {list(node.chunks)}" if node.chunks else ""
    return outcome + took + streams + ("" if node.is_caught else "; a failure ends the run")


def in_words(fault: Fault) -> str:
    """What goes wrong."""
    return _FAULTS[fault.kind].format(f"{fault.amount:,}")


def _told_fault(fault: Fault) -> str:
    if fault.kind in MESSAGES:
        return f"Message {fault.at} {in_words(fault)}."
    return f"Before action {fault.at}, {in_words(fault)}."


def told_change(change: Change) -> str:
    """What was written, in one line."""
    who = f"{change.run_id} at {change.generation}: " if change.generation is not None else ""
    return who + "; ".join(_told_fact(fact) for fact in change.facts)


def _told_fact(fact: Fact) -> str:
    match fact:
        case RunCreated(run):
            return f"run {run.id} is registered, and {_told_run(run)}"
        case ChildCreated(run):
            return f"run {run.id} is invoked, and {_told_run(run)}"
        case RunChanged(run):
            return f"run {run.id} is now {_told_run(run)}"
        case RunEnded(run):
            return f"run {run.id} has ended: {_told_run(run)}"
        case StepWritten(step):
            return _step_in_words(step)
        case StepResolved(step):
            return f"{_step_in_words(step)} (resolved)"
        case Streamed(records):
            said = [_told_record(record) for record in records]
            return "stream: " + (", ".join(said) or "nothing new, but how it goes on")
        case StreamSkipped():
            return f"the stream leaves {fact.positions:,} positions out"
        case WaitOpened():
            return f"{fact.step} waits for {fact.alternative.event}"
        case AttemptFailed():
            return f"try {fact.attempt} of {fact.step} has failed"
        case EventReceived(event):
            return f"event {event.id}, {event.name}, was received at {event.received_at}"
        case EventUsed():
            return f"by event {fact.event_id}"
        case EventSettled():
            return f"event {fact.event_id} needs no more matching"
    return type(fact).__name__


def _told_run(run: Run) -> str:
    return f"{run.status.label}, generation {run.generation}" + (run.reason and f" ({run.reason})")


def _step_in_words(step: StepRecord) -> str:
    if step.state is StepState.DONE:
        return f"{step.id} is done: {(step.value or b'').decode()}"
    if step.state is StepState.FAILED:
        return f"{step.id} has failed for good, by try {step.attempt}"
    if step.due is None:
        return f"{step.id} may go on" if step.attempt or step.order else f"{step.id} is open"
    return f"{step.id} waits until {step.due}"


def _told_record(record: StreamRecord) -> str:
    what = f"{record.position} {record.kind.name.lower()}"
    said = f" {record.data.decode()}" if record.kind is RecordKind.DATA else ""
    return f"{what} of {record.step or 'the handler'}{said}"


def with_short_instants(text: str) -> str:
    """A text with instants that say how long after the beginning they are."""
    return re.sub(r"\b17\d{11}\b", lambda found: f"@{int(found[0]) - BEGIN:,}", text)
