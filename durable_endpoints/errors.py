"""The exceptions of the SDK, as one tree under `DurableEndpointsError`.

DurableEndpointsError
├── ConfigurationError      a setting, or the way the pieces were put together
├── UsageError              a mistake in the handler's own code; never retried
│   ├── NotInRunError       step.* where no run is
│   ├── NestedStepError     a step inside a step
│   ├── StepIdError         a step name used twice at once, or for another kind of step
│   └── StepValueError      a value that is not JSON
├── LimitError              more steps, bytes or time than the settings allow; never retried
├── EngineError             the engine could not do its part
│   ├── StorageError        the store failed: full, read-only, damaged, locked
│   ├── EngineClosedError   the engine is shutting down or was never started
│   └── LostRunError        another execution holds the run, or it ended
├── StepError               a step failed for good
├── CompensationError       a `Saga` could not undo everything; never retried
├── TruncatedStreamError    the source of `stream.pipe` ended before it was complete
├── NonRetriableError       raise it: do not try again
└── RetryAfterError         raise it: try again, but not before then
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from durable_endpoints.protocol.durations import Duration, parse_duration, parse_instant
from durable_endpoints.protocol.errors import (
    ConfigurationError,
    DurableEndpointsError,
    EngineClosedError,
    EngineError,
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
    """The handler used the SDK in a way that cannot work. Trying again would not help."""


class NotInRunError(UsageError):
    """`step.*` was called in a request, but outside a run."""


class NestedStepError(UsageError):
    """A step was started inside the body of another step."""


class StepIdError(UsageError):
    """A step name is in use already, or is remembered as another kind of step."""


class StepValueError(UsageError):
    """A step's result, or its annotation, is more than JSON can hold."""


class StepError(DurableEndpointsError):
    """A step failed for good: it said so, or its tries are used up.

    `__cause__` is the exception of the last try. In a replay it is built again from what was
    remembered: a built-in exception keeps its type, any other becomes a `RememberedError`.
    """

    def __init__(self, step: str, name: str, message: str, attempts: int) -> None:
        times = "once" if attempts == 1 else f"{attempts} times"
        super().__init__(f"step {step!r} failed {times}: {name}: {message}")
        self.step = step
        """The step's name."""
        self.name = name
        """The class name of the original exception."""
        self.message = message
        """The message of the original exception."""
        self.attempts = attempts


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


def _in_short(error: Exception) -> str:
    if isinstance(error, StepError):
        return f"{error.name}: {error.message}"
    return f"{type(error).__name__}: {error}"


class TruncatedStreamError(DurableEndpointsError):
    """A provider's stream ended without an end. The step is tried again, as after any failure."""


class RememberedError(Exception):
    """Stands for an exception that was raised in an earlier execution. `name` is its class."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name

    def __repr__(self) -> str:
        return f"RememberedError({self.name!r}, {str(self)!r})"


class NonRetriableError(DurableEndpointsError):
    """Raise it in a step or a handler: this failure is final, whatever the retries say."""


class RetryAfterError(DurableEndpointsError):
    """Raise it in a step or a handler: try again, but not before `retry_after`.

    `retry_after` is a duration from now (`"30s"`, seconds, a `timedelta`) or a `datetime` with a
    time zone, as an HTTP `Retry-After` header may give either (RFC 9110 §10.2.3). Anything
    else is a `UsageError`.
    """

    def __init__(self, message: str, retry_after: Duration | datetime | timedelta) -> None:
        super().__init__(message)
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
