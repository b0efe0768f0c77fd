"""`CheckpointClient`: Inngest's checkpoint API, for code that reports runs without `@endpoint`.

    gathered = {"op": "StepRun", "id": sha1(b"gather").hexdigest(), "name": "gather", "data": 3}

    async with CheckpointClient("http://127.0.0.1:8288", signing_key=key) as client:
        event = RunEvent("http://127.0.0.1:8000", "/report")
        run = await client.new_run(str(ULID()), event, [gathered])
        await client.steps(run, [another])
        await client.response(run, ApiResult(200, {"content-type": "text/plain"}, b"done"))

An `Op` is one opcode of that API, a mapping as above: what was done, the step's id (40 hex digits,
usually the SHA-1 of its name), and its result. It works with Inngest's server and with ours. Ours
takes origins only that it may call back: `--app-origin`, or with `dev` this machine.
`durable_endpoints.client.CheckpointClientSync` is the same for code without an event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Self

import httpx

from durable_endpoints.protocol import checkpoints, signing
from durable_endpoints.protocol.checkpoints import (
    ApiResult,
    BadCheckpointError,
    CheckpointError,
    CheckpointRefusedError,
    CheckpointRun,
    Op,
    Question,
    RunEvent,
    ServerUnavailableError,
    UnknownRunError,
)
from durable_endpoints.protocol.urls import without_credentials

__all__ = [
    "ApiResult",
    "BadCheckpointError",
    "CheckpointClient",
    "CheckpointError",
    "CheckpointRefusedError",
    "CheckpointRun",
    "RunEvent",
    "ServerUnavailableError",
    "UnknownRunError",
]

TRIES: Final = 5
TIMEOUT: Final = 30.0
"""Seconds for one try."""


class CheckpointClient:
    """Reports runs to a server at `base_url`.

    `signing_key` opens the server; none is needed for one in development mode. Where it is refused
    with 401 or 403, `signing_key_fallback` is tried once. What gets no answer, 408, 429 or 5xx is
    tried five times, 0.1 to 1.6 seconds apart. `client` is an `httpx.AsyncClient` or an
    `httpx2.AsyncClient` of yours, which is not closed here.

    The methods raise `CheckpointError`: `CheckpointRefusedError` for a key that is not taken,
    `UnknownRunError`, `BadCheckpointError` for what will not get better, and
    `ServerUnavailableError`.
    """

    def __init__(
        self,
        base_url: str,
        *,
        signing_key: str | None = None,
        signing_key_fallback: str | None = None,
        client: Any = None,
    ) -> None:
        address = Address(base_url, signing_key, signing_key_fallback)
        self._client = client if client is not None else http_client("AsyncClient")
        self._is_own = client is None
        self._asker = Asker(address, self._client)

    async def new_run(
        self,
        run_id: str,
        event: RunEvent,
        steps: Sequence[Op] = (),
        *,
        retries: int = 3,
        idempotency: str = "",
    ) -> CheckpointRun:
        """Make a run known, with its first steps. `run_id` is a ULID. What this returns belongs to
        all later checkpoints of the run."""
        question = checkpoints.new_run(run_id, event, steps, retries, idempotency, _now())
        tries = Tries(checkpoints.is_complete(steps))
        answer = await self._asker.ask(question, tries)
        return CheckpointRun(run_id) if tries.has_ended else checkpoints.read_run(run_id, answer)

    async def steps(self, run: CheckpointRun, steps: Sequence[Op]) -> None:
        """Report more steps of a run."""
        await self._asker.ask(checkpoints.steps_of(run, steps, _now()))

    async def response(self, run: CheckpointRun, result: ApiResult) -> None:
        """End a run with its response."""
        await self.steps(run, [checkpoints.completion(result)])

    async def get_steps(self, run_id: str) -> dict[str, Any]:
        """What the server remembers of a run's steps, by their hashes: `{"data": …}`, `{"error":
        …}`, or what a wait was resolved with."""
        return checkpoints.read_object(await self._asker.ask(checkpoints.actions(run_id)))

    async def aclose(self) -> None:
        """Close the connections, unless they are of a client of yours."""
        if self._is_own:
            await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


class Asker:
    """Puts questions to a server."""

    def __init__(self, address: Address, client: Any) -> None:
        self._address = address
        self._client = client

    async def ask(self, question: Question, tries: Tries | None = None) -> bytes:
        """Put any question to the server, as often as it takes; the answer's body."""
        tries = tries or Tries()
        for pause in tries:
            await asyncio.sleep(pause)
            try:
                status, body = await self._send(question)
            except Exception as error:
                tries.fails(self._address.lost(question, error))
                continue
            if tries.answered(checkpoints.failure(question, status, body)):
                return body
        raise tries.failure

    async def _send(self, question: Question) -> tuple[int, bytes]:
        """Ask once, with the other key if the first one is refused."""
        status, body = 0, b""
        for key in self._address.keys:
            response = await self._client.request(
                question.method,
                self._address.base + question.path,
                content=question.content,
                headers=self._address.headers(question, key),
            )
            status, body = response.status_code, response.content
            if status not in (401, 403):
                break
        return status, body


class Address:
    """Where a server is, and what it wants to see."""

    def __init__(self, base_url: str, key: str | None, fallback: str | None) -> None:
        if not base_url.startswith(("http://", "https://")):
            shown = without_credentials(repr(base_url))
            raise ValueError(f"base_url={shown}: give a URL that begins with http:// or https://")
        self.base = base_url.rstrip("/")
        self.keys = [known for known in (key, fallback) if known] or [""]

    def headers(self, question: Question, key: str) -> dict[str, str]:
        """Those of a question that is asked with `key`."""
        shown = {"authorization": f"Bearer {signing.hashed(key)}"} if key else {}
        if question.content is None:
            return shown
        return {**shown, "content-type": question.content_type}

    def lost(self, question: Question, error: Exception) -> CheckpointError:
        """What to say when there was no answer. Whatever is not the network's fault is raised."""
        if not any(kind.__name__ == "TransportError" for kind in type(error).__mro__):
            raise error
        base, what = without_credentials(self.base), f"{type(error).__name__}: {error}"
        return ServerUnavailableError(
            f"{question.method} {question.path.partition('?')[0]} got no answer from {base}: {what}"
        )


class Tries:
    """How often one question is asked, and what came of it (Inngest's SDKs: five times)."""

    def __init__(self, ends_run: bool = False, most: int = TRIES) -> None:
        """`ends_run`: what is asked ends the run. Then a server that forgets runs that have ended
        cannot answer a second time."""
        self.failure: CheckpointError = ServerUnavailableError("nothing was asked")
        self.has_ended = False
        """Whether the run has ended with a try whose answer was lost."""
        self._ends_run, self._most = ends_run, most
        self._was_lost = self._is_over = False

    def __iter__(self) -> Iterator[float]:
        """The pauses before the tries, in seconds."""
        for number in range(self._most):
            if self._is_over:
                return
            yield 0.1 * 2 ** (number - 1) + random.random() / 10 if number else 0.0

    def fails(self, failure: CheckpointError) -> None:
        """A try failed, and it may be that it did not."""
        self.failure = failure
        self._was_lost = True

    def answered(self, failure: CheckpointError | None) -> bool:
        """There was an answer: whether it is the one that was wanted."""
        if failure is not None and failure.status == 500 and self._ends_run and self._was_lost:
            self.has_ended = True
            return True
        if failure is not None:
            self.failure = failure
            self._is_over = not isinstance(failure, ServerUnavailableError)
        return failure is None


def http_client(kind: str, **options: Any) -> Any:
    """A client of httpx2 if that is installed, else of httpx."""
    try:
        library: Any = import_module("httpx2")
    except ImportError:
        library = httpx
    limits = library.Limits(max_connections=None, max_keepalive_connections=100)
    given = {"timeout": TIMEOUT, "limits": limits, "follow_redirects": False, **options}
    return getattr(library, kind)(**given)


def _now() -> int:
    return time.time_ns() // 1_000_000
