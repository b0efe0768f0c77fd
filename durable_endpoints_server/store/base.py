"""The seam between the services and whatever keeps the facts.

A store takes `Change`s and writes them in the order in which they were submitted, in groups; a
change is *acknowledged* when it is on disk, and its ticket says so. Only a *relaxed* change, of
chunks of a stream, is acknowledged once it is written, and on disk some milliseconds later. Every
store passes the conformance suite in `tests/conformance/`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple, Protocol

from durable_endpoints.protocol.ops import StepKind, StepRecord
from durable_endpoints.protocol.streams import StreamRecord
from durable_endpoints_server.engine.facts import Change, StepResolved
from durable_endpoints_server.engine.model import Event, Match, Run, Status, Stream

NO_RECORDS: Final = 2**62
"""A position beyond every stream: a page from there has no records."""
LISTED_AT_ONCE: Final = 50_000
"""Runs that one question of a listing looks at, at the most: a fraction of a second."""


class RefusedError(Exception):
    """The change's fence did not hold, or what it creates exists: nothing of it was written."""


class Lane:
    """Changes that make no sense without each other, in order: those of one execution.

    Once a change of a lane could not be written (a full disk), the store refuses the lane's later
    ones too, so that no completion is kept whose steps are not.
    """

    __slots__ = ("failure",)

    def __init__(self) -> None:
        self.failure: Exception | None = None


class Ticket(Protocol):
    """What a submitted change gives back."""

    async def wait(self) -> None:
        """Return once the change is on disk (a relaxed one: once it is written).

        Raises `RefusedError` if its fence did not hold, `StorageError` if the store failed.
        """
        ...

    def then(self, callback: Callable[[], None]) -> None:
        """Call `callback` on the running event loop once `wait` would return; else never."""
        ...


async def is_written(ticket: Ticket) -> bool:
    """Wait for a change: True once it is on disk, False if its fence did not hold, because somebody
    was faster. Raises `StorageError`."""
    try:
        await ticket.wait()
    except RefusedError:
        return False
    return True


class Entry(NamedTuple):
    """What a new execution needs: the run, its memo in order of completion, and its request."""

    run: Run
    memo: list[StepRecord]
    request: bytes | None
    retries: int
    """The endpoint's, when the run began."""
    root_path: str
    """Where the application stands in its process, if several share one."""
    app: str
    """Which application it belongs to: see `NewRun`."""
    stream: Stream | None
    """The state of its stream log, if it streamed anything."""

    def after(self, run: Run, change: Change) -> Entry:
        """The same once `change`, which resolves steps, is written and leaves the run as `run`."""
        resolved = [fact.step for fact in change.facts if isinstance(fact, StepResolved)]
        keys = {step.id.hash for step in resolved}
        memo = [step for step in self.memo if step.id.hash not in keys]
        return self._replace(run=run, memo=[*memo, *resolved])


def with_exact_usage(run: Run, memo: Collection[StepRecord]) -> Run:
    """The run with its usage counted anew from all its steps: while a run is RUNNING, what is
    stored of its usage is out of date."""
    return run.with_usage(
        steps=sum(step.kind is not StepKind.HANDLER for step in memo),
        memo_bytes=sum(step.size for step in memo),
        last_order=max((step.order for step in memo), default=0),
    )


class Ended(NamedTuple):
    """How a run stands for whoever waits for it. Only a final one has the later fields."""

    run: Run
    status_code: int | None
    response: bytes | None
    error: bytes | None
    omitted: str
    until_delivered: bool
    method: str
    path: str


class StreamPage(NamedTuple):
    """A part of a run's stream log, and how the run stands at the same instant."""

    status: Status
    tail: int
    """The last position of the log."""
    handed_over: int | None
    """Where the first execution had left it: see `Stream`."""
    records: list[StreamRecord]


class Rollback(NamedTuple):
    """A rollback in a stream log."""

    position: int
    step: str
    first: int


class KeyHolder(NamedTuple):
    """The run that an idempotency key belongs to."""

    run_id: str
    scope: str
    fingerprint: str


class DueStep(NamedTuple):
    """An open step whose time has come, of a run that no execution holds."""

    run: Run
    step: StepRecord


class Invocation(NamedTuple):
    """A step that invoked another run, and its own run."""

    run: Run
    step: StepRecord


class Arrival(NamedTuple):
    """What an event finds. `known` says that its id was received before."""

    known: bool
    matches: list[Match]


class InboxMessage(NamedTuple):
    """A command that another process left: `event`, `signal`, `cancel` or `retry`, with
    JSON."""

    id: int
    at: int
    kind: str
    data: bytes


class RunSummary(NamedTuple):
    """A line of a listing."""

    run: Run
    method: str
    path: str
    status_code: int | None
    next_due: int | None


class RunPage(NamedTuple):
    """A part of a listing."""

    lines: list[RunSummary]
    next: str | None
    """Before which run to go on; None if there are no more."""


class AttemptRecord(NamedTuple):
    """One failed try of a step."""

    step: str
    attempt: int
    began_at: int
    ended_at: int
    error: bytes


class RequestRecord(NamedTuple):
    """One tracked HTTP request."""

    at: int
    method: str
    route: str
    status: int
    elapsed: int
    run_id: str | None


