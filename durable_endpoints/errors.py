"""The exceptions of the SDK, as one tree under `DurableEndpointsError`.

DurableEndpointsError
├── ConfigurationError      a setting, or the way the pieces were put together: at the start
├── UsageError              a mistake in the handler's own code; never retried
│   ├── NotInRunError       step.* where no run is
│   ├── NestedStepError     a step inside a step
│   ├── StepIdError         a step name used twice at once, or for another kind of step
│   └── StepValueError      a value that is not JSON
├── LimitError              more steps, bytes or time than the settings allow; never retried
├── EngineError             the engine could not do its part; the client gets a 503
│   ├── StorageError        the store failed: full, read-only, damaged, locked
│   ├── EngineClosedError   the engine is shutting down or was never started
│   ├── ForeignServerError  the server is of another kind than was thought
│   └── LostRunError        another execution holds the run, or it ended
├── StepError               a step failed for good: the one that a handler may want to catch
├── CompensationError       a `Saga` could not undo everything; never retried
├── FetchError              why a try of `step.fetch` failed: the cause of its `StepError`
├── TruncatedStreamError    the source of `stream.pipe` ended before it was complete
├── StreamError             in `durable_endpoints.client`: what was read is no durable stream
├── NonRetriableError       raise it: do not try again
└── RetryAfterError         raise it: try again, but not before then

Each says what happened and what to do, and has the line of your code as `where`. Mistakes end
their message with it ("  at /srv/app.py:41, in report"). What handlers catch, and then tell clients
or other steps (`StepError`, `CompensationError`), has it as a note (PEP 678), which tracebacks and
logs show. What clients get of an error that nobody caught, and what is kept of it, is without the
place.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from durable_endpoints.protocol import failures
from durable_endpoints.protocol.durations import Duration, parse_duration, parse_instant
from durable_endpoints.protocol.errors import (
    ConfigurationError,
    DurableEndpointsError,
    EngineClosedError,
    EngineError,
    ForeignServerError,
    LimitError,
    LostRunError,
    StorageError,
)

__all__ = [
    "CompensationError",
    "ConfigurationError",
    "DurableEndpointsError",
    "EngineClosedError",
    "EngineError",
    "FetchError",
    "ForeignServerError",
    "LimitError",
    "LostRunError",
    "NestedStepError",
    "NonRetriableError",
    "NotInRunError",
    "RememberedError",
    "RetryAfterError",
    "StepError",
    "StepIdError",
    "StepValueError",
    "StorageError",
    "TruncatedStreamError",
    "UsageError",
]


class UsageError(DurableEndpointsError):
    """The handler used the SDK in a way that cannot work: raised where it did. Trying again would
    not help, so the run fails at once; change the code as the message says."""


class NotInRunError(UsageError):
    """`step.*`, `stream.*` or `configure` was called in a request, but outside a run: in a
    dependency, in a handler that is not decorated, after the response. Do the work in a step of a
    decorated handler, before it returns; in a dependency, use `remember()`."""


class NestedStepError(UsageError):
    """A step was started inside the body of another step. Call one after the other, or call the
    inner function directly."""


class StepIdError(UsageError):
    """A step's id is no text, is in use by a step that still runs, or is remembered as another kind
    of step. Give each step a name of its own, with its number in a loop, and a new name to a step
    that becomes another."""


class StepValueError(UsageError):
    """A value that is to be kept, streamed or compared is more than JSON can hold; the message says
    where in the value. Return what JSON has, and build the rest from it outside the step."""


class StepError(DurableEndpointsError):
    """A step failed for good: it said so, or its tries are used up. Raised by the await.

    Catch it to go on without the step, or to undo earlier ones; uncaught, it fails the run. Its
    text is the same in each execution. `__cause__` is the exception of the last try. In a replay it
    is built again from what was remembered: a built-in exception keeps its type, any other becomes
    a `RememberedError`.
    """

    def __init__(
        self,
        step: str,
        name: str,
        message: str,
        attempts: int,
        *,
        where: str | None = None,
        raised_at: str = "",
    ) -> None:
        times = "once" if attempts == 1 else f"{attempts} times"
        problem = f"{name}: {message}" if message else name
        super().__init__(f"step {step!r} failed {times}: {problem}", where=where)
        self.raised_at = raised_at
        """The line of the user's code in which the step's body raised; empty if it is unknown."""
        if raised_at:
            self.add_note(f"  raised at {raised_at}")
        if self.where:
            self.add_note(f"  at {self.where}")
        self.step = step
        """The step's name."""
        self.name = name
        """The class name of the original exception."""
        self.message = message
        """The message of the original exception."""
        self.attempts = attempts
        """How often the step was tried."""

    def __str__(self) -> str:
        return self.explanation


