"""The memo of a run: remembered results, handed out in the order in which they once came.

A replay must look to the handler like the first execution. Code that races two steps took the
branch of the one that ended first, so remembered results resolve in their recorded order of
completion, and when several are awaited at once, some turns of the event loop apart, so that
whoever waits for the first runs on before the second is there.
"""

from __future__ import annotations

import asyncio
import builtins
import heapq
from collections.abc import Callable, Iterable
from typing import Any

from durable_endpoints import errors
from durable_endpoints.errors import DurableEndpointsError, RememberedError, StepError
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.ops import StepRecord, StepState
from durable_endpoints.protocol.step_ids import StepId
from durable_endpoints.results import JSON, Codec, fits

PATIENCE = 32
"""Turns of the event loop to wait for somebody to ask for a result that came earlier. Two turns
pass for each level of `gather` or task group before the code inside it runs."""
_APART = 6
"""Turns between two results that are awaited at once: `asyncio.wait` needs three to tell whoever
waits that the first is there."""


def _nowhere(step: StepId) -> str:
    return ""


class Memo:
    """What is remembered of a run's steps at the start of an execution, and since."""

    __slots__ = (
        "_asked",
        "_inherited",
        "_next",
        "_place",
        "_records",
        "_taken",
        "_turn",
        "_unnamed",
    )

    def __init__(self, records: Iterable[StepRecord]) -> None:
        self._records: dict[str, StepRecord] = {}
        self._place: dict[str, int] = {}
        """Each final step's place in the order of completion."""
        self._next = 0
        """The first place whose result was not handed out yet."""
        self._taken: set[int] | None = None
        """The places behind that whose results were. Most executions need no such set."""
        self._asked: list[tuple[int, asyncio.Future[None]]] | None = None
        self._turn = 0
        self._unnamed: set[str] | None = None
        """Steps that the engine knows by their hashes alone, and that were not called yet."""
        if records:
            for record in sorted(records, key=lambda record: record.order):
                self.update(record)
        self._inherited = frozenset(self._records) if records else frozenset()

    def inherited(self) -> list[StepRecord]:
        """What was remembered at the start of this execution."""
        return [self._records[key] for key in self._inherited] if self._inherited else []

    def is_new(self, step: StepId) -> bool:
        """Whether nothing was remembered of a step at the start of this execution."""
        return step.hash not in self._inherited

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> StepRecord | None:
        """What is remembered of the step with this id."""
        return self._records.get(key)

    def update(self, record: StepRecord) -> None:
        """Something is remembered of a step, or more than before."""
        key = record.id.hash
        self._records[key] = record
        if not record.id.name:
            if self._unnamed is None:
                self._unnamed = set()
            self._unnamed.add(key)
        elif self._unnamed:
            self._unnamed.discard(key)
        if record.is_final:
            self._place.setdefault(key, len(self._place))

    @property
    def is_replaying(self) -> bool:
        """Whether steps are remembered that the handler has not come to yet, where an engine tells
        no more of them."""
        return bool(self._unnamed)

    @property
    def is_handing_out(self) -> bool:
        """Whether somebody waits for a remembered result."""
        return bool(self._asked)

    async def take(
        self, record: StepRecord, codec: Codec = JSON, where: Callable[[StepId], str] = _nowhere
    ) -> Any:
        """Return the remembered result of a final step, or raise its error, when it is its turn.

        `where` tells the line that called a step.
        """
        place = self._place[record.id.hash]
        if place > self._next:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._asked is None:
                self._asked = []
            heapq.heappush(self._asked, (place, future))
            self._schedule()
            await future
        self._mark(place)
        if record.state is StepState.FAILED:
            raise rebuild(record, where(record.id))
        return fits(str(record.id), codec, record.value or b"null")

    def _mark(self, place: int) -> None:
        if place != self._next or self._taken:
            self._mark_out_of_turn(place)
        else:
            self._next += 1
        if self._asked:
            self._schedule()

    def _mark_out_of_turn(self, place: int) -> None:
        if self._taken is None:
            self._taken = set()
        self._taken.add(place)
        while self._next in self._taken:
            self._taken.discard(self._next)
            self._next += 1

    def _schedule(self) -> None:
        """Resolve the earliest awaited result: soon if it is the next of all, else once nobody
        has asked for an earlier one for some turns."""
        self._turn += 1
        asyncio.get_running_loop().call_soon(self._resolve, self._turn, 1)

    def _resolve(self, turn: int, turns: int) -> None:
        asked = self._asked
        while asked and asked[0][1].done():
            heapq.heappop(asked)  # its waiter was cancelled
        if turn != self._turn or not asked:
            return
        if turns < (_APART if asked[0][0] <= self._next else PATIENCE):
            asyncio.get_running_loop().call_soon(self._resolve, turn, turns + 1)
            return
        heapq.heappop(asked)[1].set_result(None)


MISTAKES = errors.UsageError | errors.ConfigurationError | errors.LimitError
"""What is wrong with the handler's code. These end a step at once, and are raised as they are."""


def describe_mistake(mistake: Exception) -> failures.Failure:
    """A mistake as data that `rebuild` makes one of again; of a subclass in the user's code, the
    class of ours above it."""
    ours = (base.__name__ for base in type(mistake).__mro__ if base.__name__ in errors.__all__)
    return failures.describe(mistake)._replace(mistake=next(ours))


def rebuild(record: StepRecord, where: str) -> DurableEndpointsError:
    """The error of a remembered failure of a step that was called at `where`, with its cause as far
    as it can be built again."""
    failure = failures.decode(record.error or b"{}")
    kind = getattr(errors, failure.mistake, None) if failure.mistake else None
    if isinstance(kind, type) and issubclass(kind, MISTAKES):
        return kind(failure.message, where=where)
    error = StepError(
        str(record.id),
        failure.name,
        failure.message,
        record.attempt,
        where=where,
        raised_at=failure.at,
    )
    error.__cause__ = exception_of(failure)
    return error


def exception_of(failure: failures.Failure) -> Exception:
    """What was raised, as far as it can be built again."""
    kind = getattr(builtins, failure.name, None)
    exception: Exception = RememberedError(failure.name, failure.message)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            exception = kind(failure.message)
        except Exception:
            pass  # a built-in that needs more than a message, UnicodeDecodeError for instance
    if failure.cause is not None:
        exception.__cause__ = exception_of(failure.cause)
    return exception
