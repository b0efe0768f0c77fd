from __future__ import annotations

import pytest

from durable_endpoints.protocol.errors import LimitError, LostRunError
from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    SendEvent,
    Sleep,
    StepDone,
    StepFailed,
    StepKind,
    StepRecord,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import StepId, hash_name
from durable_endpoints_server.engine.facts import (
    ChildCreated,
    EventReceived,
    EventUsed,
    RunEnded,
    StepResolved,
    StepWritten,
    StreamSkipped,
    WaitOpened,
)
from durable_endpoints_server.engine.model import Policy, Run, Status
from durable_endpoints_server.engine.transitions import (
    RULES,
    STREAM_SKIP,
    Cancel,
    Claim,
    Command,
    Complete,
    Expire,
    Fail,
    Interrupt,
    Release,
    Resolve,
    Retry,
    Suspend,
    decide,
    in_quarantine,
    register,
    resolve_all,
)

POLICY = Policy()
NEW = NewRun("r", "f", "", "GET", "/", b"")
STEP = StepId(hash_name("s"), "s", 0)
OTHER = StepId(hash_name("t"), "t", 0)
SLEEPING = StepRecord(STEP, StepKind.SLEEP, StepState.PENDING, due=50, began_at=1)
WAITING = StepRecord(OTHER, StepKind.WAIT, StepState.PENDING, due=50, began_at=1)
INVOKED = StepRecord(STEP, StepKind.INVOKE, StepState.PENDING, due=50, began_at=1)
RETRYING = StepRecord(STEP, StepKind.RUN, StepState.RETRYING, attempt=1, due=50)


def running(**changes: object) -> Run:
    return register(NEW, "me", None, 1_000).run._replace(**changes)


def after(run: Run, *commands: Command, now: int = 2_000, policy: Policy = POLICY) -> Run:
    for command in commands:
        run = decide(run, command, now, policy).run
    return run


def test_a_new_run_is_running_in_its_first_generation() -> None:
    run = register(NEW._replace(max_runtime=500, elapsed=30), "me", None, 1_000).run
    assert (run.status, run.generation, run.owner) == (Status.RUNNING, 1, "me")
    assert run.began_at == 970
    assert run.deadline == 1_470


