"""What a test may want to know of a run, made of what the store keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import httpx
import orjson

from durable_endpoints import answers
from durable_endpoints.capture import RUN_ID_HEADER
from durable_endpoints.client import Transcript
from durable_endpoints.client.frames import Frame, FrameParser
from durable_endpoints.client.messages import Ending, RunAddress, read_frame
from durable_endpoints.engines.base import Outcome
from durable_endpoints.protocol import failures
from durable_endpoints.protocol.frames import record_frames
from durable_endpoints.protocol.ops import StepKind, StepRecord, StepState
from durable_endpoints_server.engine.model import Run
from durable_endpoints_server.store.base import Store

_EVERYTHING = 2**62


class UnknownRunError(KeyError):
    """The engine knows no such run, or more than one could be meant."""

    def __str__(self) -> str:
        return str(self.args[0])


class Attempt(NamedTuple):
    """One try of a step that has ended."""

    step: str
    number: int
    """From 1."""
    error: str | None
    """What it failed with, class and message; None for the one that succeeded."""


def find_run(runs: list[Run], run_id: str | None) -> Run:
    """The run with this id, or without one the only run. Raises `UnknownRunError`."""
    if run_id is None:
        if len(runs) == 1:
            return runs[0]
        if runs:
            raise UnknownRunError(f"there are {len(runs)} runs, so name one:\n{_listing(runs)}")
        raise UnknownRunError(
            "no run has begun on this engine. Was the request for a handler with @endpoint? Is the "
            "engine in use: `async with engine.client(app)`, `with engine.use():` or the fixture "
            "`durable_engine`, before the application starts?"
        )
    for run in runs:
        if run.id == run_id:
            return run
    known = f"there are:\n{_listing(runs)}" if runs else "none has begun"
    raise UnknownRunError(f"there is no run {run_id!r} on this engine; {known}")


def _listing(runs: list[Run]) -> str:
    return "\n".join(f"  {run.id}  {run.function_id}  {run.status.label}" for run in runs)


def values_of(memo: list[StepRecord]) -> dict[str, Any]:
    """The results of finished steps by name, in order of completion, as JSON decodes them."""
    return {
        str(step.id): orjson.loads(step.value or b"null")
        for step in memo
        if step.state is StepState.DONE and step.kind is not StepKind.HANDLER
    }


async def attempts_of(store: Store, run_id: str, name: str | None) -> list[Attempt]:
    """All tries that have ended, of one step or of all: the failed ones, then what succeeded."""
    found = [
        Attempt(failed.step, failed.attempt, str(failures.decode(failed.error)))
        for failed in await store.attempts(run_id)
    ]
    entry = await store.entry(run_id)
    for step in entry.memo if entry is not None else ():
        if step.state is StepState.DONE and step.attempt:
            found.append(Attempt(str(step.id), step.attempt, None))
    return [attempt for attempt in found if name in (None, attempt.step)]


async def transcript_of(store: Store, run_id: str) -> Transcript:
    """What the run has streamed."""
    transcript, parser = Transcript(), FrameParser()
    page = await store.stream_page(run_id, 0, _EVERYTHING)
    for record in page.records if page is not None else ():
        for frame in parser.feed(record_frames(record)):
            if isinstance(frame, Frame):
                message = read_frame(frame, frame.id or "")
                if message is not None and not isinstance(message, Ending | RunAddress):
                    transcript.feed(message)
    return transcript


def response_of(outcome: Outcome) -> httpx.Response:
    """What `/wait` answers for a run that has ended, or is parked."""
    if outcome.response is not None:
        status, headers, body = outcome.response
        headers = [*headers, (RUN_ID_HEADER, outcome.run_id.encode())]
    else:
        problem = answers.outcome_problem(outcome)
        status, headers, body = problem.status_code, problem.raw_headers, bytes(problem.body)
    request = httpx.Request(outcome.method or "GET", f"http://testserver{outcome.path}")
    return httpx.Response(status, headers=headers, content=body, request=request)


def waits_of(run: Run, memo: list[StepRecord]) -> str:
    """What a run that goes on by itself no further waits for, in words."""
    waiting = [
        f"{step.kind} {str(step.id)!r}"
        if step.kind is not StepKind.RUN
        else f"the next try of {str(step.id)!r}"
        for step in memo
        if not step.is_final
    ]
    if waiting:
        return f"it waits for {', '.join(waiting)}"
    return f"it is {run.status.label}"
