"""Executes runs whose application is called back over HTTP."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from durable_endpoints.protocol.errors import EngineError, LimitError, LostRunError
from durable_endpoints_server.dispatcher import Nobody, Place
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.inngest.apps import Apps, is_called_back
from durable_endpoints_server.inngest.checkpoints import is_in_sync_phase
from durable_endpoints_server.inngest.execution import Execution, Means
from durable_endpoints_server.inngest.ops import WireOp
from durable_endpoints_server.inngest.refusals import Refusal
from durable_endpoints_server.live import LiveRun
from durable_endpoints_server.store.base import Entry

logger = logging.getLogger("durable_endpoints")


class Reentries:
    """One of the server's executors."""

    def __init__(self, means: Means, apps: Apps, share: int) -> None:
        """One application gets `share` of the executions at the most: others have work too."""
        self._means = means
        self._host = means.host
        self._apps = apps
        self._share = share
        self._executions: dict[str, Execution] = {}
        self._running: Counter[str] = Counter()
        self._refused: set[str] = set()

    def place(self, entry: Entry) -> Place | Nobody:
        if not is_called_back(entry.app):
            return Nobody.HERE
        if self._apps.allows(entry.app):
            is_busy = self._running[entry.app] >= self._share
            return Nobody.FREE if is_busy else Place(self._host.owner, self._execute)
        if entry.app not in self._refused:
            self._refused.add(entry.app)
            logger.warning(
                "runs of %s stand still: start the server with --app-origin %s, or register the "
                "origin (PUT /v1/durable/apps)",
                entry.app,
                entry.app,
            )
        return Nobody.HERE

    def keeps(self, run: Run) -> bool:
        return is_in_sync_phase(run)

    async def _execute(self, live: LiveRun, entry: Entry) -> None:
        execution = Execution(self._means, live, entry)
        self._executions[live.id] = execution
        self._running[entry.app] += 1
        try:
            await execution.run()
        except EngineError:
            raise
        except Exception:
            logger.exception("run %s could not be executed, and is parked", live.id)
            await live.park("failed_in_server")
        finally:
            del self._executions[live.id]
            self._running[entry.app] -= 1
            self._host.dispatcher.make_room(entry.app)

    async def checkpoint(self, run_id: str, generation: int, ops: Sequence[WireOp]) -> None:
        """Record steps that an application has made within a re-entry. Raises `Refusal`."""
        stale = Refusal(409, f"Run {run_id} is not executed by this request.", "stale")
        execution = self._executions.get(run_id)
        if execution is None or execution.generation != generation:
            raise stale
        try:
            await execution.checkpoint(ops)
        except LostRunError:
            raise stale from None
        except LimitError as error:
            raise Refusal(413, error.explanation, "too_large") from None

    async def drain(self, timeout: float) -> None:
        """Begin nothing new, and wait for what is under way, for `timeout` seconds."""
        for execution in self._executions.values():
            execution.drain()
        try:
            async with asyncio.timeout(timeout):
                while self._executions:  # noqa: ASYNC110 (the last moments of a server)
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pass  # their runs are released when their tasks are cancelled
