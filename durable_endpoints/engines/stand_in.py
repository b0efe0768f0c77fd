"""The engine that stands in for that of every application that was given none: for tests.

It is one for the process, because an application is used from several threads and event loops.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol
from weakref import WeakSet

from durable_endpoints.engines.base import Engine


class FindsItsEngine(Protocol):
    """An application, as far as it matters here."""

    def forget_engine(self) -> None:
        """Another engine may be the right one from now on."""
        ...


class _Process(NamedTuple):
    stand_ins: list[Engine]
    applications: WeakSet[FindsItsEngine]


_process = _Process([], WeakSet())


def stand_in() -> Engine | None:
    """The engine to use instead of the one that settings name, if there is one."""
    return _process.stand_ins[-1] if _process.stand_ins else None


def follow_stand_in(application: FindsItsEngine) -> None:
    """Tell an application that was given no engine whenever the stand-in changes."""
    _process.applications.add(application)


@contextmanager
def standing_in(engine: Engine) -> Iterator[None]:
    """Let `engine` stand in. The innermost counts."""
    _process.stand_ins.append(engine)
    _tell_all()
    try:
        yield
    finally:
        _process.stand_ins.remove(engine)
        _tell_all()


def _tell_all() -> None:
    for application in list(_process.applications):
        application.forget_engine()
