"""How runs have ended, as an Inngest server tells it: late, and in several places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from durable_endpoints.engines.base import Outcome
from durable_endpoints.engines.inngest.recent import Recent
from durable_endpoints.engines.inngest.responses import Responses
from durable_endpoints.errors import StorageError
from durable_endpoints.ids import began_at
from durable_endpoints.protocol.checkpoints import CheckpointError, Question, UnknownRunError

if TYPE_CHECKING:
    from durable_endpoints.engines.inngest.engine import InngestEngine

T = TypeVar("T")

_KEPT = 50
_POLL = 1.0
_LATE = 60_000
"""Milliseconds in which a server has a record of each run that it knows."""
_STATES = {"COMPLETED": "completed", "FAILED": "failed", "CANCELLED": "cancelled"}


class Outcomes:
    """Asks how runs stand."""

    def __init__(self, engine: InngestEngine) -> None:
        self._engine = engine
        self._final = Recent[Outcome](_KEPT)
        """How runs have ended that were asked for last: the server's records may be behind."""

    async def of(self, run_id: str, timeout: int) -> Outcome | None:
        """As `Engine.outcome`."""
        if (ended := self._final.get(run_id)) is not None:
            return ended
        outcome = await self._awaited(run_id, timeout)
        if outcome is not None and outcome.is_final:
            self._final.keep(run_id, outcome)
        return outcome

    async def _awaited(self, run_id: str, timeout: int) -> Outcome | None:
        engine = self._engine
        deadline = time.monotonic() + timeout / 1_000
        while (left := deadline - time.monotonic()) > 0 and not engine.is_draining:
            if not (token := engine.tokens.output(run_id)):
                break
            outcome = await self._unless_draining(self._output(run_id, token, left), left)
            if outcome is None:
                break
            if outcome.is_final:
                return outcome
            await self._pause(deadline)
        while True:
            outcome = await self._standing(run_id)
            if outcome is None or outcome.is_final or engine.is_draining:
                return outcome
            if deadline <= time.monotonic():
                return outcome
            await self._pause(deadline)

    async def _output(self, run_id: str, token: str, patience: float) -> Outcome | None:
        """What the server answers to a client that waits; None if that does not tell."""
        server = self._engine.server
        url = f"{server.url}/v1/http/runs/{run_id}/output?{urlencode({'token': token})}"
        try:
            response = await server.http.get(url, timeout=patience + 1)
        except Exception as error:
            if _is_timeout(error):
                return _running(run_id)
            raise StorageError(f"the server does not answer: {error}", where="") from None
        if response.status_code in (401, 403, 404):
            return None  # the token is too old, for instance
        raw = [(bytes(name), bytes(value)) for name, value in response.headers.raw]
        responses = Responses(run_id, self._engine.keyring)
        return responses.outcome(response.status_code, raw, response.content)

    async def _standing(self, run_id: str) -> Outcome | None:
        """How a run stands now."""
        engine = self._engine
        if engine.executes(run_id):
            return _running(run_id)
        try:
            answer = await engine.server.read(Question("GET", f"/v1/runs/{run_id}"), tries=1)
        except UnknownRunError:
            return None
        except StorageError as error:
            cause = error.__cause__
            if isinstance(cause, CheckpointError) and cause.status == 500:
                # This is how an Inngest server says that it has no record of a run: not any more,
                # or not yet, because it writes these late.
                is_young = engine.now() - began_at(run_id) < _LATE
                return _running(run_id) if is_young and engine.tokens.knows(run_id) else None
            raise
        run = answer.get("data") or {}
        status = _STATES.get(str(run.get("status", "")).upper())
        if status is None:
            return _running(run_id)
        outcome = Responses(run_id, engine.keyring).told(run.get("output"))
        if outcome is not None and outcome.is_final:
            return outcome
        if status == "completed":
            token = engine.tokens.output(run_id)
            found = await self._output(run_id, token, 5) if token else None
            if found is not None and found.is_final:
                return found
            missing = "the server has no response of this run that can be read"
            return _running(run_id)._replace(status="failed", error=missing)
        return _running(run_id)._replace(status=status)

    async def _pause(self, deadline: float) -> None:
        """Ask not too often."""
        left = max(0.0, min(_POLL, deadline - time.monotonic()))
        await self._unless_draining(asyncio.sleep(left), left)

    async def _unless_draining(self, waiting: Awaitable[T], left: float) -> T | None:
        """What is waited for, for so many seconds, unless this process ends."""
        task = asyncio.ensure_future(waiting)
        drain = asyncio.ensure_future(self._engine.server.drain.wait())
        try:
            await asyncio.wait([task, drain], timeout=left, return_when="FIRST_COMPLETED")
            return task.result() if task.done() else None
        finally:
            task.cancel()
            drain.cancel()


def _running(run_id: str) -> Outcome:
    return Outcome(run_id, "running", "", None, "", False, "", "", "")


def _is_timeout(error: Exception) -> bool:
    return any(kind.__name__ == "TimeoutException" for kind in type(error).__mro__)
