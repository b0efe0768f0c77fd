from __future__ import annotations

from durable_endpoints.protocol.step_ids import HANDLER_STEP, StepIds, hash_name


def test_hashes_are_those_of_inngest() -> None:
    assert hash_name("a") == "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"
    assert hash_name("b") == "e9d71f5ee7c92d6dc9e92ffdad17b8bd49418f98"
    assert hash_name("p1:1") == "9e5a6d49bfc1d7acb9b563e8a170b4dbf2a105ec"
    assert hash_name("go-async") == "7363567713a9809788dab720d3a1c801f797e29e"
    assert HANDLER_STEP.hash == "0737c22d3bfae812339732d14d8c7dbd6dc4e09c"


def test_repeats_are_numbered() -> None:
    ids = StepIds()
    assert [ids.next("p1").hash for _ in range(3)] == [
        hash_name("p1"),
        hash_name("p1:1"),
        hash_name("p1:2"),
    ]


def test_an_index_that_is_taken_is_skipped() -> None:
    ids = StepIds()
    assert str(ids.next("a:1")) == "a:1"
    assert str(ids.next("a")) == "a"
    assert ids.next("a").repeat == 2


def test_the_reserved_name_can_be_used_by_a_step() -> None:
    ids = StepIds()
    step = ids.next("complete")
    assert step.hash != HANDLER_STEP.hash
    assert step.name == "complete"
