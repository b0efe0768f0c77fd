"""What every store must do. Each test runs on each of them."""

from __future__ import annotations

from itertools import product

import pytest

from durable_endpoints.protocol.ops import (
    Alternative,
    Invoke,
    NewEvent,
    SendEvent,
    Sleep,
    StepDone,
    StepFailed,
    StepKind,
    StepOp,
    StepRetry,
    StepState,
    WaitForEvent,
)
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepId, hash_name
from durable_endpoints.protocol.streams import RecordKind, StreamRecord
from durable_endpoints_server.engine.facts import (
    AttemptFailed,
    Change,
    EventReceived,
    EventSettled,
    EventUsed,
    Fact,
    InboxTaken,
    OriginTrusted,
    RequestSeen,
    ResponseDelivered,
    RunChanged,
    StepWritten,
    Streamed,
    StreamSkipped,
    Sweep,
    states,
)
from durable_endpoints_server.engine.model import Event, Policy, Run, Status, Stream
from durable_endpoints_server.engine.streams import Chunk, append, started
from durable_endpoints_server.engine.transitions import (
    Cancel,
    Claim,
    Command,
    Complete,
    Expire,
    Fail,
    Interrupt,
    Release,
    Resolve,
    Suspend,
    decide,
    register,
)
from durable_endpoints_server.store.base import Lane, RefusedError, Store

pytestmark = pytest.mark.anyio

POLICY = Policy()
T0 = 1_000_000


def step(name: str) -> StepId:
    return StepId(hash_name(name), name, 0)


class History:
    """Drives one run through a store, decision by decision."""

    def __init__(
        self, store: Store, run_id: str = "run-1", function_id: str = "GET /x", **new: object
    ) -> None:
        self.store = store
        self.new = NewRun(run_id, function_id, "v1", "GET", "/x", b"the request", **new)  # type: ignore[arg-type]
        decision = register(self.new, "me", None, T0)
        self.run = decision.run
        self.registered = store.submit(decision.change)

    async def begin(self) -> History:
        await self.registered.wait()
        return self

    async def do(self, command: Command, now: int = T0) -> Run:
        decision = decide(self.run, command, now, POLICY)
        await self.store.submit(decision.change).wait()
        self.run = decision.run
        return self.run

    async def record(self, *ops: StepOp, now: int = T0) -> None:
        for op in ops:
            await self.do(op, now)


def done(name: str, value: bytes = b"1") -> StepDone:
    return StepDone(step(name), StepKind.RUN, value)


def invoke(name: str, child: str, timeout: int | None = None) -> Invoke:
    request = NewRun(child, "POST /child", "v2", "POST", "/child", b"what it asks", retries=7)
    return Invoke(step(name), request, timeout)


def wait_for(
    name: str, event: str = "e", pairs: tuple[tuple[str, str], ...] = (), timeout: int = 1_000
) -> WaitForEvent:
    return WaitForEvent(step(name), StepKind.WAIT, (Alternative("", event, pairs),), timeout)


async def refused(store: Store, change: Change) -> bool:
    try:
        await store.submit(change).wait()
    except RefusedError:
        return True
    return False


# Runs


async def test_a_registered_run_is_there_with_its_request(store: Store) -> None:
    history = await History(store).begin()
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.run == history.run
    assert entry.memo == []
    assert entry.request == b"the request"


async def test_a_run_belongs_to_an_application_and_what_it_invokes_does_too(store: Store) -> None:
    history = await History(store, app="shop", root_path="/api").begin()
    child = NewRun("child", "POST /child", "v", "POST", "/child", b"asks", app="shop")
    await history.record(Invoke(step("i"), child))
    for run_id, root_path in (("run-1", "/api"), ("child", "")):
        entry = await store.entry(run_id)
        assert entry is not None
        assert (entry.app, entry.root_path) == ("shop", root_path)


async def test_an_unknown_run_is_none(store: Store) -> None:
    assert await store.run("nobody") is None
    assert await store.entry("nobody") is None
    assert await store.ended("nobody") is None
    assert await store.waits_of("nobody") == []


async def test_a_run_id_is_registered_once(store: Store) -> None:
    await History(store).begin()
    with pytest.raises(RefusedError):
        await History(store).begin()


async def test_an_idempotency_key_belongs_to_the_first_run(store: Store) -> None:
    await History(store, key="k", key_scope="me", fingerprint="f").begin()
    with pytest.raises(RefusedError):
        await History(store, "run-2", key="k").begin()
    assert await store.run("run-2") is None
    holder = await store.key_holder("k")
    assert holder is not None
    assert holder == ("run-1", "me", "f")
    assert await store.key_holder("other") is None


async def test_runs_without_a_key_do_not_collide(store: Store) -> None:
    await History(store, "run-1").begin()
    await History(store, "run-2").begin()


async def test_two_registrations_of_one_key_in_one_batch(store: Store) -> None:
    first, second = History(store, "run-1", key="k"), History(store, "run-2", key="k")
    await first.begin()
    with pytest.raises(RefusedError):
        await second.begin()


# Steps


async def test_steps_are_remembered_in_order_of_completion(store: Store) -> None:
    history = await History(store).begin()
    await history.record(done("z", b'{"a":1}'), done("a", b"2"), done("m", b"null"))
    entry = await store.entry("run-1")
    assert entry is not None
    assert [(s.id.name, s.order, s.value) for s in entry.memo] == [
        ("z", 1, b'{"a":1}'),
        ("a", 2, b"2"),
        ("m", 3, b"null"),
    ]


async def test_the_first_final_write_of_a_step_wins(store: Store) -> None:
    history = await History(store).begin()
    await history.record(done("a", b"1"))
    await history.record(done("a", b"2"))
    entry = await store.entry("run-1")
    assert entry is not None
    assert [(s.id.name, s.value) for s in entry.memo] == [("a", b"1")]


