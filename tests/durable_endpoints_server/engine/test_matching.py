from __future__ import annotations

from importlib.util import find_spec

import orjson
import pytest

from durable_endpoints.protocol.matching import text_of, value_at
from durable_endpoints.protocol.ops import Alternative, StepKind, StepRecord, StepState
from durable_endpoints.protocol.runs import NewRun
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints_server.engine.matching import (
    document_of,
    first_hit,
    hits,
    matches,
    resolution,
    resolutions,
)
from durable_endpoints_server.engine.model import Event, Match, Wait
from durable_endpoints_server.engine.transitions import register
from tests.requirements import need

EVENT = Event("e1", "paid", b'{"id":7,"user":{"name":"Ada"},"ok":true,"tags":["a","b"]}', 5, 100)
STEP = StepId("h", "s", 0)


def wait(alternative: Alternative, deadline: int = 200, kind: StepKind = StepKind.WAIT) -> Wait:
    return Wait("r", STEP, kind, alternative, deadline)


def hit(alternative: Alternative, event: Event = EVENT, deadline: int = 200) -> bool:
    return matches(wait(alternative, deadline), event, document_of(event))


def test_by_name() -> None:
    assert hit(Alternative("", "paid"))
    assert not hit(Alternative("", "other"))


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("data.id", "7", True),
        ("data.id", "8", False),
        ("data.id", "7.0", False),
        ("data.user.name", "Ada", True),
        ("data.ok", "true", True),
        ("data.tags.1", "b", True),
        ("data.tags.2", "b", False),
        ("data.user", "{}", False),
        ("data.nothing", "null", False),
        ("data.id.deeper", "7", False),
        ("id", "e1", True),
    ],
)
def test_by_equality(path: str, text: str, expected: bool) -> None:
    assert hit(Alternative("", "paid", ((path, text),))) is expected


def test_all_equalities_must_hold() -> None:
    assert hit(Alternative("", "paid", (("data.id", "7"), ("data.ok", "true"))))
    assert not hit(Alternative("", "paid", (("data.id", "7"), ("data.ok", "false"))))


def test_time_of_receipt_decides_not_the_senders_clock() -> None:
    assert hit(Alternative("", "paid"), deadline=101)
    assert not hit(Alternative("", "paid"), deadline=100)
    assert hit(Alternative("", "paid"), EVENT._replace(ts=10**15), deadline=101)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("async.data.id > 5", True),
        ("async.data.id > 7", False),
        ("async.data.user.name.startsWith('A')", True),
        ("async.data.id == 7.0", True),
        ("async.data.missing == 1", False),
        ("async.data.id", False),
        ("async.name == 'paid' && async.data.ok", True),
    ],
)
def test_by_condition(expression: str, expected: bool) -> None:
    need(find_spec("cel") is not None, "CEL (the extra `cel`)")
    assert hit(Alternative("", "paid", (), expression)) is expected


def test_what_the_handler_gets() -> None:
    one = orjson.loads(resolution(wait(Alternative("", "paid")), EVENT))
    assert one == {"name": "paid", "id": "e1", "ts": 5, "data": orjson.loads(EVENT.data)}
    labelled = wait(Alternative("yes", "paid"), kind=StepKind.WAIT_ANY)
    assert orjson.loads(resolution(labelled, EVENT)) == {"name": "yes", "event": one}


def test_texts() -> None:
    assert [text_of(value) for value in ("a", 1, 1.5, True, None, [1], {})] == [
        "a",
        "1",
        "1.5",
        "true",
        None,
        None,
        None,
    ]
    assert value_at({"a": [{"b": 1}]}, "a.0.b") == 1


def opened(name: str, at: int, run: str = "r", began_at: int = 50, event: str = "paid") -> Match:
    """A wait of a run that began at `began_at`, and opened it at `at`."""
    step = StepId(name, name, 0)
    record = StepRecord(step, StepKind.WAIT, StepState.PENDING, due=200, began_at=at)
    of = register(NewRun(run, "f", "", "GET", "/", b""), "me", None, began_at).run
    return Match(of, record, Wait(run, step, StepKind.WAIT, Alternative("", event), 200))


def names(found: list[Match]) -> list[str]:
    return [match.step.id.name for match in found]


def test_an_event_that_is_older_than_a_run_is_nothing_to_it() -> None:
    assert names(hits(EVENT, [opened("a", 100, began_at=100), opened("b", 101, began_at=101)])) == [
        "a"
    ]


def test_waits_come_run_by_run_in_the_order_in_which_they_were_opened() -> None:
    found = [opened("c", 90, "s"), opened("a", 70), opened("z", 60), opened("b", 70)]
    assert names(hits(EVENT, found)) == ["z", "a", "b", "c"]
    assert hits(EVENT, [opened("a", 70, event="other")]) == []


def taken_by(*found: Match) -> list[str]:
    return [resolve.step.id.name for resolve in resolutions(EVENT, found)]


def test_all_waits_of_a_run_that_were_open_get_an_event() -> None:
    assert taken_by(opened("a", 90), opened("b", 100), opened("c", 101)) == ["a", "b"]


def test_of_waits_that_opened_later_only_the_next_one_gets_an_event() -> None:
    assert taken_by(opened("a", 101), opened("b", 102)) == ["a"]


def test_a_step_that_waits_for_one_of_several_gets_the_first_that_suits() -> None:
    first, second = (
        opened("a", 90)._replace(wait=wait(Alternative(label, "paid"), kind=StepKind.WAIT_ANY))
        for label in ("first", "second")
    )
    assert resolutions(EVENT, [first, second]) == resolutions(EVENT, [first])


def test_the_first_kept_event_that_the_run_has_not_used_is_taken() -> None:
    events = [EVENT._replace(id=id, name=name) for id, name in [("1", "x"), ("2", "paid")]]
    events += [EVENT._replace(id="3"), EVENT._replace(id="4")]
    waits = [wait(Alternative("", "paid"))]
    found = first_hit(events, waits, {"2"}.__contains__)
    assert found is not None
    assert found[1].id == "3"
    assert first_hit(events[:2], waits, {"2"}.__contains__) is None
