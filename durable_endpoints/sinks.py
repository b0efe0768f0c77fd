"""Where what the calling code streams goes: to the try of a step, or to the handler of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

from durable_endpoints._context import current
from durable_endpoints.errors import NotInRunError, StepValueError
from durable_endpoints.execution import Execution, StepScope
from durable_endpoints.protocol.streams import OUTSIDE, RecordKind
from durable_endpoints.protocol.values import NotJsonError, encode


class Sink(NamedTuple):
    """One run, and the step in it whose body is running, if one is."""

    execution: Execution
    step: str = OUTSIDE
    attempt: int = 0
    scope: StepScope | None = None

    def push(self, data: Any, what: str, kind: RecordKind = RecordKind.DATA) -> bool:
        """Stream one JSON value. Whether that is new, and no replay.

        Raises `StepValueError` for what is not JSON, `NotInRunError` after the end of the step's
        try, and `LimitError`.
        """
        _check_open(self.scope, what)
        try:
            value = encode(data)
        except NotJsonError as error:
            raise StepValueError(f"{what}: the value cannot be streamed: {error}") from None
        return self.execution.push(self.step, self.attempt, value, kind)


def sink_of(what: str) -> Sink | None:
    """The sink of the calling code; None outside any request.

    Raises `NotInRunError` in a request outside a run, and after its end.
    """
    place = current.place
    if place is None:
        return None
    if isinstance(place, StepScope):
        _check_open(place, what)
        return Sink(place.execution, place.step.hash, place.attempt, place)
    execution: Execution | None = place.execution
    if execution is None:
        raise NotInRunError(f"{what} is called outside a run: {place.explanation}")
    if execution.is_closed:
        raise NotInRunError(
            f"{what} is called after the response of this run: nobody would read it. Stream before "
            "the handler returns"
        )
    return Sink(execution)


def _check_open(scope: StepScope | None, what: str) -> None:
    """A thread may outlive its try, and shall not go on paying a provider."""
    if scope is not None and scope.ended:
        raise NotInRunError(
            f"{what} is called after the end of step {str(scope.step)!r}, or of this try of it"
        )
