from __future__ import annotations

from importlib.util import find_spec

import orjson
import pytest

from durable_endpoints.protocol.matching import text_of, value_at
from durable_endpoints.protocol.ops import Alternative, StepKind
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints_server.engine.matching import (
    document_of,
    matches,
    resolution,
)
from durable_endpoints_server.engine.model import Event, Wait
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