async def test_a_retried_step_becomes_done(store: Store) -> None:
    history = await History(store).begin()
    retry = StepRetry(step("a"), StepKind.RUN, b'{"name":"E"}', 1, delay=500)
    await history.record(retry, StepDone(step("a"), StepKind.RUN, b"5", attempt=2))
    entry = await store.entry("run-1")
    assert entry is not None
    (record,) = entry.memo
    assert (record.state, record.value, record.attempt) == (StepState.DONE, b"5", 2)
    assert record.due is None
    assert record.error is None
    (attempt,) = await store.attempts("run-1")
    assert (attempt.step, attempt.attempt, attempt.error) == ("a", 1, b'{"name":"E"}')


async def test_values_survive_byte_for_byte(store: Store) -> None:
    values = [
        b'"\xc3\xa9\xe2\x82\xac \\ \\" \\n \\u0000"',
        b"1.0",
        b"-0.0",
        b"1e300",
        b"18446744073709551615",
        b'{"b":1,"a":[null,true,"x"]}',
        b'""',
    ]
    history = await History(store).begin()
    await history.record(*(done(f"s{n}", value) for n, value in enumerate(values)))
    entry = await store.entry("run-1")
    assert entry is not None
    assert [s.value for s in entry.memo] == values


async def test_a_failed_step_keeps_its_error(store: Store) -> None:
    history = await History(store).begin()
    error = b'{"name":"ValueError","message":"\xe2\x82\xac"}'
    await history.record(StepFailed(step("a"), StepKind.RUN, error, 3))
    entry = await store.entry("run-1")
    assert entry is not None
    assert (entry.memo[0].state, entry.memo[0].error) == (StepState.FAILED, error)


# The fence


async def test_a_stale_generation_writes_nothing(store: Store) -> None:
    history = await History(store).begin()
    stale = history.run
    await history.do(Release("gone"))
    await history.do(Claim("other", None))
    assert history.run.generation == 2
    zombie = decide(stale, done("a"), T0, POLICY).change
    assert await refused(store, zombie)
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.memo == []


async def everything_of(store: Store, run_id: str) -> list[object]:
    """All that a store tells of one run, of the event `kept`, and of the run `child`."""
    event = Event("kept", "e", b"{}", T0, T0)
    arrival = await store.arrival(event)
    return [
        await store.entry(run_id),
        await store.ended(run_id),
        await store.waits_of(run_id),
        await store.attempts(run_id),
        await store.stream_page(run_id, 0, 1_000_000),
        await store.unused_events(run_id, "e", 0, "", 10),
        arrival,
        await store.known_events(["sent"]),
        await store.entry("child"),
    ]


async def test_no_fact_of_a_stale_generation_is_written(store: Store) -> None:
    """Each by itself: they go different ways into the store."""
    history = await History(store).begin()
    await history.record(wait_for("w"), StepRetry(step("a"), StepKind.RUN, b"{}", 1, delay=5))
    log = started(1)
    log, records = append(log, [Chunk(step("a").hash, 2, b"1")])
    fence = history.run.id, history.run.generation, states(Status.RUNNING)
    await store.submit(Change((Streamed(tuple(records), log),), *fence)).wait()
    event = Event("kept", "e", b"{}", T0, T0)
    await store.submit(Change((EventReceived(event, settled=True),))).wait()
    await history.do(Release("gone"))
    await history.do(Claim("other", None))
    entry = await store.entry("run-1")
    assert entry is not None
    waiting = next(one for one in entry.memo if one.id == step("w"))
    log, more = append(log, [Chunk(step("a").hash, 2, b"2")])
    stale = history.run._replace(generation=1)
    _, created = decide(stale, invoke("i", "child"), T0, POLICY).change.facts
    ended = decide(stale, Complete(200, b"late"), T0, POLICY).change.facts
    facts: list[Fact] = [
        *decide(stale, done("a"), T0, POLICY).change.facts,
        *decide(stale, Resolve(waiting, b"1", "kept"), T0, POLICY).change.facts,
        *decide(stale, wait_for("v"), T0, POLICY).change.facts,
        AttemptFailed(step("a"), 9, T0, T0, b"{}"),
        EventReceived(Event("sent", "e", b"{}", T0, T0), settled=False),
        EventUsed("kept"),
        RunChanged(stale._replace(reason="late")),
        created,
        *ended,
        Streamed(tuple(more), log),
        StreamSkipped(7),
    ]
    before = await everything_of(store, "run-1")
    for fact in facts:
        assert await refused(store, Change((fact,), *fence)), fact
        assert await everything_of(store, "run-1") == before, fact


async def test_a_step_began_when_its_first_try_did(store: Store) -> None:
    history = await History(store).begin()
    await history.do(StepRetry(step("a"), StepKind.RUN, b"{}", 1, delay=5), T0 + 1)
    await history.do(StepDone(step("a"), StepKind.RUN, b"1", attempt=2), T0 + 500)
    entry = await store.entry("run-1")
    assert entry is not None
    assert (entry.memo[0].began_at, entry.memo[0].ended_at) == (T0 + 1, T0 + 500)


async def test_a_change_is_written_whole_or_not_at_all(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Suspend())
    facts = (
        StepWritten(decide_step(history.run)),
        RunChanged(history.run._replace(reason="never")),
    )
    change = Change(facts, "run-1", 1, states(Status.RUNNING))
    assert await refused(store, change)
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.memo == []
    assert entry.run.reason == ""


def decide_step(run: Run):  # type: ignore[no-untyped-def]
    running = run._replace(status=Status.RUNNING)
    fact = decide(running, done("a"), T0, POLICY).change.facts[0]
    assert isinstance(fact, StepWritten)
    return fact.step


