"""`CheckpointClientSync`: Inngest's checkpoint API for code without an event loop."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from durable_endpoints.checkpoint_client import Address, Tries, http_client
from durable_endpoints.protocol import checkpoints
from durable_endpoints.protocol.checkpoints import (
    ApiResult,
    CheckpointRun,
    Op,
    Question,
    RunEvent,
)


class CheckpointClientSync:
    """`CheckpointClient` that blocks. `client` is an `httpx.Client` or an `httpx2.Client`."""

    def __init__(
        self,
        base_url: str,
        *,
        signing_key: str | None = None,
        signing_key_fallback: str | None = None,
        client: Any = None,
    ) -> None:
        self._address = Address(base_url, signing_key, signing_key_fallback)
        self._client = client if client is not None else http_client("Client")
        self._is_own = client is None

    def new_run(
        self,
        run_id: str,
        event: RunEvent,
        steps: Sequence[Op] = (),
        *,
        retries: int = 3,
        idempotency: str = "",
    ) -> CheckpointRun:
        """Make a run known, with its first steps."""
        question = checkpoints.new_run(run_id, event, steps, retries, idempotency, _now())
        tries = Tries(checkpoints.is_complete(steps))
        answer = self._ask(question, tries)
        return CheckpointRun(run_id) if tries.has_ended else checkpoints.read_run(run_id, answer)

    def steps(self, run: CheckpointRun, steps: Sequence[Op]) -> None:
        """Report more steps of a run."""
        self._ask(checkpoints.steps_of(run, steps, _now()))

    def response(self, run: CheckpointRun, result: ApiResult) -> None:
        """End a run with its response."""
        self.steps(run, [checkpoints.completion(result)])

    def get_steps(self, run_id: str) -> dict[str, Any]:
        """What the server remembers of a run's steps, by their hashes."""
        return checkpoints.read_object(self._ask(checkpoints.actions(run_id)))

    def _ask(self, question: Question, tries: Tries | None = None) -> bytes:
        """Put any question to the server, as often as it takes; the answer's body."""
        tries = tries or Tries()
        for pause in tries:
            time.sleep(pause)
            try:
                status, body = self._send(question)
            except Exception as error:
                tries.fails(self._address.lost(question, error))
                continue
            if tries.answered(checkpoints.failure(question, status, body)):
                return body
        raise tries.failure

    def _send(self, question: Question) -> tuple[int, bytes]:
        """Ask once, with the other key if the first one is refused."""
        status, body = 0, b""
        for key in self._address.keys:
            response = self._client.request(
                question.method,
                self._address.base + question.path,
                content=question.content,
                headers=self._address.headers(question, key),
            )
            status, body = response.status_code, response.content
            if status not in (401, 403):
                break
        return status, body

    def close(self) -> None:
        """Close the connections, unless they are of a client of yours."""
        if self._is_own:
            self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _now() -> int:
    return time.time_ns() // 1_000_000