COMMANDS: list[Command] = [
    StepDone(STEP, StepKind.RUN, b"1"),
    Invoke(STEP, NEW),
    Suspend(),
    Release("x"),
    Complete(200, b""),
    Fail("x", None),
    Interrupt(alone=True),
    Claim("me", None),
    Resolve(SLEEPING),
    Expire(),
    Cancel("x"),
    Retry(),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
@pytest.mark.parametrize("status", list(Status), ids=lambda status: status.label)
def test_the_table_decides_what_is_possible(command: Command, status: Status) -> None:
    run = running(status=status)
    if RULES[type(command)].allowed >> status & 1:
        decision = decide(run, command, 2_000, POLICY)
        change = decision.change
        assert (change.run_id, change.generation) == (run.id, run.generation)
        assert change.states == 1 << status
        assert change.facts
    else:
        with pytest.raises(LostRunError):
            decide(run, command, 2_000, POLICY)


def test_each_command_is_possible_in_these_states_only() -> None:
    """Said once more: `RULES` is read by `decide` and by the fence of each write alike."""
    alive = {"running", "waiting", "ready", "parked"}
    of_others = {"Claim": {"ready"}, "Retry": {"parked"}}
    of_others |= dict.fromkeys(("Resolve", "Expire", "Cancel"), alive)
    for kind, rule in RULES.items():
        allowed = {status.label for status in Status if rule.allowed >> status & 1}
        assert allowed == of_others.get(kind.__name__, {"running"}), kind


def test_no_command_leaves_a_final_state() -> None:
    final = {status for status in Status if status.is_final}
    for rule in RULES.values():
        assert not any(rule.allowed >> status & 1 for status in final)


def test_the_generation_grows_with_every_claim_and_every_resolution_of_an_idle_run() -> None:
    run = after(running(), Suspend())
    assert run.generation == 1
    run = after(run, Resolve(SLEEPING))
    assert (run.status, run.generation) == (Status.READY, 2)
    run = after(run, Claim("me", None))
    assert (run.status, run.generation) == (Status.RUNNING, 3)
    run = after(run, Resolve(SLEEPING))
    assert (run.status, run.generation) == (Status.RUNNING, 3)


def test_several_resolutions_are_one_change_which_is_written_whole_or_not_at_all() -> None:
    waiting = after(running(), Suspend())
    both = resolve_all(waiting, [Resolve(SLEEPING), Resolve(WAITING, b"1", "e")], 2_000, POLICY)
    kinds = [type(fact).__name__ for fact in both.change.facts]
    assert kinds == ["StepResolved", "StepResolved", "EventUsed", "RunChanged"]
    assert (both.run.status, both.run.last_order) == (Status.READY, 2)
    assert both.change.admits(waiting)
    faster = after(waiting, Resolve(WAITING, b"2", "f"))
    assert not both.change.admits(faster)


def test_who_has_lost_the_race_for_a_run_changes_nothing_of_it() -> None:
    """An execution claims the run while a timer resolves something of it: the claim is refused, and
    its generation is the one that the run has now. So must be what the execution resolves then."""
    idle = after(running(), Release("x"))
    claimed = after(idle, Claim("me", None))
    resolved = after(idle, Resolve(SLEEPING))
    assert claimed.generation == resolved.generation
    for command in (Resolve(INVOKED), Expire(), Cancel("x"), Suspend()):
        assert not decide(claimed, command, 2_000, POLICY).change.admits(resolved)


def test_a_resolution_wakes_once_and_keeps_the_place_in_the_queue() -> None:
    run = after(after(running(), Suspend()), Resolve(SLEEPING), now=3_000)
    assert run.ready_at == 3_000
    assert after(run, Resolve(SLEEPING), now=4_000).ready_at == 3_000


def test_a_resolution_carries_value_and_event() -> None:
    run = after(running(), Suspend())
    facts = decide(run, Resolve(SLEEPING, b'{"x":1}', "e1"), 60, POLICY).change.facts
    resolved = facts[0]
    assert isinstance(resolved, StepResolved)
    assert resolved.step.value == b'{"x":1}'
    assert resolved.step.due is None
    assert EventUsed("e1") in facts


def test_a_due_retry_is_not_a_result() -> None:
    run = after(running(), Suspend())
    decision = decide(run, Resolve(RETRYING), 60, POLICY)
    written = decision.change.facts[0]
    assert isinstance(written, StepWritten)
    assert (written.step.state, written.step.due) == (StepState.RETRYING, None)
    assert decision.run.status is Status.READY
    assert decision.run.last_order == run.last_order


def test_a_resolved_step_is_not_resolved_again() -> None:
    with pytest.raises(LostRunError):
        decide(running(), Resolve(SLEEPING._replace(state=StepState.DONE)), 60, POLICY)


def test_orders_are_handed_out_one_by_one() -> None:
    run, orders = running(), []
    for name in "abc":
        decision = decide(run, StepDone(StepId(name, name, 0), StepKind.RUN, b"1"), 2_000, POLICY)
        run = decision.run
        written = decision.change.facts[0]
        assert isinstance(written, StepWritten)
        orders.append(written.step.order)
    assert orders == [1, 2, 3]
    assert (run.steps, run.memo_bytes) == (3, 3)


def test_a_failure_for_good_has_a_place_in_the_order_of_its_own() -> None:
    run = after(running(), StepDone(OTHER, StepKind.RUN, b"1"))
    written = decide(run, StepFailed(STEP, StepKind.RUN, b"{}", 1), 2_000, POLICY).change.facts[0]
    assert isinstance(written, StepWritten)
    assert written.step.order == 2


def test_a_wait_and_its_step_have_one_deadline() -> None:
    wait = WaitForEvent(STEP, StepKind.WAIT, (Alternative("", "e"),), 500)
    written, opened = decide(running(), wait, 2_000, POLICY).change.facts
    assert isinstance(written, StepWritten)
    assert isinstance(opened, WaitOpened)
    assert (written.step.due, opened.deadline) == (2_500, 2_500)


def test_an_event_that_a_step_sends_is_kept_with_it_and_still_to_be_matched() -> None:
    send = SendEvent(STEP, NewEvent("e", "paid", b"{}"), b'"e"')
    written, received = decide(running(), send, 2_000, POLICY).change.facts
    assert isinstance(written, StepWritten)
    assert isinstance(received, EventReceived)
    assert (received.event.received_at, received.settled) == (2_000, False)


def test_a_claimed_run_is_ready_no_more() -> None:
    run = after(running(), Release("x"), Claim("me", None))
    assert (run.status, run.ready_at, run.reason) == (Status.RUNNING, None, "")


def test_a_parked_run_keeps_what_it_waited_for_and_stays_parked() -> None:
    parked = running(status=Status.PARKED)
    decision = decide(parked, Resolve(SLEEPING), 2_000, POLICY)
    assert isinstance(decision.change.facts[0], StepResolved)
    assert (decision.run.status, decision.run.ready_at) == (Status.PARKED, None)
    assert decision.run.generation == parked.generation + 1


# Poison


def crash(run: Run, *, alone: bool) -> Run:
    return after(run, Interrupt(alone=alone))


def test_a_poison_run_is_parked_after_three_crashes_alone() -> None:
    run, crashes = running(), 0
    while run.status is not Status.PARKED:
        run = crash(run, alone=True)
        crashes += 1
        if run.status is Status.READY:
            run = after(run, Claim("me", None))
    assert crashes == POLICY.quarantine_after + POLICY.park_after
    assert run.reason == "interrupted_too_often"


def test_an_innocent_run_is_never_parked() -> None:
    run = running()
    for _ in range(50):
        run = after(crash(run, alone=False), Claim("me", None))
    assert in_quarantine(run, POLICY)
    assert run.lone_interruptions == 0


def test_an_execution_that_ends_by_itself_clears_the_count() -> None:
    run = after(crash(running(), alone=False), Claim("me", None), Suspend())
    assert run.interruptions == 0


def test_a_release_is_no_interruption() -> None:
    run = after(running(), Release("shutdown"))
    assert (run.status, run.interruptions) == (Status.READY, 0)


def test_a_parked_run_is_retried_with_a_clean_slate() -> None:
    run = after(running(status=Status.PARKED, interruptions=3, lone_interruptions=3), Retry())
    assert (run.status, run.interruptions, run.lone_interruptions) == (Status.READY, 0, 0)


def test_after_a_loss_of_power_the_stream_skips_what_readers_may_have() -> None:
    for alone in (True, False):
        facts = decide(running(), Interrupt(alone, rebooted=True), 2_000, POLICY).change.facts
        assert StreamSkipped(STREAM_SKIP) in facts
        facts = decide(running(), Interrupt(alone), 2_000, POLICY).change.facts
        assert not any(isinstance(fact, StreamSkipped) for fact in facts)


# Ends


def test_ends() -> None:
    cases: list[tuple[Command, Status, str]] = [
        (Complete(200, b""), Status.COMPLETED, ""),
        (Fail("exception", b"{}"), Status.FAILED, "exception"),
        (Expire(), Status.FAILED, "timed_out"),
        (Cancel("by hand"), Status.CANCELLED, "by hand"),
    ]
    for command, status, reason in cases:
        decision = decide(running(), command, 2_000, POLICY)
        assert (decision.run.status, decision.run.reason) == (status, reason)
        assert decision.run.ended_at == 2_000
        assert decision.run.owner == ""
        assert isinstance(decision.change.facts[-1], RunEnded)


@pytest.mark.parametrize("command", [Complete(200, b""), Fail("x", None), Expire(), Cancel("x")])
def test_a_request_that_shall_not_be_kept_goes_whatever_ends_the_run(command: Command) -> None:
    assert after(running(omit_request_body=True), command).omit_request_body
    assert not after(running(), command).omit_request_body


@pytest.mark.parametrize(
    "command", [Complete(200, b"", until_delivered=True), Fail("x", None, until_delivered=True)]
)
def test_a_response_that_shall_not_be_kept_is_kept_until_it_is_delivered(command: Command) -> None:
    ended = decide(running(), command, 2_000, POLICY).change.facts[-1]
    assert isinstance(ended, RunEnded)
    assert ended.until_delivered


# Limits


def test_limits() -> None:
    policy = Policy(max_steps=2, max_result=10, max_memo=15, max_wait=1_000)
    value = StepDone(STEP, StepKind.RUN, b"x" * 11)
    with pytest.raises(LimitError, match="max_result"):
        decide(running(), value, 0, policy)
    with pytest.raises(LimitError, match="max_memo"):
        decide(running(memo_bytes=8), value._replace(value=b"x" * 8), 0, policy)
    with pytest.raises(LimitError, match="max_steps"):
        decide(running(steps=2), value._replace(value=b"1"), 0, policy)
    with pytest.raises(LimitError, match="may last"):
        decide(running(), Sleep(STEP, duration=1_001), 0, policy)
    with pytest.raises(LimitError, match="may last"):
        decide(running(), Sleep(STEP, until=1_001), 0, policy)
    wait = WaitForEvent(STEP, StepKind.WAIT, (Alternative("", "e"),), 1_001)
    with pytest.raises(LimitError, match="may last"):
        decide(running(), wait, 0, policy)
    retry = StepRetry(STEP, StepKind.RUN, b"{}", 1, delay=1_001)
    with pytest.raises(LimitError, match="may last"):
        decide(running(), retry, 0, policy)


def test_what_just_keeps_a_limit_is_allowed() -> None:
    policy = Policy(max_steps=2, max_result=10, max_memo=15, max_wait=1_000)
    run = running(steps=1, memo_bytes=5)
    run = after(run, StepDone(STEP, StepKind.RUN, b"x" * 10), policy=policy)
    assert (run.steps, run.memo_bytes) == (2, 15)
    after(running(), Sleep(STEP, duration=1_000), policy=policy)


def test_a_retry_of_a_counted_step_is_no_new_step() -> None:
    policy = Policy(max_steps=1)
    run = running()
    for attempt in (1, 2):
        retry = StepRetry(STEP, StepKind.RUN, b"{}", attempt)
        run = after(run, retry, policy=policy)
        assert run.steps == 1
    done = StepDone(STEP, StepKind.RUN, b"1", attempt=3)
    assert after(run, done, policy=policy).steps == 1


def test_a_child_is_ready_one_deeper_than_its_parent_and_has_its_own_time() -> None:
    new = NEW._replace(id="c", max_runtime=500)
    decision = decide(running(depth=3), Invoke(STEP, new, 70), 2_000, POLICY)
    written, created = decision.change.facts
    assert isinstance(written, StepWritten)
    assert (written.step.kind, written.step.due) == (StepKind.INVOKE, 2_070)
    assert isinstance(created, ChildCreated)
    child = created.run
    assert (child.id, child.parent_run, child.parent_step) == ("c", "r", STEP.hash)
    assert (child.status, child.generation, child.ready_at) == (Status.READY, 0, 2_000)
    assert (child.depth, child.began_at, child.deadline) == (4, 2_000, 2_500)
    assert decision.run.steps == 1


def test_runs_are_not_invoked_below_each_other_without_an_end() -> None:
    decide(running(depth=31), Invoke(STEP, NEW), 2_000, POLICY)
    with pytest.raises(LimitError, match="invoke itself"):
        decide(running(depth=32), Invoke(STEP, NEW), 2_000, POLICY)
    with pytest.raises(LimitError, match="may last"):
        decide(running(), Invoke(STEP, NEW, 400 * 86_400_000), 2_000, POLICY)


def test_a_resolved_invocation_is_no_result_but_a_reason_to_look() -> None:
    run = after(running(), Suspend())
    decision = decide(run, Resolve(INVOKED), 60, POLICY)
    written = decision.change.facts[0]
    assert isinstance(written, StepWritten)
    assert (written.step.state, written.step.due) == (StepState.RETRYING, None)
    assert (decision.run.status, decision.run.last_order) == (Status.READY, run.last_order)


def test_an_invocation_counts_as_one_step() -> None:
    run = after(running(), Invoke(STEP, NEW), StepDone(STEP, StepKind.INVOKE, b"1"))
    assert (run.steps, run.last_order) == (1, 1)