async def test_a_refused_change_does_not_disturb_its_batch(store: Store) -> None:
    one, two = await History(store, "r1").begin(), await History(store, "r2").begin()
    bad = decide(one.run._replace(generation=9), done("a"), T0, POLICY)
    good = decide(two.run, done("a"), T0, POLICY)
    tickets = [store.submit(bad.change), store.submit(good.change)]
    with pytest.raises(RefusedError):
        await tickets[0].wait()
    await tickets[1].wait()
    entry = await store.entry("r2")
    assert entry is not None
    assert len(entry.memo) == 1


async def test_an_ended_run_accepts_nothing(store: Store) -> None:
    history = await History(store).begin()
    running = history.run
    await history.do(Complete(200, b"response"))
    for command in (done("late"), Complete(500, b"other"), Suspend()):
        assert await refused(store, decide(running, command, T0, POLICY).change)
    ended = await store.ended("run-1")
    assert ended is not None
    assert (ended.status_code, ended.response) == (200, b"response")


async def test_of_two_resolutions_on_one_state_one_is_written(store: Store) -> None:
    history = await History(store).begin()
    await history.record(Sleep(step("a"), 10), Sleep(step("b"), 10))
    await history.do(Suspend())
    first, second = await store.due_steps(T0 + 100, 10)
    one = decide(history.run, Resolve(first.step), T0 + 100, POLICY)
    two = decide(history.run, Resolve(second.step), T0 + 100, POLICY)
    assert not await refused(store, one.change)
    assert await refused(store, two.change)
    again = decide(one.run, Resolve(second.step), T0 + 100, POLICY)
    assert not await refused(store, again.change)
    entry = await store.entry("run-1")
    assert entry is not None
    assert sorted(s.order for s in entry.memo) == [1, 2]


# Ends


async def test_what_an_ended_run_says(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Complete(201, b"\x00\xffsealed"), T0 + 5)
    ended = await store.ended("run-1")
    assert ended is not None
    assert ended.run.status is Status.COMPLETED
    assert ended.run.ended_at == T0 + 5
    assert ended.response == b"\x00\xffsealed"
    assert (ended.omitted, ended.until_delivered, ended.error) == ("", False, None)
    assert (ended.method, ended.path) == ("GET", "/x")


async def test_the_request_of_an_ended_run_is_wiped_if_wanted(store: Store) -> None:
    history = await History(store, omit_request_body=True).begin()
    await history.do(Complete(200, b"x"))
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.request is None


async def test_a_failed_run_keeps_error_and_response(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Fail("exception", b'{"name":"E"}', 500, b"sorry"))
    ended = await store.ended("run-1")
    assert ended is not None
    assert (ended.run.status, ended.run.reason) == (Status.FAILED, "exception")
    assert (ended.error, ended.response) == (b'{"name":"E"}', b"sorry")


async def test_an_end_closes_waits_and_timers(store: Store) -> None:
    history = await History(store).begin()
    await history.record(wait_for("w"), Sleep(step("s"), 100))
    await history.do(Suspend())
    await history.do(Cancel("cancelled"))
    assert await store.waits_of("run-1") == []
    assert await store.next_due() is None
    assert await store.due_steps(T0 + 10**9, 10) == []


async def test_a_response_kept_until_delivered_goes_when_it_is(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Complete(200, b"secret", until_delivered=True))
    await store.submit(Change((ResponseDelivered("run-1"),))).wait()
    ended = await store.ended("run-1")
    assert ended is not None
    assert (ended.response, ended.omitted, ended.status_code) == (None, "delivered", 200)


async def test_a_response_that_is_kept_stays_when_delivered(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Complete(200, b"public"))
    await store.submit(Change((ResponseDelivered("run-1"),))).wait()
    ended = await store.ended("run-1")
    assert ended is not None
    assert ended.response == b"public"


# Timers


async def test_due_steps_of_idle_runs_only(store: Store) -> None:
    idle, busy = await History(store, "idle").begin(), await History(store, "busy").begin()
    for history in (idle, busy):
        await history.record(Sleep(step("s"), 100))
    assert await store.next_due() is None
    await idle.do(Suspend())
    assert await store.next_due() == T0 + 100
    assert await store.due_steps(T0 + 99, 10) == []
    (due,) = await store.due_steps(T0 + 100, 10)
    assert (due.run.id, due.step.id.name) == ("idle", "s")


async def test_due_steps_come_earliest_first_and_in_portions(store: Store) -> None:
    for n in (3, 1, 2):
        history = await History(store, f"r{n}").begin()
        await history.record(Sleep(step("s"), n * 100))
        await history.do(Suspend())
    assert [due.run.id for due in await store.due_steps(T0 + 999, 2)] == ["r1", "r2"]


async def test_deadlines(store: Store) -> None:
    history = await History(store, max_runtime=500).begin()
    assert await store.next_due() is None
    assert await store.due_deadlines(T0 + 500, 10) == []
    await history.do(Suspend())
    assert await store.next_due() == T0 + 500
    assert await store.due_deadlines(T0 + 499, 10) == []
    (run,) = await store.due_deadlines(T0 + 500, 10)
    assert run == history.run
    await history.do(Expire())
    assert await store.due_deadlines(T0 + 500, 10) == []


# Events


async def test_an_event_finds_matching_waits(store: Store) -> None:
    wanted = {
        "any": (),
        "seven": (("data.id", "7"),),
        "eight": (("data.id", "8"),),
        "deep": (("data.order.no", "x"), ("data.id", "7")),
    }
    for name, pairs in wanted.items():
        history = await History(store, name).begin()
        await history.record(wait_for("w", pairs=pairs))
        await history.do(Suspend())
    event = Event("e1", "e", b'{"id":7,"order":{"no":"x"}}', T0, T0 + 1)
    arrival = await store.arrival(event)
    assert not arrival.known
    # A store narrows down by name and first pair; the rest is the caller's.
    found = {match.run.id for match in arrival.matches}
    assert {"any", "seven", "deep"} <= found
    (seven,) = [match for match in arrival.matches if match.run.id == "seven"]
    assert seven.wait.alternative == Alternative("", "e", (("data.id", "7"),))
    assert (seven.step.id.name, seven.wait.deadline) == ("w", T0 + 1_000)
    assert (await store.arrival(event._replace(name="other"))).matches == []


