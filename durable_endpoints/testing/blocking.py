"""The awaitable methods of a `VirtualEngine` for tests that are plain functions."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from durable_endpoints.client import Transcript
from durable_endpoints.errors import UsageError
from durable_endpoints.protocol.durations import Duration
from durable_endpoints.protocol.ops import StepRecord
from durable_endpoints_server.engine.model import Run

if TYPE_CHECKING:
    from durable_endpoints.testing.engine import VirtualEngine
    from durable_endpoints.testing.looking import Attempt

T = TypeVar("T")


class BlockingEngine:
    """`engine.sync`. Each method is the one of the same name, and returns when that is done: on
    the event loop that serves the application, and where none lives, on one made for it."""

    def __init__(self, engine: VirtualEngine) -> None:
        self._engine = engine

    def advance(self, duration: Duration) -> None:
        _block("advance", self._engine.advance(duration))

    def settle(self, patience: float = 5.0) -> None:
        _block("settle", self._engine.settle(patience))

    def finish(self, run_id: str | None = None, within: Duration = "366d") -> httpx.Response:
        return _block("finish", self._engine.finish(run_id, within))

    def send_event(
        self, name: str, data: Any = None, *, id: str | None = None, ts: int | None = None
    ) -> str:
        return _block("send_event", self._engine.send_event(name, data, id=id, ts=ts))

    def send_signal(self, name: str, data: Any = None) -> bool:
        return _block("send_signal", self._engine.send_signal(name, data))

    def crash(self) -> None:
        _block("crash", self._engine.crash())

    def restart(self) -> None:
        _block("restart", self._engine.restart())

    def run(self, run_id: str | None = None) -> Run:
        return _block("run", self._engine.run(run_id))

    def memo(self, run_id: str | None = None) -> dict[str, StepRecord]:
        return _block("memo", self._engine.memo(run_id))

    def values(self, run_id: str | None = None) -> dict[str, Any]:
        return _block("values", self._engine.values(run_id))

    def attempts(self, step: str | None = None, run_id: str | None = None) -> list[Attempt]:
        return _block("attempts", self._engine.attempts(step, run_id))

    def stream(self, run_id: str | None = None) -> Transcript:
        return _block("stream", self._engine.stream(run_id))

    def response(self, run_id: str | None = None) -> httpx.Response | None:
        return _block("response", self._engine.response(run_id))


def _block(name: str, coroutine: Coroutine[Any, Any, T]) -> T:
    if asyncio._get_running_loop() is not None:
        coroutine.close()
        raise UsageError(
            f"engine.sync.{name}() would block this event loop: `await engine.{name}()` here"
        )
    # With a factory, the runner leaves alone which event loop is the thread's current one.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        return runner.run(coroutine)
