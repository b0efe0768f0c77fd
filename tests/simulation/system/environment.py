"""What the shipped code asks its machine for, replaced while a history is played: the time, random
bytes and numbers, the machine's boot id; and pauses of services that look now and then, so that ten
quiet days cost nothing and a lost wake-up is not healed by chance."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import fastapi  # noqa: F401 (what is imported late would take the replaced time for its own)
import ulid

from durable_endpoints import ending, lifespan
from durable_endpoints.engines.remote import lease
from durable_endpoints.errors import EngineError
from durable_endpoints_server import dispatcher, owner
from tests.simulation.system.handlers import PLANNED
from tests.simulation.system.loop import Machine, SimulatedLoop

EPOCH = 1_767_225_600
"""2026-01-01T00:00:00Z in epoch seconds: where virtual time begins."""
_NEVER = 1e9


@contextmanager
def replaced(loop: SimulatedLoop, chance: Random, noted: list[str]) -> Iterator[None]:
    """Replace it. `noted` is told what the shipped code logs as its own failure."""
    state = random.getstate()
    random.seed(chance.random())
    log, logger = _Log(noted), logging.getLogger("durable_endpoints")
    before = logger.level, logger.propagate, logger.handlers

    def wall() -> float:
        return EPOCH + loop.time() + loop.process.machine.offset

    replacements: list[tuple[Any, str, Any]] = [
        (time, "time", wall),
        (time, "time_ns", lambda: round(wall() * 1_000_000) * 1_000),
        (time, "monotonic", loop.time),
        (time, "monotonic_ns", lambda: round(loop.time() * 1e9)),
        (time, "perf_counter", loop.time),
        (time, "perf_counter_ns", lambda: round(loop.time() * 1e9)),
        (lease, "now", loop.time),
        (os, "urandom", chance.randbytes),
        (ulid, "default_generator", ulid.ULIDGenerator()),
        (owner, "_boot_id", lambda: _boot_id(loop.process.machine)),
        (lifespan, "_told_of_signals", _signals(loop)),
        (dispatcher, "_RESCAN", _NEVER),
        # It keeps tasks, and those of dead processes would outlive their history in it.
        (ending, "_concluding", set()),
    ]
    originals = [(place, name, getattr(place, name)) for place, name, _ in replacements]
    logger.setLevel(logging.WARNING)
    logger.propagate, logger.handlers = False, [log]
    try:
        for place, name, value in replacements:
            setattr(place, name, value)
        yield
    finally:
        for place, name, value in originals:
            setattr(place, name, value)
        logger.setLevel(before[0])
        logger.propagate, logger.handlers = before[1:]
        random.setstate(state)


def _boot_id(machine: Machine) -> str:
    return f"{machine.name}-{machine.boots}"


def _signals(loop: SimulatedLoop) -> Any:
    @contextmanager
    def told_of_signals(begin_drain: Callable[[], None]) -> Iterator[None]:
        loop.process.on_sigterm.append(begin_drain)
        yield

    return told_of_signals


class _Log(logging.Handler):
    """Notes what the shipped code cannot explain: exceptions that nobody expected."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._noted = noted

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, (*PLANNED, EngineError)):
            self._noted.append(f"{record.getMessage()}: {error!r}")