async def test_an_event_is_received_once(store: Store) -> None:
    event = Event("e1", "e", b"{}", T0, T0)
    change = Change((EventReceived(event, settled=False),))
    assert not await refused(store, change)
    assert await refused(store, change)
    assert (await store.arrival(event)).known


async def test_an_event_is_used_once_by_a_run(store: Store) -> None:
    event = Event("e1", "e", b"{}", T0, T0)
    await store.submit(Change((EventReceived(event, settled=False),))).wait()
    history = await History(store).begin()
    await history.record(wait_for("w1"))
    await history.do(Suspend())
    (match,) = (await store.arrival(event)).matches
    await history.do(Resolve(match.step, event.as_json(), event.id))
    assert await store.waits_of("run-1") == []
    await history.do(Claim("me", None))
    await history.record(wait_for("w2"))
    assert (await store.arrival(event)).matches == []
    assert await store.unused_events("run-1", "e", 0, "", 10) == []
    other = await History(store, "run-2").begin()
    await other.record(wait_for("w"))
    assert [m.run.id for m in (await store.arrival(event)).matches] == ["run-2"]


async def test_unused_events_since(store: Store) -> None:
    for n, at in enumerate((10, 30, 20)):
        event = Event(f"e{n}", "e", b'"\xc3\xa9"', 0, at)
        await store.submit(Change((EventReceived(event, settled=True),))).wait()
    await History(store).begin()
    events = await store.unused_events("run-1", "e", 20, "", 10)
    assert [(event.id, event.received_at) for event in events] == [("e2", 20), ("e1", 30)]
    assert await store.unused_events("run-1", "e", 20, "", 1) == events[:1]
    assert await store.unused_events("run-1", "e", 20, "e2", 10) == events[1:]
    assert await store.unused_events("run-1", "f", 20, "", 10) == []
    assert events[0].data == b'"\xc3\xa9"'


async def test_unsettled_events(store: Store) -> None:
    for n in (1, 2):
        event = Event(f"e{n}", "e", b"{}", 0, n)
        await store.submit(Change((EventReceived(event, settled=False),))).wait()
    await store.submit(Change((EventSettled("e1"),))).wait()
    assert [event.id for event in await store.unsettled_events(10)] == ["e2"]


async def test_an_event_sent_by_a_step_is_kept_with_it(store: Store) -> None:
    history = await History(store).begin()
    await history.record(SendEvent(step("s"), NewEvent("e1", "e", b"{}"), b'"e1"'))
    assert [event.id for event in await store.unsettled_events(10)] == ["e1"]
    # A step that was recorded anew after a lost acknowledgement sends nothing twice.
    await history.record(SendEvent(step("t"), NewEvent("e1", "e", b"{}"), b'"e1"'))
    assert len(await store.unsettled_events(10)) == 1


async def test_a_zombie_sends_no_event(store: Store) -> None:
    history = await History(store).begin()
    zombie = history.run._replace(generation=0)
    op = SendEvent(step("s"), NewEvent("e1", "e", b"{}"), b'"e1"')
    assert await refused(store, decide(zombie, op, T0, POLICY).change)
    assert await store.unsettled_events(10) == []


async def test_one_of_many_events_is_passed_over_if_it_is_known(store: Store) -> None:
    events = [Event(f"e{n}", "e", b"{}", T0, T0 + n) for n in range(3)]
    await store.submit(Change((EventReceived(events[1], settled=True),))).wait()
    changed = [event._replace(data=b"[]", internal_id=f"i-{event.id}") for event in events]
    many = Change(tuple(EventReceived(event, False, one_of_many=True) for event in changed))
    assert not await refused(store, many)
    assert await store.known_events(["e0", "e1", "e9"]) == {"e0": "i-e0", "e1": ""}
    assert [event.id for event in await store.unsettled_events(10)] == ["e0", "e2"]
    assert await store.event("e1") == events[1]


async def test_an_event_is_found_by_either_id_with_all_that_came_with_it(store: Store) -> None:
    event = Event("mine", "e", b"{}", 1, T0, "internal", b'{"user":{"id":"\xc3\xa9"},"v":"2"}')
    await store.submit(Change((EventReceived(event, settled=True),))).wait()
    assert await store.event("mine") == await store.event("internal") == event
    assert await store.event("other") is None
    assert (await store.unused_events("", "e", 0, "", 1))[0].as_json() == (
        b'{"name":"e","id":"mine","ts":1,"user":{"id":"\xc3\xa9"},"v":"2","data":{}}'
    )