class CompensationError(DurableEndpointsError):
    """A `Saga` failed, and some of its compensations failed for good as well: what these undo is
    still done, and somebody has to see to it. The others have run. Never retried.

    `__cause__` is the error for which the saga was undone.
    """

    def __init__(self, failed: Mapping[str, Exception]) -> None:
        what = "; ".join(f"{name!r}: {_in_short(error)}" for name, error in failed.items())
        super().__init__(
            f"{len(failed)} of a saga's compensations failed for good, and what they undo is still "
            f"done: {what}. The others have run; undo these by hand"
        )
        self.failed = dict(failed)
        """What each of them failed with, by the step's name; most often a `StepError`."""
        if self.where:
            self.add_note(f"  at {self.where}")

    def __str__(self) -> str:
        return self.explanation


def _in_short(error: Exception) -> str:
    if isinstance(error, StepError):
        return f"{error.name}: {error.message}"
    return f"{type(error).__name__}: {failures.message_of(error)}"


class FetchError(DurableEndpointsError):
    """A try of `step.fetch` got no response in time, or one that says "later". The step is tried
    again; handlers get a `StepError` with this name and message in the end.

    The message has the method, the URL without user, password and query, and the status and the
    beginning of the body, if there are any.
    """

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message, where="")
        self.retry_after = retry_after
        """The wait that the server asked for; None if it asked for none."""


class TruncatedStreamError(DurableEndpointsError):
    """A provider's stream ended without an end, or with an error in it: raised by `stream.pipe`.
    What was streamed of it is withdrawn, and the step is tried again, as after any failure."""


class RememberedError(Exception):
    """Stands for an exception that was raised in an earlier execution, as the cause of a
    `StepError`. `name` is its class. It is never raised by itself."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name

    def __repr__(self) -> str:
        return f"RememberedError({self.name!r}, {str(self)!r})"


class NonRetriableError(DurableEndpointsError):
    """Raise it in a step or a handler: this failure is final, whatever the retries say."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args, where="")


class RetryAfterError(DurableEndpointsError):
    """Raise it in a step or a handler: try again, but not before `retry_after`.

    `retry_after` is a duration from now (`"30s"`, seconds, a `timedelta`) or a `datetime` with a
    time zone, as an HTTP `Retry-After` header may give either (RFC 9110 §10.2.3). Anything
    else is a `UsageError`.
    """

    def __init__(self, message: str, retry_after: Duration | datetime | timedelta) -> None:
        super().__init__(message, where="")
        self.retry_after = retry_after
        try:
            self._instant = (
                parse_instant(retry_after) if isinstance(retry_after, datetime) else None
            )
            self._delay = 0 if isinstance(retry_after, datetime) else parse_duration(retry_after)
        except (TypeError, ValueError) as error:
            raise UsageError(f"RetryAfterError(…, {retry_after!r}): {error}") from None

    def delay(self, now: int) -> int:
        """The wait in milliseconds, seen from `now` (epoch milliseconds)."""
        return self._delay if self._instant is None else max(0, self._instant - now)