class Reads(Protocol):
    """Facts out. They see every change that was acknowledged before they began."""

    async def run(self, run_id: str) -> Run | None:
        """The run as it was last written. While it is RUNNING, its usage is out of date."""
        ...

    async def entry(self, run_id: str) -> Entry | None:
        """Everything a new execution of the run needs."""
        ...

    async def ended(self, run_id: str) -> Ended | None:
        """The run and, if it has ended, its outcome. None for an unknown run."""
        ...

    async def stream_page(self, run_id: str, after: int, size: int) -> StreamPage | None:
        """The records of the run's stream log that end after the position `after`, in order: what
        weighs about `size`, one at least if there is one. None for an unknown run."""
        ...

    async def stream(self, run_id: str) -> Stream | None:
        """The state of the run's stream log. None if it has none."""
        ...

    async def rollbacks(self, run_id: str) -> list[Rollback]:
        """All rollbacks in the run's stream log, in order."""
        ...

    async def step_chunks(
        self, run_id: str, step: str, first: int, before: int, size: int
    ) -> list[StreamRecord]:
        """Records with chunks of one step, at the positions from `first` to before `before`: the
        first that weigh about `size` together, one at least if there is one."""
        ...

    async def key_holder(self, key: str) -> KeyHolder | None:
        """The run that an idempotency key belongs to."""
        ...

    async def due_steps(self, now: int, limit: int) -> list[DueStep]:
        """Open steps that are due at `now`, of runs nobody executes; the earliest first."""
        ...

    async def due_deadlines(self, now: int, limit: int) -> list[Run]:
        """Runs nobody executes that are past their deadline at `now`."""
        ...

    async def next_due(self) -> int | None:
        """The earliest instant at which `due_steps` or `due_deadlines` will have something."""
        ...

    async def in_status(
        self, status: Status, limit: int, without: Collection[str] = ()
    ) -> list[Run]:
        """Runs that are RUNNING (the oldest first, their usage counted anew from their steps) or
        READY (the longest ready first, `without` those of some applications)."""
        ...

    async def running_since(self, owner: str, instant: int) -> list[str]:
        """The ids of the runs that this owner executes and that began by an instant."""
        ...

    async def arrival(self, event: Event) -> Arrival:
        """Open waits that `event` may resolve, of runs in which it has not resolved any yet; the
        caller checks with `matching.matches`."""
        ...

    async def waits_of(self, run_id: str) -> list[Match]:
        """All open waits of one run."""
        ...

    async def invocation(self, run_id: str, step: str) -> Invocation | None:
        """A run and the step of it with this hash. None if there is none."""
        ...

    async def settled_invocations(self) -> list[Invocation]:
        """Pending invocations of runs that are running, waiting or ready, whose child has ended,
        or is not kept any more."""
        ...

    async def orphans(self) -> list[Run]:
        """Runs that have not ended, though the one that invoked them has."""
        ...

    async def children(self, run_id: str) -> list[Run]:
        """The runs that a run has invoked, in order."""
        ...

    async def unused_events(
        self, run_id: str, name: str, since: int, after: str, limit: int
    ) -> list[Event]:
        """Kept events with this name that the run has not used, in order of receipt and id: those
        received after `since`, or at `since` with an id greater than `after`."""
        ...

    async def unsettled_events(self, limit: int) -> list[Event]:
        """Events that may still have to be matched; the earliest first."""
        ...

    async def known_events(self, ids: Sequence[str]) -> dict[str, str]:
        """Those of these ids of events that were received before, with the internal ids."""
        ...

    async def awaited(self, names: Collection[str]) -> set[str]:
        """Those of these names of events for which some wait is open."""
        ...

    async def event(self, event_id: str) -> Event | None:
        """The event with this internal id, or else with this id."""
        ...

    async def list_events(
        self, name: str | None, since: int, before: tuple[int, str], limit: int
    ) -> list[Event]:
        """Events, the newest first: those with `name`, if one is given, that were received at
        `since` or later, and before the instant and id `before`."""
        ...

    async def inbox(self, limit: int) -> list[InboxMessage]:
        """What other processes left, the oldest first."""
        ...

    async def list_runs(
        self,
        statuses: Sequence[Status],
        function_id: str | None,
        limit: int,
        before: str | None = None,
        window: int = LISTED_AT_ONCE,
    ) -> RunPage:
        """The newest runs first, of those whose id is smaller than `before`; in these `statuses`,
        and of this function, if one is named. `window` runs are looked at, at the most: all that
        are kept, or, if nobody asks for completed ones, those in other statuses."""
        ...

    async def version(self, run_id: str) -> str:
        """The application's version under which the run began; empty if it has none."""
        ...

    async def last_progress(self, run_id: str) -> StreamRecord | None:
        """What the run has last said about its progress, withdrawn or not."""
        ...

    async def attempts(self, run_id: str) -> list[AttemptRecord]:
        """The failed tries of a run's steps, in the order in which they failed."""
        ...

    async def requests(self, limit: int) -> list[RequestRecord]:
        """The newest tracked requests first."""
        ...

    async def origins(self) -> list[str]:
        """The origins that are trusted, in the order of their names."""
        ...

    async def newest(self) -> int:
        """An instant by engine time that had come when something was written last, as near to that
        as an index tells; 0 if nothing was."""
        ...

    async def is_sweepable(
        self, runs_before: int, events_before: int, responses_before: int
    ) -> bool:
        """Whether a `Sweep` with these instants would find something."""
        ...


class Store(Reads, Protocol):
    """Facts in, facts out."""

    def submit(self, change: Change, lane: Lane | None = None) -> Ticket:
        """Queue `change`. Cheap, and never waits; the order of submission is kept."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether the last write succeeded, a few seconds ago at the most."""
        ...

    async def close(self) -> None:
        """Write what was submitted, and let go of the file."""
        ...