async def test_events_are_listed_newest_first(store: Store) -> None:
    for n, name in enumerate("abab"):
        event = Event(f"e{n}", name, b"{}", 0, T0 + n // 2)
        await store.submit(Change((EventReceived(event, settled=True),))).wait()

    async def listed(
        name: str | None = None, since: int = 0, before: tuple[int, str] = (2**62, "")
    ) -> list[str]:
        return [event.id for event in await store.list_events(name, since, before, 3)]

    assert await listed() == ["e3", "e2", "e1"]
    assert await listed("a") == ["e2", "e0"]
    assert await listed(since=T0 + 1) == ["e3", "e2"]
    assert await listed(before=(T0 + 1, "e3")) == ["e2", "e1", "e0"]


async def test_which_events_are_awaited(store: Store) -> None:
    history = await History(store).begin()
    await history.record(wait_for("w", "e"), wait_for("v", "f"))
    assert await store.awaited({"e", "g"}) == {"e"}
    await history.do(Complete(200, b"x"))
    assert await store.awaited({"e", "f"}) == set()


# Recovery and dispatch


async def test_running_runs_are_listed_with_their_usage(store: Store) -> None:
    history = await History(store).begin()
    await history.record(done("a", b"123"), done("b", b"4"))
    await history.record(StepRetry(step("c"), StepKind.HANDLER, b"no result, but an error", 1))
    (run,) = await store.in_status(Status.RUNNING, 10)
    assert (run.steps, run.memo_bytes, run.last_order) == (2, 4, 2)
    await history.do(Complete(200, b"x"))
    assert await store.in_status(Status.RUNNING, 10) == []


async def test_runs_are_found_by_who_has_executed_them_for_long(store: Store) -> None:
    for n, owner in enumerate(("they", "we", "they", "they")):
        new = NewRun(f"r{n}", "GET /x", "v1", "GET", "/x", b"the request")
        decision = register(new, owner, None, T0 + n)
        await store.submit(decision.change).wait()
    await store.submit(decide(decision.run, Complete(200, b"x"), T0, POLICY).change).wait()
    assert sorted(await store.running_since("they", T0 + 3)) == ["r0", "r2"]
    assert await store.running_since("they", T0 + 1) == ["r0"]


async def test_ready_runs_come_longest_ready_first(store: Store) -> None:
    for n, at in enumerate((300, 100, 200)):
        history = await History(store, f"r{n}").begin()
        await history.do(Interrupt(alone=False), T0 + at)
    assert [run.id for run in await store.in_status(Status.READY, 2)] == ["r1", "r2"]


async def test_ready_runs_of_some_applications_can_be_left_out(store: Store) -> None:
    for n, app in enumerate(("shop", "bank", "shop", "")):
        history = await History(store, f"r{n}", app=app).begin()
        await history.do(Release("x"), T0 + n)
    for without, expected in (((), "0123"), (["shop"], "13"), (["shop", "", "else"], "1")):
        found = await store.in_status(Status.READY, 10, without)
        assert [run.id for run in found] == [f"r{n}" for n in expected]


async def test_ready_runs_of_all_applications_come_longest_ready_first(store: Store) -> None:
    for n, (app, at) in enumerate((("a", 400), ("b", 100), ("a", 200), ("c", 300), ("b", 500))):
        history = await History(store, f"r{n}", app=app).begin()
        await history.do(Release("x"), T0 + at)
    for limit, expected in ((1, "1"), (3, "123"), (10, "12304")):
        found = await store.in_status(Status.READY, limit)
        assert [run.id for run in found] == [f"r{n}" for n in expected]


async def test_a_claim_round_trips(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Interrupt(alone=True))
    await history.do(Claim("worker-9", T0 + 30_000))
    assert await store.run("run-1") == history.run
    assert history.run.owner == "worker-9"


# Lists, inbox, tracking, retention


async def test_list_runs(store: Store) -> None:
    one, two = await History(store, "r1").begin(), await History(store, "r2").begin()
    await one.do(Complete(204, b"x"))
    await two.record(Sleep(step("s"), 100))
    await two.do(Suspend())
    summaries = (await store.list_runs(list(Status), None, 10)).lines
    assert [(s.run.id, s.status_code, s.next_due) for s in summaries] == [
        ("r2", None, T0 + 100),
        ("r1", 204, None),
    ]
    assert [s.run.id for s in (await store.list_runs([Status.COMPLETED], None, 10)).lines] == ["r1"]
    assert (await store.list_runs(list(Status), "GET /other", 10)).lines == []


@pytest.mark.parametrize(
    ("statuses", "function_id", "expected"),
    [
        (list(Status), None, ["r6", "r5", "r4", "r3", "r2", "r1"]),
        ([Status.COMPLETED], None, ["r5", "r1"]),
        ([Status.RUNNING, Status.CANCELLED], None, ["r6", "r4", "r3", "r2"]),
        ([Status.RUNNING], None, ["r6", "r3"]),
        ([Status.PARKED], None, []),
        (list(Status), "GET /rare", ["r2", "r1"]),
        ([Status.CANCELLED], "GET /rare", ["r2"]),
        ([Status.COMPLETED, Status.RUNNING], "GET /rare", ["r1"]),
    ],
)
async def test_a_listing_in_portions_has_every_run_once(
    store: Store,
    statuses: list[Status],
    function_id: str | None,
    expected: list[str],
) -> None:
    for number in range(1, 7):
        function = "GET /rare" if number < 3 else "GET /x"
        history = await History(store, f"r{number}", function).begin()
        if number in (1, 5):
            await history.do(Complete(204, b"x"))
        if number in (2, 4):
            await history.do(Cancel("cancelled"))
    for limit, window in product((1, 2, 50), (1, 2, 3, 50)):
        found: list[str] = []
        before: str | None = None
        while True:
            page = await store.list_runs(statuses, function_id, limit, before, window)
            assert len(page.lines) <= min(limit, window)
            found += [line.run.id for line in page.lines]
            if page.next is None:
                break
            assert before is None or page.next < before
            before = page.next
        assert found == expected


async def test_tracked_requests(store: Store) -> None:
    for n in (1, 2):
        seen = RequestSeen(T0 + n, "GET", "/x", 200, 1_500, None)
        await store.submit(Change((seen,))).wait()
    newest, _ = await store.requests(10)
    assert newest == (T0 + 2, "GET", "/x", 200, 1_500, None)


async def test_trusted_origins(store: Store) -> None:
    assert await store.origins() == []
    for n, origin in enumerate(["http://b", "http://a", "http://b"]):
        await store.submit(Change((OriginTrusted(origin, T0 + n),))).wait()
    assert await store.origins() == ["http://a", "http://b"]


async def test_the_inbox_of_a_store_that_nobody_wrote_to(store: Store) -> None:
    assert await store.inbox(10) == []
    await store.submit(Change((InboxTaken(1),))).wait()


async def test_retention(store: Store) -> None:
    old, young = await History(store, "old", key="k").begin(), await History(store, "young").begin()
    for history in (old, young):
        await history.record(done("a"), StepFailed(step("f"), StepKind.RUN, b"{}", 1))
    await old.do(Complete(200, b"x"), T0 + 10)
    await young.do(Complete(200, b"x"), T0 + 20)
    live = await History(store, "live").begin()
    for n, at in ((1, 10), (2, 20)):
        event = Event(f"e{n}", "e", b"{}", 0, T0 + at)
        await store.submit(Change((EventReceived(event, settled=True),))).wait()
        seen = RequestSeen(T0 + at, "GET", "/x", 200, 1, None)
        await store.submit(Change((seen,))).wait()
    assert not await store.is_sweepable(T0, T0, T0)
    assert await store.is_sweepable(T0 + 15, T0, T0)
    sweep = Sweep(T0 + 15, T0 + 15, T0 + 15, 100, 100)
    await store.submit(Change((sweep,))).wait()
    assert not await store.is_sweepable(T0 + 15, T0 + 15, T0 + 15)
    assert await store.entry("old") is None
    assert await store.attempts("old") == []
    assert await store.key_holder("k") is None
    assert await store.entry("young") is not None
    assert await store.run("live") == live.run
    assert [e.id for e in await store.unused_events("live", "e", 0, "", 10)] == ["e2"]
    assert len(await store.requests(10)) == 1
    await History(store, "again", key="k").begin()


async def test_what_a_running_run_has_used_is_counted_anew(store: Store) -> None:
    """What is stored of that is out of date as long as it is executed."""
    history = await History(store).begin()
    failed = StepFailed(step("f"), StepKind.RUN, b"{}" * 5, 1)
    retried = StepRetry(HANDLER_STEP, StepKind.HANDLER, b"{}", 1, delay=5)
    await history.record(done("a", b"123"), failed, wait_for("w"), retried)
    (run,) = await store.in_status(Status.RUNNING, 10)
    assert (run.steps, run.memo_bytes, run.last_order) == (3, 13, 2)
    assert (run.steps, run.memo_bytes) == (history.run.steps, history.run.memo_bytes)


async def test_lists_are_complete(store: Store) -> None:
    """Also those that are short nearly always."""
    history = await History(store).begin()
    await history.record(*(wait_for(f"w{n}", timeout=9) for n in range(130)))
    await history.do(Suspend())
    events = [Event(f"e{n}", "e", b"{}", T0, T0 + n) for n in range(130)]
    received = (EventReceived(event, settled=True, one_of_many=True) for event in events)
    await store.submit(Change(tuple(received))).wait()
    assert len((await store.arrival(events[0])).matches) == 130
    assert len(await store.waits_of("run-1")) == 130
    assert len(await store.due_steps(T0 + 9, 500)) == 130
    assert len(await store.unused_events("run-1", "e", 0, "", 500)) == 130
    assert len(await store.unused_events("run-1", "e", 0, "", 50)) == 50
    for n in range(30):
        await History(store, f"late-{n:02}", max_runtime=5).begin()
    assert len(await store.due_deadlines(T0 + 5, 500)) == 0  # they are executed
    for n in range(30):
        late = await store.run(f"late-{n:02}")
        assert late is not None
        await store.submit(decide(late, Suspend(), T0, POLICY).change).wait()
    assert len(await store.due_deadlines(T0 + 5, 500)) == 30


async def test_the_newest_instant_is_that_of_the_last_run_end_or_event(store: Store) -> None:
    assert await store.newest() == 0
    history = await History(store).begin()
    began = await store.newest()
    assert began == history.run.began_at
    await history.do(Complete(200, None), began + 10)
    assert await store.newest() == began + 10
    event = Event("e1", "e", b"{}", began, began + 20)
    await store.submit(Change((EventReceived(event, settled=True),))).wait()
    assert await store.newest() == began + 20


async def test_undelivered_responses_are_dropped_after_a_while(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Complete(200, b"secret", until_delivered=True), T0 + 10)
    assert await store.is_sweepable(0, 0, T0 + 11)
    await store.submit(Change((Sweep(0, 0, T0 + 11, 10, 10),))).wait()
    assert not await store.is_sweepable(0, 0, T0 + 11)
    ended = await store.ended("run-1")
    assert ended is not None
    assert (ended.response, ended.omitted) == (None, "delivered")


# Tickets


async def test_then_is_called_after_the_write(store: Store) -> None:
    import asyncio

    history = History(store)
    called = asyncio.Event()
    history.registered.then(called.set)
    await asyncio.wait_for(called.wait(), 5)
    assert await store.run("run-1") == history.run


async def test_then_is_not_called_for_a_refused_change(store: Store) -> None:
    import asyncio

    await History(store).begin()
    again = History(store)
    called: list[int] = []
    again.registered.then(lambda: called.append(1))
    with pytest.raises(RefusedError):
        await again.registered.wait()
    await asyncio.sleep(0.01)
    assert called == []


async def test_many_changes_in_one_batch(store: Store) -> None:
    history = await History(store).begin()
    run, tickets = history.run, []
    for n in range(1_000):
        decision = decide(run, done(f"s{n}", str(n).encode()), T0, POLICY)
        run = decision.run
        tickets.append(store.submit(decision.change, Lane()))
    for ticket in tickets:
        await ticket.wait()
    entry = await store.entry("run-1")
    assert entry is not None
    assert [s.value for s in entry.memo] == [str(n).encode() for n in range(1_000)]


# Children


async def test_a_child_is_created_together_with_the_step_that_invokes_it(store: Store) -> None:
    history = await History(store).begin()
    await history.do(invoke("i", "child-1", 500), now=T0 + 5)
    entry = await store.entry("child-1")
    assert entry is not None
    child = entry.run
    assert (child.status, child.generation, child.owner) == (Status.READY, 0, "")
    assert (child.began_at, child.ready_at) == (T0 + 5, T0 + 5)
    assert (child.parent_run, child.parent_step, child.depth) == ("run-1", step("i").hash, 1)
    assert (entry.request, entry.retries, entry.memo) == (b"what it asks", 7, [])
    found = await store.invocation("run-1", step("i").hash)
    assert found is not None
    assert found.run.id == "run-1"
    assert (found.step.kind, found.step.state) == (StepKind.INVOKE, StepState.PENDING)
    assert found.step.due == T0 + 505
    assert [run.id for run in await store.in_status(Status.READY, 10)] == ["child-1"]
    assert await store.children("run-1") == [child]
    assert await store.children("child-1") == []


async def test_what_is_refused_creates_no_child(store: Store) -> None:
    history = await History(store).begin()
    outdated = decide(history.run, invoke("i", "child-1"), T0, POLICY).change
    await history.do(Release("x"))
    assert await refused(store, outdated)
    assert await store.run("child-1") is None
    assert await store.invocation("run-1", step("i").hash) is None


async def test_an_id_that_is_taken_is_left_to_whom_it_belongs(store: Store) -> None:
    await History(store, "taken").begin()
    history = await History(store).begin()
    await history.do(invoke("i", "taken"))
    entry = await store.entry("taken")
    assert entry is not None
    assert (entry.run.parent_run, entry.request) == (None, b"the request")


async def test_a_child_is_executed_like_any_run(store: Store) -> None:
    history = await History(store).begin()
    await history.do(invoke("i", "child-1"))
    child = await store.run("child-1")
    assert child is not None
    for command in (Claim("me", None), Complete(200, b"answer")):
        decision = decide(child, command, T0 + 9, POLICY)
        await store.submit(decision.change).wait()
        child = decision.run
    ended = await store.ended("child-1")
    assert ended is not None
    assert (ended.run, ended.response) == (child, b"answer")


async def test_invocations_whose_child_has_ended_are_found(store: Store) -> None:
    history = await History(store).begin()
    await history.record(invoke("a", "child-a"), invoke("b", "child-b"), invoke("c", "child-c"))
    await history.do(Suspend())
    assert await store.settled_invocations() == []
    for name in ("child-a", "child-c"):
        child = await store.run(name)
        assert child is not None
        await store.submit(decide(child, Cancel("x"), T0, POLICY).change).wait()
    found = await store.settled_invocations()
    assert {str(step.id) for _, step in found} == {"a", "c"}
    assert {run for run, _ in found} == {history.run}
    await history.do(Resolve(found[0].step))
    (left,) = await store.settled_invocations()
    assert left.step.id == found[1].step.id
    await history.do(Cancel("x"))
    assert await store.settled_invocations() == []


async def test_an_invocation_whose_child_is_gone_is_found_too(store: Store) -> None:
    history = await History(store).begin()
    await history.do(invoke("a", "child-a"))
    child = await store.run("child-a")
    assert child is not None
    await store.submit(decide(child, Cancel("x"), T0, POLICY).change).wait()
    await store.submit(Change((Sweep(T0 + 1, 0, 0, 100, 100),))).wait()
    assert await store.run("child-a") is None
    assert len(await store.settled_invocations()) == 1


async def test_children_whose_parent_has_ended_are_found(store: Store) -> None:
    history = await History(store).begin()
    await history.record(invoke("a", "child-a"), invoke("b", "child-b"))
    child = await store.run("child-a")
    assert child is not None
    await store.submit(decide(child, Cancel("x"), T0, POLICY).change).wait()
    assert await store.orphans() == []
    await history.do(Complete(200, b""))
    assert [run.id for run in await store.orphans()] == ["child-b"]


async def test_a_woken_invocation_keeps_its_place_and_loses_its_timer(store: Store) -> None:
    history = await History(store).begin()
    await history.record(invoke("a", "child-a", 50))
    await history.do(Suspend())
    (due,) = await store.due_steps(T0 + 50, 10)
    await history.do(Resolve(due.step), now=T0 + 50)
    found = await store.invocation("run-1", step("a").hash)
    assert found is not None
    assert (found.step.state, found.step.due) == (StepState.RETRYING, None)
    assert (found.run.status, found.run.last_order) == (Status.READY, 0)


# Streams


def chunk(position: int, *values: bytes, step_name: str = "a", attempt: int = 1) -> StreamRecord:
    key = step(step_name).hash
    data = b"\n".join(values)
    return StreamRecord(position, len(values), RecordKind.DATA, key, attempt, 0, data)


def ending(kind: RecordKind, position: int, first: int, step_name: str = "a") -> StreamRecord:
    return StreamRecord(position, 1, kind, step(step_name).hash, 1, first, b"")


def reported(kind: RecordKind, position: int, value: bytes) -> StreamRecord:
    return chunk(position, value)._replace(kind=kind)


async def streamed(history: History, *records: StreamRecord, **state: object) -> Stream:
    """Write `records`, and a state that goes with them."""
    size = sum(len(record.data) for record in records)
    stream = Stream(tail=records[-1].last if records else 0, size=size, **state)  # type: ignore[arg-type]
    run = history.run
    change = Change(
        (Streamed(records, stream),), run.id, run.generation, states(run.status), is_relaxed=True
    )
    await history.store.submit(change).wait()
    return stream


async def test_a_stream_is_read_as_it_was_written(store: Store) -> None:
    history = await History(store).begin()
    records = [chunk(1, b'"a"', b'{"b":[1,2.50]}'), chunk(3, '"é🙂\\n"'.encode())]
    records += [
        reported(RecordKind.PROGRESS, 4, b'{"current":1}'),
        reported(RecordKind.LOG, 5, b'{"level":"info"}'),
        ending(RecordKind.COMMIT, 6, 1),
    ]
    stream = await streamed(history, *records, open={"x": 3}, outside=2, outside_committed=1)
    page = await store.stream_page("run-1", 0, 1_000_000)
    assert page == (Status.RUNNING, 6, None, records)
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.stream == stream
    assert await store.stream_page("nobody", 0, 1_000) is None


async def test_a_run_without_a_stream_has_an_empty_page(store: Store) -> None:
    await History(store).begin()
    assert await store.stream_page("run-1", 0, 1_000) == (Status.RUNNING, 0, None, [])
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.stream is None


async def test_a_page_begins_with_the_record_that_holds_the_next_position(store: Store) -> None:
    history = await History(store).begin()
    records = [chunk(1, b"1", b"2"), chunk(3, b"3"), chunk(4, b"4", b"5", b"6"), chunk(7, b"7")]
    await streamed(history, *records)
    for after, count in ((0, 4), (1, 4), (2, 3), (3, 2), (4, 2), (5, 2), (6, 1), (7, 0), (99, 0)):
        page = await store.stream_page("run-1", after, 1_000_000)
        assert page is not None
        assert page.records == records[4 - count :], after


async def test_a_page_has_about_the_size_that_is_asked_for(store: Store) -> None:
    history = await History(store).begin()
    records = [chunk(n, b"1" * 1_000) for n in range(1, 21)]
    await streamed(history, *records)
    for size, least, most in ((1, 1, 1), (3_000, 2, 4), (1_000_000, 20, 20)):
        page = await store.stream_page("run-1", 0, size)
        assert page is not None
        assert least <= len(page.records) <= most
        assert page.records == records[: len(page.records)]


async def test_rollbacks_and_the_chunks_of_one_step(store: Store) -> None:
    history = await History(store).begin()
    records = [
        chunk(1, b"1"),
        chunk(2, b"2", step_name="b"),
        ending(RecordKind.ROLLBACK, 3, 1),
        chunk(4, b"4"),
        chunk(5, b"5", step_name="b"),
        reported(RecordKind.LOG, 6, b"6"),
        ending(RecordKind.COMMIT, 7, 4),
    ]
    await streamed(history, *records)
    assert await store.rollbacks("run-1") == [(3, step("a").hash, 1)]
    a = step("a").hash
    assert await store.step_chunks("run-1", a, 4, 7, 1_000) == [records[3], records[5]]
    assert await store.step_chunks("run-1", a, 4, 7, 1) == [records[3]]
    assert await store.step_chunks("run-1", a, 7, 7, 1_000) == []
    assert await store.rollbacks("nobody") == []


async def test_a_stream_is_fenced_like_everything_else(store: Store) -> None:
    history = await History(store).begin()
    await streamed(history, chunk(1, b"1"))
    before = history.run
    await history.do(Release("x"))
    late = Change(
        (Streamed((chunk(2, b"2"),), Stream(2)),),
        "run-1",
        before.generation,
        states(Status.RUNNING),
        is_relaxed=True,
    )
    assert await refused(store, late)
    await history.do(Claim("me", None))
    assert await refused(store, late)
    page = await store.stream_page("run-1", 0, 1_000)
    assert page is not None
    assert (page.tail, len(page.records)) == (1, 1)


async def test_a_stream_skips_ahead(store: Store) -> None:
    history = await History(store).begin()
    before = await streamed(history, chunk(1, b"1"))
    await history.do(Interrupt(alone=False, rebooted=True))
    entry = await store.entry("run-1")
    assert entry is not None
    assert entry.stream == before._replace(tail=1_000_001, is_wary=True)


async def test_a_stream_skips_ahead_of_a_log_that_is_lost(store: Store) -> None:
    history = await History(store).begin()
    await history.do(Interrupt(alone=False, rebooted=True))
    assert await store.stream("run-1") == Stream(tail=1_000_000, is_wary=True)
    assert await store.stream("nobody") is None


async def test_a_stream_goes_with_its_run_portion_by_portion(store: Store) -> None:
    history = await History(store).begin()
    records = [chunk(n, b"1") for n in range(1, 31)]
    await streamed(history, *records)
    await history.do(Complete(200, None), now=T0)
    sweep = Sweep(T0 + 1, T0 + 1, T0 + 1, limit=10, runs=5)
    for _ in range(5):
        assert await store.is_sweepable(T0 + 1, T0 + 1, T0 + 1) == (
            await store.run("run-1") is not None
        )
        await store.submit(Change((sweep,))).wait()
    assert await store.run("run-1") is None
    assert await store.stream_page("run-1", 0, 1_000) is None
    assert await store.rollbacks("run-1") == []
    assert not await store.is_sweepable(T0 + 1, T0 + 1, T0 + 1)


async def test_what_is_shown_of_a_run_beside_its_steps(store: Store) -> None:
    run = (await History(store).begin()).run
    assert await store.version("run-1") == "v1"
    assert await store.version("nobody") == ""
    assert await store.last_progress("run-1") is None
    records = [
        StreamRecord(1, 1, RecordKind.DATA, "", 0, 1, b"1"),
        StreamRecord(2, 1, RecordKind.PROGRESS, "", 0, 2, b'{"current":1}'),
        StreamRecord(3, 1, RecordKind.PROGRESS, "", 0, 3, b'{"current":2}'),
        StreamRecord(4, 1, RecordKind.LOG, "", 0, 4, b"{}"),
    ]
    streamed = Streamed(tuple(records), Stream(tail=4))
    await store.submit(Change((streamed,), run.id, run.generation, states(run.status))).wait()
    progress = await store.last_progress("run-1")
    assert progress is not None
    assert progress.chunks() == [b'{"current":2}']
