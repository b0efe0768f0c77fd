from __future__ import annotations

from durable_endpoints.protocol.failures import Failure, decode, describe


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_with_its_causes() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner
    except ValueError as error:
        failure = describe(error)
    assert (failure.name, failure.message) == ("ValueError", "outer")
    assert failure.cause is not None
    assert (failure.cause.name, failure.cause.message) == ("KeyError", "'inner'")
    assert "test_an_exception_with_its_causes" in failure.stack
    assert decode(failure.encode()) == failure


def test_causes_are_cut_off() -> None:
    error: Exception = ValueError("0")
    for n in range(1, 10):
        following = ValueError(str(n))
        following.__cause__ = error
        error = following
    depth, failure = 0, describe(error)
    while failure.cause is not None:
        depth, failure = depth + 1, failure.cause
    assert depth == 5


class Rude(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


def test_an_exception_that_cannot_be_printed() -> None:
    assert describe(raised(Rude())).name == "Rude"
    failure = describe(raised(ValueError("\ud800")))
    assert decode(failure.encode()).message == "?"


def test_foreign_forms_are_forgiven() -> None:
    assert decode(b"{}") == Failure("Error", "Unknown error")
    assert decode(b'{"error":"x"}').message == "x"
    assert decode(b'"just text"') == Failure("Error", "just text")
